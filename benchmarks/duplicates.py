"""Near-duplicates: how many of CIFAR-10's test images are found, and how many planted copies.

    python benchmarks/duplicates.py "$NEARFAR_DATA"

Planted: 100 training images (of 10,000; of digits 1,200) take the place of test images, changed in one way each. It
prints the share that is found, and of the real test part how many, in how many seconds.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image
from prepare import cifar10, fashion
from sklearn.datasets import load_digits

from nearfar.evaluate.duplicates import near_duplicates

PLANTED = 100


def pillow(x: np.ndarray) -> Image.Image:
    return Image.fromarray(x[..., 0] if x.shape[2] == 1 else x)


def jpeg(x: np.ndarray) -> np.ndarray:
    side = io.BytesIO()
    pillow(x).save(side, "JPEG", quality=50)
    return np.asarray(Image.open(side)).reshape(x.shape)


def rescaled(x: np.ndarray) -> np.ndarray:
    h, w = x.shape[:2]
    small = pillow(x).resize((round(0.9 * w), round(0.9 * h)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((w, h), Image.Resampling.BICUBIC)).reshape(x.shape)


def cropped(x: np.ndarray) -> np.ndarray:
    h, w = x.shape[:2]
    box = (0.05 * w, 0.05 * h, 0.95 * w, 0.95 * h)
    return np.asarray(pillow(x).resize((w, h), Image.Resampling.BICUBIC, box=box)).reshape(x.shape)


def shifted(x: np.ndarray, by: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (by, 0), (0, 0)), "edge")[:, : x.shape[1]]


COPIES = {
    "JPEG 50": jpeg, "shift 1": lambda x: shifted(x, 1), "shift 2": lambda x: shifted(x, 2),
    "mirror": lambda x: x[:, ::-1], "+20 %": lambda x: (x * 1.2).clip(0, 255).astype(np.uint8),
    "-20 %": lambda x: (x * 0.8).astype(np.uint8), "rescaled": rescaled, "middle 0.9": cropped,
}  # fmt: skip


def digits() -> tuple[np.ndarray, np.ndarray]:
    x = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    return x[:1200], x[1200:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    parts = {"train": 60_000, "test": 10_000}
    held = (
        [cifar10(given.data / "cifar10", part, n)[0] for part, n in parts.items()],
        [fashion(given.data / "fashion-mnist", part, n)[0][..., None].copy() for part, n in parts.items()],
        digits(),
    )
    for name, (train, test) in zip(("CIFAR-10", "Fashion-MNIST", "digits"), held):
        start = time.perf_counter()
        found = near_duplicates(test, train)
        print(f"{name}: {len(found.test)} of {len(test):,} test images found among {len(train):,}, "
              f"{time.perf_counter() - start:.0f} s, limit {found.limit:.3f}", flush=True)  # fmt: skip
        bank, some = train[:10_000], test[:600]
        for kind, change in COPIES.items():
            seen = some.copy()
            seen[:PLANTED] = [change(x) for x in bank[:: len(bank) // PLANTED][:PLANTED]]
            found = near_duplicates(seen, bank, sample=1000)
            print(f"  {kind:11} {np.isin(np.arange(PLANTED), found.test).mean():.2f}", flush=True)


if __name__ == "__main__":
    main()
