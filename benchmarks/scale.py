"""A folder of many tiny files, and the same in tar shards: opening, first batch, pace and memory.

    python benchmarks/scale.py                  # 10,000, 100,000 and 1,000,000; about 15 minutes, 6 GB of disk
    python benchmarks/scale.py --images 2000 --batches 20    # its short form

Every line is a process of its own: the first opening makes the index and decodes into the cache, the second finds both;
"streamed" is the same where the pixels are more than the cache may hold.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH = 256
A_FOLDER = 1000  # images a class folder, or a hundredth of a shard
KINDS = ("folder", "shards")
WHAT = ("first opening", "second opening", "streamed, first", "streamed, second")
HEAD = b"P6 8 8 255\n"  # and 192 bytes of pixels


def make_folder(folder: Path, n: int) -> None:
    """A file an image, 1,000 to a class."""
    rng = np.random.default_rng(0)
    for first in range(0, n, A_FOLDER):
        below = folder / f"{first // A_FOLDER:05d}"
        below.mkdir(parents=True)
        for i, pixels in enumerate(rng.integers(0, 256, (min(A_FOLDER, n - first), 192), np.uint8), first):
            with open(below / f"{i:08d}.ppm", "wb", buffering=0) as file:
                file.write(HEAD + pixels.tobytes())


def make_shards(folder: Path, n: int) -> None:
    """The same images with their classes, 10,000 to a shard."""
    folder.mkdir(parents=True)
    rng, file = np.random.default_rng(0), None
    for first in range(0, n, A_FOLDER):
        if first % (10 * A_FOLDER) == 0:
            _end(file)
            file = open(folder / f"shard-{first // (10 * A_FOLDER):06d}.tar", "wb")  # noqa: SIM115
        label = str(first // A_FOLDER).encode()
        for i, pixels in enumerate(rng.integers(0, 256, (min(A_FOLDER, n - first), 192), np.uint8), first):
            for ending, content in (("ppm", HEAD + pixels.tobytes()), ("cls", label)):
                about = tarfile.TarInfo(f"{i:08d}.{ending}")
                about.size = len(content)
                file.write(about.tobuf(tarfile.USTAR_FORMAT) + content.ljust(512, b"\0"))
    _end(file)


def _end(file) -> None:
    if file is not None:
        file.write(bytes(1024))
        file.close()


def measure(folder: str, cache_gb: float | None, wanted: int) -> dict[str, float]:
    """In a process of its own: what the library does between a path and batches, as training does it."""
    from nearfar.data import Loader, hold_out, open_source

    imported, start = _peak(), time.perf_counter()
    source = open_source(folder, cache_gb=cache_gb, say=lambda text: None).train
    opened = time.perf_counter() - start
    train = source.subset(hold_out(source, 0.2, 0)[0])
    train.fingerprint()
    batches = Loader(train, BATCH, 0).iterate()
    next(batches)
    first = time.perf_counter() - start
    done, begun = 0, time.perf_counter()
    while done < wanted and time.perf_counter() - begun < 20:
        next(batches)
        done += 1
    pace = done * BATCH / (time.perf_counter() - begun)
    batches.close()
    return {"images": len(source), "opening": opened, "first batch": first, "pace": pace, "imported": imported,
            "peak": _peak(), "own": _own()}  # fmt: skip


def _peak() -> float:
    """MB of the largest resident set so far; on macOS it is told in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _own() -> float:
    """MB that are the process's own now: without files that are mapped. 0 where the system does not say."""
    if not os.path.exists("/proc/self/status"):
        return 0.0
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


def rows(n: int, work: Path, batches: int) -> list[dict]:
    """All measurements at one number of images; what was made is removed."""
    out = []
    for kind in KINDS:
        folder, cache = work / kind, work / "cache"
        (make_folder if kind == "folder" else make_shards)(folder, n)
        time.sleep(0.2)  # the last file's stamp is to be trusted
        try:
            for what in WHAT[: 2 if kind == "folder" else 4]:
                if what == "streamed, first":
                    shutil.rmtree(cache)
                words = ["--measure", str(folder), "--batches", str(batches)]
                words += ["--streamed"] if "streamed" in what else []
                env = os.environ | {"NEARFAR_CACHE": str(cache), "NEARFAR_CACHE_GB": "32"}
                told = subprocess.run([sys.executable, __file__, *words], env=env, check=True, capture_output=True,
                                      text=True).stdout  # fmt: skip
                out.append({"of": kind, "what": what} | json.loads(told.splitlines()[-1]))
                print(line(out[-1]), flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(cache, ignore_errors=True)
    return out


def line(row: dict) -> str:
    return (f"| {row['images']:,} | {row['of']} | {row['what']} | {row['opening']:.2f} | {row['first batch']:.2f} | "
            f"{row['pace']:,.0f} | {row['imported']:.0f} | {row['peak']:.0f} | {row['own']:.0f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--batches", type=int, default=1000, help="of 256 images, or as many as 20 seconds give")
    parser.add_argument("--work", default=None, help="a folder on a real disk; a temporary one where left out")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--streamed", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, 0.0 if given.streamed else None, given.batches)))
        return
    print("| images | of | what | opens, s | first batch, s | images/s | MB imported | MB peak | MB own at the end |")
    print("|---:|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        for n in given.images:
            rows(n, Path(work), given.batches)


if __name__ == "__main__":
    main()
