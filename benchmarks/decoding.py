"""What opening and reading a folder of JPEGs takes: decoded once into the cache, streamed, and with torchvision.

    python benchmarks/decoding.py [--images 3000] [--size 96] [--batch 256] [--repeats 5] [--workers 2]

Makes a folder of synthetic 500×375 JPEGs (two classes, fixed seed) and measures, in images a second: one thread that
decodes in a loop; the first opening, by all threads, with everything written and synchronised; shuffled batches from
the cache, while they are first checked and afterwards, and streamed, through `Loader`; and torchvision's ImageFolder
with Resize and CenterCrop to the same size in a DataLoader with `--workers` processes that stay. Then the seconds of a
second opening. The floor of a batch from the cache is its bytes over the speed at which this machine copies memory.
Files are in the page cache throughout. Medians over repeats, ratios to torchvision. Writes a Markdown table.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from nearfar.data import Loader, Source, open_source
from nearfar.data.pictures import decode
from nearfar.data.workers import workers


def make(folder: Path, n: int) -> None:
    """Smooth random pictures with some noise, which take about as much as photographs."""
    rng = np.random.default_rng(0)
    for i in range(n):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        x = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)  # (375, 500, 3)
        x = x + rng.integers(-12, 13, x.shape, dtype=np.int16)
        Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(folder / "ab"[i % 2] / f"{i:06}.jpg", quality=85)


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def opening(folder: Path, size: int) -> Source:
    return open_source(folder, image_size=size).train


def epoch(source: Source, batch: int, number: int) -> None:
    """One shuffled pass, each batch made and let go."""
    loader = Loader(source, batch, seed=0)
    for _ in loader.iterate(number * loader.steps_per_epoch, (number + 1) * loader.steps_per_epoch):
        pass


def torchvision_epochs(folder: Path, size: int, batch: int, processes: int, repeats: int) -> float | None:
    """Median seconds of an epoch after the first; None without torchvision."""
    try:
        from torch.utils.data import DataLoader
        from torchvision import datasets, transforms
    except (ImportError, RuntimeError):
        return None
    change = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])
    held = datasets.ImageFolder(folder, change)
    loader = DataLoader(held, batch, shuffle=True, drop_last=True, num_workers=processes, persistent_workers=True)
    return statistics.median([seconds(lambda: [None for _ in loader]) for _ in range(repeats + 1)][1:])


def copying(size: int = 2**28) -> float:
    """Bytes a second of copying memory."""
    a, b = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return size / statistics.median(seconds(lambda: np.copyto(b, a)) for _ in range(7))


def measure(folder: Path, cache: Path, given: argparse.Namespace) -> tuple[dict[str, float], float, Source]:
    """-> images a second by what was done, seconds of a second opening, the cached source"""
    n, size, batch, repeats = given.images, given.size, given.batch, given.repeats
    paths = sorted(folder.rglob("*.jpg"))
    in_epoch = n // batch * batch

    def first() -> float:
        shutil.rmtree(cache, ignore_errors=True)
        return seconds(lambda: opening(folder, size))

    def median(job: Callable[[int], float]) -> float:
        return statistics.median(job(i) for i in range(repeats))

    rate = {"decoding in one thread": n / median(lambda i: seconds(lambda: [decode(p, 3, size) for p in paths]))}
    rate[f"first opening, {workers()} threads"] = n / median(lambda i: first())
    time.sleep(0.2)  # files that have just been written are looked at again
    opening(folder, size)
    second = median(lambda i: seconds(lambda: opening(folder, size)))
    fresh = [opening(folder, size) for _ in range(repeats)]  # each checks every row once
    rate["batches from the cache, first epoch"] = in_epoch / median(
        lambda i: seconds(lambda: epoch(fresh[i], batch, 0))
    )
    cached = opening(folder, size)
    epoch(cached, batch, 0)
    rate["batches from the cache, later epochs"] = in_epoch / median(
        lambda i: seconds(lambda: epoch(cached, batch, i + 1))
    )
    streamed = open_source(folder, image_size=size, cache_gb=0).train
    rate[f"batches streamed, {workers()} threads"] = in_epoch / median(
        lambda i: seconds(lambda: epoch(streamed, batch, i))
    )
    rival = torchvision_epochs(folder, size, batch, given.workers, repeats)
    if rival:
        rate[f"torchvision's ImageFolder, DataLoader with {given.workers} processes"] = in_epoch / rival
    return rate, second, cached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    if given.images < given.batch:
        parser.error(f"--images {given.images} is less than a batch: give {given.batch} or more")
    with tempfile.TemporaryDirectory() as room:
        folder, cache = Path(room) / "photos", Path(room) / "cache"
        os.environ["NEARFAR_CACHE"] = str(cache)
        make(folder, given.images)
        each = statistics.mean(p.stat().st_size for p in folder.rglob("*.jpg"))
        print(f"{given.images} JPEGs of 500×375, {each / 1024:.0f} kB each, to {given.size}×{given.size}; "
              f"{os.cpu_count()} cores; medians of {given.repeats}\n")  # fmt: skip
        rate, second, cached = measure(folder, cache, given)
        floor = copying() / int(np.prod(cached.shape))
    theirs = rate.get(next((name for name in rate if "torchvision" in name), ""))
    print("| | images/s | × torchvision |\n|---|---:|---:|")
    for name, value in rate.items():
        print(f"| {name} | {value:,.0f} | {f'{value / theirs:.3g}' if theirs else '–'} |")
    print(f"| floor: copying a batch's bytes | {floor:,.0f} | {f'{floor / theirs:.3g}' if theirs else '–'} |")
    print(f"\nsecond opening: {second:.3f} s ({1e6 * second / given.images:.1f} µs an image), no file opened")


if __name__ == "__main__":
    main()
