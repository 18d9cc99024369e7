"""Sources by name: scikit-learn's digits, torchvision's and Hugging Face's data sets."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nearfar.data.arrays import from_array
from nearfar.data.folder import Options
from nearfar.data.pictures import AUTO, GREY, auto_shape, cover_array, quiet, reason, to_pixels
from nearfar.data.rows import from_table
from nearfar.data.source import Source, Splits, aligned, shown
from nearfar.errors import UserError, nearest, one_line, require

_BY_SPLIT = {"SVHN", "STL10", "EMNIST", "GTSRB", "Food101", "DTD", "Flowers102", "FGVCAircraft", "PCAM",
             "RenderedSST2", "Country211", "StanfordCars"}  # fmt: skip
_TESTS = ("test", "validation", "valid", "val")
_HELD = 2 * 2**30  # bytes of pixels, in RGB, up to which a Hugging Face table is decoded into memory


def digits(image_size: int = 0) -> Splits:
    """1,797 scanned handwritten digits, 8×8 grey, inside scikit-learn: 1,200 to train, 597 to test, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    held = load_digits()
    images = np.round(held.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), values were 0..16
    rows = np.arange(len(images))
    train, test = train_test_split(rows, train_size=1200, stratify=held.target, random_state=0)

    def make(i: np.ndarray) -> Source:
        return from_array(images[i], held.target[i], where="digits", classes=list("0123456789"),
                          image_size=image_size, hint="digits")  # fmt: skip

    return Splits(make(np.sort(train)), make(np.sort(test)))


def _stack(pictures: Iterable[Any], where: str, image_size: int, like: Source | None) -> np.ndarray:
    """PIL images to one array, of the size and channels of ``like`` where it is given. -> (N, H, W, C) uint8

    Grey if all are, else RGB; sizes as for folders. What is larger than any automatic size is reduced as it
    arrives, so that memory holds small pictures only.
    """
    if like is not None:
        image_size = like.shape[0] if like.shape[0] == like.shape[1] else image_size
    arrived: list[np.ndarray] = []  # each (h, w, 1 or 3)
    at = iter(pictures)
    with quiet():
        while True:
            try:
                if (picture := next(at, None)) is None:
                    break
                picture.load()
                size = image_size or (AUTO if min(picture.size) > AUTO else 0)
                arrived.append(to_pixels(picture, 1 if picture.mode in GREY else 3, size))
            except Exception as error:  # Pillow's decoders raise all kinds
                raise UserError(f"{where}: image {len(arrived)} cannot be read: {reason(error)}") from None
    if not arrived:
        raise UserError(f"{where} holds no images")
    channels = like.shape[2] if like else (1 if all(a.shape[2] == 1 for a in arrived) else 3)
    side, (h, w) = auto_shape([(a.shape[1], a.shape[0]) for a in arrived], image_size)
    out = np.empty((len(arrived), h, w, channels), np.uint8)
    for i, pixels in enumerate(arrived):
        out[i] = _channels(cover_array(pixels, side) if side else pixels, channels)
    return out


def _channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(h, w, 1 or 3) -> (h, w, channels)"""
    if channels == 1 and pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return pixels  # one plane spreads over three


def from_torchvision(name: str, image_size: int = 0) -> Splits:
    """A torchvision data set by its class's name, downloaded once to the cache (NEARFAR_CACHE)."""
    torchvision = require("torchvision", "vision", f"source torchvision:{shown(name)}")
    known = [n for n in torchvision.datasets.__all__ if isinstance(getattr(torchvision.datasets, n), type)]
    if name not in known:
        raise UserError(f"unknown torchvision data set {shown(name)!r}{nearest(name, known)}")
    kind = getattr(torchvision.datasets, name)
    root = Path(os.environ.get("NEARFAR_CACHE", Path.home() / ".cache" / "nearfar")) / "torchvision"
    where = f"torchvision:{name}"
    if name == "FakeData":
        parts = [kind(200, (3, 32, 32), 10), kind(100, (3, 32, 32), 10, random_offset=1000)]
    else:
        parts = [_fetch(kind, where, root, train) for train in (True, False)]
    train = _from_pairs(parts[0], where, image_size, None)
    return aligned(train, _from_pairs(parts[1], where, image_size, train), where)


def _fetch(kind: type, where: str, root: Path, train: bool) -> Any:
    """One part of a torchvision data set, from the cache or the net."""
    option = {"split": "train" if train else "test"} if kind.__name__ in _BY_SPLIT else {"train": train}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(str(root), download=True, **option)
    except TypeError:
        raise UserError(f"{where} has no training and test part to be fetched: save it as a folder or .npz") from None
    except Exception as error:
        raise UserError(
            f"{where} cannot be had: {one_line(error)}; check the connection, or place its files under {shown(root)}"
        ) from None


def _from_pairs(held: Any, where: str, image_size: int, like: Source | None) -> Source:
    """A sequence of (PIL image, class number)."""
    labels: list[Any] = []

    def pictures() -> Iterable[Image.Image]:
        for i in range(len(held)):
            picture, label = held[i]
            labels.append(label)
            yield picture

    images = _stack(pictures(), where, image_size, like)
    if not all(isinstance(v, int | np.integer) or np.ndim(v) == 0 for v in labels):
        raise UserError(f"{where}: its labels are no class numbers: save it as a folder or .npz")
    classes: Sequence[str] | None = getattr(held, "classes", None)
    return from_array(images, [int(v) for v in labels], where=where, classes=list(classes) if classes else None)


def hugging_face_parts(name: str, where: str) -> tuple[Any, dict[str, Any]]:
    """A data set of the hub (``NAME`` or ``NAME@CONFIG``), or a local folder of one. -> the library, tables by split"""
    datasets = require("datasets", "hf", f"source {where}")
    path, _, config = (name, "", "") if os.path.isdir(name) else name.partition("@")
    try:
        saved = any(os.path.isfile(os.path.join(path, f)) for f in ("dataset_info.json", "dataset_dict.json"))
        held = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, config or None)
    except Exception as error:
        raise UserError(f"{where} cannot be had: {one_line(error)}; check the name and the connection") from None
    return datasets, {"train": held} if isinstance(held, datasets.Dataset) else dict(held)


def from_hugging_face(name: str, given: Options) -> Splits:
    """A data set of the hub (``NAME`` or ``NAME@CONFIG``), or a local folder of one.

    Up to 2 GiB of pixels are decoded into memory; a larger part's rows stay in its mapped Arrow files.
    """
    where = f"hf:{shown(name)}"
    datasets, parts = hugging_face_parts(name, where)
    first = "train" if "train" in parts else next((k for k in parts if k not in _TESTS), next(iter(parts)))
    second = next((k for k in _TESTS if k in parts and k != first), None)
    features = parts[first].features
    image = next((k for k, f in features.items() if isinstance(f, datasets.Image)), None)
    label = next((k for k, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image is None:
        raise UserError(f"{where} has no image column: its columns are {', '.join(features)}")
    train = _from_rows(parts[first], image, label, where, given, None)
    test = _from_rows(parts[second], image, label, where, given, train) if second else None
    return aligned(train, test, where)


def _from_rows(part: Any, image: str, label: str | None, where: str, given: Options, like: Source | None) -> Source:
    """A Hugging Face table with an image column and, maybe, one of class labels."""
    if image not in part.features:
        raise UserError(f"{where}: a part has no column {image!r}: its columns are {', '.join(part.features)}")
    if len(part) * 3 * (given.image_size or AUTO) ** 2 > _HELD:
        if like is not None:
            side = like.shape[0] if like.shape[0] == like.shape[1] else given.image_size
            given = dataclasses.replace(given, image_size=side, channels=like.shape[2])
        return from_table(part, image, label, where, given)
    images = _stack(_pictures(part, image), where, given.image_size, like)
    if label is None or label not in part.features:
        return from_array(images, where=where)
    labels = np.array([-1 if v is None else v for v in part[label]], dtype=np.int64)  # (N,)
    if (labels == -1).all():  # how the hub marks labels that are kept back
        return from_array(images, where=where)
    return from_array(images, labels, where=where, classes=part.features[label].names)


def _pictures(part: Any, image: str) -> Iterable[Image.Image]:
    for row in part.select_columns([image]):
        if row[image] is None:
            raise ValueError("it is missing")
        yield row[image]
