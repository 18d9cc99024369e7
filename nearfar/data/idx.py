"""IDX files: the MNIST family's format, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from nearfar.data.arrays import from_array
from nearfar.data.source import Source, Splits
from nearfar.errors import UserError, one_line

# third byte of the magic number -> big-endian type
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def looks_like_idx(path: Path) -> bool:
    """By its first four bytes: two zeros, a known type, one to four dimensions."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return "idx" in path.name
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in _TYPES and 1 <= head[3] <= 4


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file; one line where it is cut short, too long or no IDX."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES or len(raw) < 4 + 4 * raw[3]:
        raise UserError(f"{path} is no IDX file: its first bytes are {raw[:4].hex(' ')}")
    shape = tuple(int(v) for v in np.frombuffer(raw, ">u4", raw[3], 4))
    kind, start = np.dtype(_TYPES[raw[2]]), 4 + 4 * raw[3]
    want, have = math.prod(shape) * kind.itemsize, len(raw) - start
    if want != have:
        raise UserError(f"{path} is damaged: {have} bytes of data where {shape} needs {want}")
    return np.frombuffer(raw, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def _sibling(path: Path, *changes: tuple[str, str]) -> Path | None:
    name = path.name
    for old, new in changes:
        name = name.replace(old, new)
    stems = {name, name.removesuffix(".gz"), name.removesuffix(".gz") + ".gz"}
    return next((p for s in sorted(stems) if (p := path.with_name(s)) != path and p.is_file()), None)


def _one(path: Path, image_size: int) -> Source:
    images = read_idx(path)
    if images.ndim < 3:
        raise UserError(f"{path} holds {images.shape}, no images: give the images file, labels are found beside it")
    names = _sibling(path, ("images", "labels"), ("idx3", "idx1"), ("idx4", "idx1"))
    labels = read_idx(names) if names else None
    if labels is not None and len(labels) != len(images):
        raise UserError(f"{names}: {len(labels)} labels for {len(images)} images: give one label an image")
    classes = [str(i) for i in range(int(labels.max()) + 1)] if labels is not None and len(labels) else None
    return from_array(images, labels, where=str(path), classes=classes, image_size=image_size)


def from_idx(path: Path, image_size: int = 0) -> Splits:
    """An images file; labels, and the t10k files where this is the train one, are found beside it."""
    test = _sibling(path, ("train", "t10k")) or _sibling(path, ("train", "test"))
    return Splits(_one(path, image_size), _one(test, image_size) if test and "train" in path.name else None)


def find_images(folder: Path) -> Path | None:
    """The training images file of a folder of IDX files, if it is one."""
    found = sorted(p for p in folder.iterdir() if "images" in p.name and "idx" in p.name and p.is_file())
    return next((p for p in found if "train" in p.name), found[0] if found else None)
