"""Real images to one `.npz` with x_train, y_train, x_test, y_test, ready for `nearfar train`.

    python benchmarks/prepare.py cifar10 "$NEARFAR_DATA" cifar10.npz --train 10000 --test 3000

`cifar10` reads WebP sheets of 100×100 tiles (rows already shuffled, so a prefix is a random subset);
`fashion-mnist` the IDX files. `--tune` makes a split for choices: the test part is taken from the END of the
training set, and the real test images are not opened at all.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "fashion-mnist": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"],
}


def sheet(path: Path) -> np.ndarray:
    """10,000 tiles of a sheet. -> (10000, 32, 32, 3) uint8"""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return pixels.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)


def cifar10(folder: Path, part: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.load(folder / f"{part}_labels.npy")
    if part == "test":
        return sheet(folder / "test.webp")[:n], labels[:n]
    sheets = -(-min(n, 50_000) // 10_000)
    return np.concatenate([sheet(folder / f"train_{i}.webp") for i in range(sheets)])[:n], labels[:n]


def fashion(folder: Path, part: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    stem = "train" if part == "train" else "t10k"
    with gzip.open(folder / f"{stem}-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{stem}-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8)
    return x[:n], y[:n].astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CLASSES)
    parser.add_argument("data", type=Path, help="the folder that holds cifar10/ and fashion-mnist/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--tune", action="store_true", help="test on the end of the training set instead")
    given = parser.parse_args()
    read = cifar10 if given.name == "cifar10" else fashion
    folder = given.data / given.name
    if given.tune:
        x, y = read(folder, "train", 60_000)
        parts = (x[: given.train], y[: given.train], x[-given.test :], y[-given.test :])
        if given.train + given.test > len(x):
            parser.error(f"--train {given.train} and --test {given.test} overlap in {len(x)} images")
    else:
        parts = (*read(folder, "train", given.train), *read(folder, "test", given.test))
    np.savez(given.out, **dict(zip(["x_train", "y_train", "x_test", "y_test"], parts)), classes=CLASSES[given.name])
    print(f"{given.out}: {len(parts[0])} training and {len(parts[2])} test images of {parts[0].shape[1:]}")


if __name__ == "__main__":
    main()
