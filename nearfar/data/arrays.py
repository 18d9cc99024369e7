"""Sources from arrays, .npy and .npz."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nearfar.data.source import Numbers, Source, Splits, encode_labels
from nearfar.errors import UserError, one_line

_IMAGES = ("x", "X", "images", "data", "arr_0")
_LABELS = ("y", "labels", "label", "target")


def from_array(
    x: object, y: object = None, *, where: str = "array", classes: Sequence[str] | None = None,
    image_size: int = 0, hint: str | None = None,
) -> Source:  # fmt: skip
    """A source over images in memory (or memory-mapped). x (N, H, W) or (N, H, W, C); y (N,) or None"""
    images = _check(np.asarray(x) if not isinstance(x, np.ndarray) else x, where)
    low, high = _range(images, where)
    if image_size and images.shape[1:3] != (image_size, image_size):
        images = np.stack([_resize(image, image_size) for image in images])
    n, shape = len(images), images.shape[1:]
    byte = images.dtype == np.uint8

    def read(index: np.ndarray) -> np.ndarray:
        return images[index] if byte else images[index].astype(np.float32)

    labels, names = (None, None) if y is None else encode_labels(y, n, where, classes)
    return Source(where, shape, read, Numbers(n), labels, names, low, high, hint=hint)


def _check(x: np.ndarray, where: str) -> np.ndarray:
    """(N, H, W, C) of a kind that can be an image, or one line that says why not."""
    if x.dtype.kind not in "buif":
        raise UserError(f"{where}: an array of {x.dtype} holds no images: give uint8, uint16 or floats")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4:
        raise UserError(f"{where}: an array of shape {x.shape}: give images as (N, H, W) or (N, H, W, C)")
    if 0 in x.shape:
        raise UserError(f"{where}: an array of shape {x.shape} holds no images")
    n, a, b, c = x.shape
    if a in (1, 3, 4) and b == c and b > 4:
        raise UserError(f"{where}: shape {x.shape} looks channels-first: transpose(0, 2, 3, 1) to (N, H, W, C)")
    return x.astype(np.uint8) * np.uint8(255) if x.dtype.kind == "b" else x


def _range(x: np.ndarray, where: str) -> tuple[float, float]:
    """The values that stand for 0 and 1; refuses NaN and infinity. Reads floats a chunk at a time."""
    if x.dtype == np.uint8:
        return 0.0, 255.0
    if x.dtype == np.uint16:
        return 0.0, 65535.0
    low, high, bad_values, bad_images, first = np.inf, -np.inf, 0, 0, -1
    for at in range(0, len(x), 1024):
        chunk = x[at : at + 1024]
        fine = np.isfinite(chunk)
        if not fine.all():
            rows = np.flatnonzero(~fine.all((1, 2, 3)))
            first = at + int(rows[0]) if first < 0 else first
            bad_values, bad_images = bad_values + int((~fine).sum()), bad_images + len(rows)
        elif not bad_images:
            low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
    if bad_images:
        raise UserError(
            f"{where}: {bad_values} values in {bad_images} images are NaN or infinite, the first in image "
            f"{first}: clean or drop them"
        )
    if x.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    if x.dtype.kind in "iu" and low >= 0 and high <= 255 and high > 1:
        return 0.0, 255.0
    return (low, high) if high > low else (low, low + 1.0)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Cover a square and cut its middle out. (H, W, C) -> (size, size, C)"""
    planes = []
    for c in range(image.shape[2]):
        plane = image[:, :, c]
        picture = Image.fromarray(plane if plane.dtype == np.uint8 else plane.astype(np.float32))
        planes.append(np.asarray(cover(picture, size)))
    return np.stack(planes, -1)


def cover(picture: Image.Image, size: int) -> Image.Image:
    """Resize, antialiased, so that the picture covers a square, and cut its middle out."""
    w, h = picture.size
    if (w, h) == (size, size):
        return picture
    side = min(w, h)
    left, top = (w - side) / 2, (h - side) / 2
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def from_npy(path: Path, image_size: int = 0) -> Splits:
    """An .npy of images, memory-mapped."""
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as .npy: {one_line(error)}") from None
    return Splits(from_array(x, where=str(path), image_size=image_size))


def from_npz(path: Path, image_size: int = 0) -> Splits:
    """An .npz with x_train, y_train, x_test, y_test, or x and y; ``classes`` may name the labels."""
    try:
        with np.load(path, allow_pickle=False) as held:
            parts = {key: held[key] for key in held.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as .npz: {one_line(error)}") from None
    classes = [str(c) for c in parts["classes"]] if "classes" in parts else None
    make = lambda x, y: from_array(  # noqa: E731
        x, y, where=str(path), classes=classes, image_size=image_size
    )
    if "x_train" in parts:
        train = make(parts["x_train"], parts.get("y_train"))
        return Splits(train, make(parts["x_test"], parts.get("y_test")) if "x_test" in parts else None)
    images = next((parts[k] for k in _IMAGES if k in parts), None)
    if images is None:
        raise UserError(f"{path} holds {', '.join(parts) or 'nothing'}: name the images x (and the labels y)")
    return Splits(make(images, next((parts[k] for k in _LABELS if k in parts), None)))
