"""Sources from arrays, .npy and .npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nearfar.data import npz
from nearfar.data.pictures import cover_array
from nearfar.data.source import Numbers, Source, Splits, aligned, encode_labels, shown
from nearfar.errors import UserError, one_line

_IMAGES = ("x", "X", "images", "data", "arr_0")
_LABELS = ("y", "labels", "label", "target")
_CHUNK = 2**24  # values looked at at a time
_LARGEST = float(np.finfo(np.float32).max)


def from_array(
    x: object, y: object = None, *, where: str = "array", classes: Sequence[str] | None = None,
    image_size: int = 0, hint: str | None = None,
) -> Source:  # fmt: skip
    """A source over images in memory (or memory-mapped). x (N, H, W) or (N, H, W, C); y (N,) or None

    >>> from_array(np.zeros((10, 8, 8), np.uint8), [0, 1] * 5).classes
    ('0', '1')
    """
    where = shown(where)
    images = _check(_as_array(x, where), where)
    low, high = _range(images, where)
    if image_size and images.shape[1:3] != (image_size, image_size):
        images = _resized(images, image_size, low, high)
    n, shape = len(images), tuple(int(v) for v in images.shape[1:])
    byte = images.dtype == np.uint8

    def read(index: np.ndarray) -> np.ndarray:
        return images[index] if byte else images[index].astype(np.float32)  # (B, H, W, C)

    labels, names = (None, None) if y is None else encode_labels(y, n, where, classes)
    return Source(where, shape, read, Numbers(n), labels, names, low, high, hint=hint)


def _as_array(x: object, where: str) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    try:
        return np.asarray(x)
    except Exception as error:  # ragged lists, tensors of another device
        if isinstance(x, list | tuple) and len({np.shape(v) for v in x}) > 1:
            raise UserError(f"{where}: the images differ in shape: resize them to one") from None
        raise UserError(f"{where}: {type(x).__name__} cannot become an array: {one_line(error)}") from None


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
    if a in (1, 3, 4) and b > 4 and (b == c or c > 32):
        raise UserError(f"{where}: shape {x.shape} looks channels-first: transpose(0, 2, 3, 1) to (N, H, W, C)")
    return x.astype(np.uint8) * np.uint8(255) if x.dtype.kind == "b" else x


def _range(x: np.ndarray, where: str) -> tuple[float, float]:
    """The values that stand for 0 and 1; refuses NaN, infinity and what float32 cannot hold. Reads in chunks."""
    if x.dtype.kind == "u" and x.dtype.itemsize <= 2:
        return 0.0, 255.0 if x.dtype.itemsize == 1 else 65535.0
    low, high, bad_values, bad_images, first = np.inf, -np.inf, 0, 0, -1
    step = max(1, _CHUNK // int(np.prod(x.shape[1:])))
    for at in range(0, len(x), step):
        chunk = x[at : at + step]
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
    if max(-low, high) > _LARGEST:
        raise UserError(f"{where}: values from {low:.3g} to {high:.3g} are too large for float32: scale them")
    if x.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    if x.dtype.kind in "iu" and low >= 0 and high <= 255 and high > 1:
        return 0.0, 255.0
    return (low, high) if high > low else (low, low + 1.0)


def _resized(images: np.ndarray, size: int, low: float, high: float) -> np.ndarray:
    """Every image covering a square, floats kept within their range. (N, H, W, C) -> (N, size, size, C)"""
    kind = np.uint8 if images.dtype == np.uint8 else np.float32
    out = np.empty((len(images), size, size, images.shape[3]), kind)
    for i, image in enumerate(images):
        out[i] = np.clip(cover_array(image, size), low, high)  # bicubic overshoots at edges
    return out


def from_npy(path: Path, image_size: int = 0) -> Splits:
    """An .npy of images, memory-mapped."""
    try:
        with npz.unwarned():
            x = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # whatever a damaged or hostile file makes NumPy raise
        raise UserError(f"{shown(path)} cannot be read as .npy: {shown(npz.unpickled(error))}") from None
    if not isinstance(x, np.ndarray):
        x.close()
        raise UserError(f"{shown(path)} is an .npz by its content: rename it")
    return Splits(from_array(x, where=str(path), image_size=image_size))


def _members(path: Path) -> dict[str, np.ndarray]:
    """What an .npz holds under the names that are looked for; nothing else of it is read."""
    wanted = {*_IMAGES, *_LABELS, "x_train", "y_train", "x_test", "y_test", "classes"}
    try:
        held = npz.read(path, wanted)
    except (OSError, npz.Unreadable) as error:
        raise UserError(f"{shown(path)} cannot be read as .npz: {shown(one_line(error))}") from None
    parts = {key: part for key, part in held.items() if part is not None}
    if not {"x_train", *_IMAGES} & parts.keys():
        held_names = shown(", ".join(held)) or "nothing"
        raise UserError(f"{shown(path)} holds {held_names}: name the images x (and the labels y)")
    return parts


def from_npz(path: Path, image_size: int = 0) -> Splits:
    """An .npz with x_train, y_train, x_test, y_test, or x and y; ``classes`` may name the labels."""
    parts = _members(path)
    classes = [str(c) for c in np.ravel(parts["classes"]).astype(str)] if "classes" in parts else None

    def make(x: np.ndarray, y: np.ndarray | None) -> Source:
        return from_array(x, y, where=str(path), classes=classes, image_size=image_size)

    if "x_train" in parts:
        train = make(parts["x_train"], parts.get("y_train"))
        test = make(parts["x_test"], parts.get("y_test")) if "x_test" in parts else None
        return aligned(train, test, shown(path))
    images = next(parts[k] for k in _IMAGES if k in parts)
    return Splits(make(images, next((parts[k] for k in _LABELS if k in parts), None)))
