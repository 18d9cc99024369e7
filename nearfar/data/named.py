"""Sources by name: scikit-learn's digits, torchvision's and Hugging Face's data sets."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.data.arrays import cover, from_array
from nearfar.data.source import Source, Splits
from nearfar.errors import UserError, nearest, one_line, require


def digits() -> Splits:
    """1,797 scanned handwritten digits, 8×8 grey, inside scikit-learn: 1,200 to train, 597 to test, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    held = load_digits()
    images = np.round(held.images * (255 / 16)).astype(np.uint8)  # values are 0..16
    rows = np.arange(len(images))
    train, test = train_test_split(rows, train_size=1200, stratify=held.target, random_state=0)
    make = lambda i: from_array(  # noqa: E731
        images[i], held.target[i], where="digits", classes=list("0123456789"), hint="digits"
    )
    return Splits(make(np.sort(train)), make(np.sort(test)))


def _stack(pictures: list[Any], where: str, image_size: int) -> np.ndarray:
    """PIL images to one array: grey if all are, else RGB; to one size if they differ. -> (N, H, W, C)"""
    grey = all(p.mode in ("1", "L") for p in pictures)
    sizes = {p.size for p in pictures}
    size = image_size or (0 if len(sizes) == 1 else int(min(96, np.median([min(s) for s in sizes]))))
    ready = (p.convert("L" if grey else "RGB") for p in pictures)
    return np.stack([np.asarray(cover(p, size) if size else p) for p in ready])


def from_torchvision(name: str, image_size: int = 0) -> Splits:
    """A torchvision data set by its class's name, downloaded once to the cache (NEARFAR_CACHE)."""
    torchvision = require("torchvision", "vision", f"source torchvision:{name}")
    known = [n for n in torchvision.datasets.__all__ if isinstance(getattr(torchvision.datasets, n), type)]
    if name not in known:
        raise UserError(f"unknown torchvision data set {name!r}{nearest(name, known)}")
    kind = getattr(torchvision.datasets, name)
    root = Path(os.environ.get("NEARFAR_CACHE", Path.home() / ".cache" / "nearfar")) / "torchvision"
    where = f"torchvision:{name}"
    if name == "FakeData":
        return Splits(_from_pairs(kind(200, (3, 32, 32), 10), where, image_size),
                      _from_pairs(kind(100, (3, 32, 32), 10, random_offset=1000), where, image_size))  # fmt: skip
    parts = []
    for train in (True, False):
        option = {"split": "train" if train else "test"} if name in _BY_SPLIT else {"train": train}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts.append(kind(str(root), download=True, **option))
        except Exception as error:
            raise UserError(f"{where} cannot be had: {one_line(error)}") from None
    return Splits(*(_from_pairs(part, where, image_size) for part in parts))


_BY_SPLIT = {"SVHN", "STL10", "EMNIST", "GTSRB", "Food101", "DTD", "Flowers102", "FGVCAircraft", "PCAM",
             "RenderedSST2", "Country211", "StanfordCars"}  # fmt: skip


def _from_pairs(held: Any, where: str, image_size: int) -> Source:
    pairs = [held[i] for i in range(len(held))]
    images = _stack([p[0] for p in pairs], where, image_size)
    labels = [int(p[1]) for p in pairs]
    classes = getattr(held, "classes", None)
    return from_array(images, labels, where=where, classes=list(classes) if classes else None)


def from_hugging_face(name: str, image_size: int = 0) -> Splits:
    """A data set of the hub (``NAME`` or ``NAME@CONFIG``), or a local folder of one."""
    datasets = require("datasets", "hf", f"source hf:{name}")
    where = f"hf:{name}"
    path, _, config = name.partition("@")
    try:
        saved = Path(path).is_dir() and any(Path(path).glob("**/dataset_info.json"))
        held = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, config or None)
    except Exception as error:
        raise UserError(f"{where} cannot be had: {one_line(error)}") from None
    held = {"train": held} if isinstance(held, datasets.Dataset) else dict(held)
    train = held.get("train") or next(iter(held.values()))
    test = next((held[k] for k in ("test", "validation", "valid") if k in held), None)
    features = train.features
    image = next((k for k, f in features.items() if isinstance(f, datasets.Image)), None)
    label = next((k for k, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image is None:
        raise UserError(f"{where} has no image column: its columns are {', '.join(features)}")

    def make(part: Any) -> Source:
        images = _stack(list(part[image]), where, image_size)
        names = features[label].names if label else None
        return from_array(images, part[label] if label else None, where=where, classes=names)

    return Splits(make(train), make(test) if test is not None else None)
