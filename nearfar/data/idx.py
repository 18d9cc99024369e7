"""IDX files: the MNIST family's format, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np

from nearfar.data.arrays import from_array
from nearfar.data.limits import check_unpacked
from nearfar.data.source import Source, Splits, aligned, shown
from nearfar.errors import UserError, one_line

_RATIO = 1032  # gzip's largest expansion
_NAME = re.compile(r"images[-.]idx[34]-ubyte(\.gz)?$")
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
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        most = path.stat().st_size * (_RATIO if zipped else 1)
        with gzip.open(path) if zipped else open(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not 1 <= head[3] <= 4:
                raise UserError(f"{shown(path)} is no IDX file: its first bytes are {head.hex(' ') or 'none'}")
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise UserError(f"{shown(path)} is damaged: it ends within its header: fetch it again")
            shape = tuple(int(v) for v in np.frombuffer(sizes, ">u4"))
            kind = np.dtype(_TYPES[head[2]])
            want = math.prod(shape) * kind.itemsize
            if zipped and want <= most:
                check_unpacked(want, path.stat().st_size, shown(path))
            raw = file.read(min(want, most) + 1)  # never more than is promised, nor than can be there
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{shown(path)} cannot be read: {one_line(error)}: fetch it again") from None
    if want != len(raw):
        have = "more" if len(raw) > want else len(raw)
        raise UserError(f"{shown(path)} is damaged: {have} bytes of data where {shape} needs {want}: fetch it again")
    return np.frombuffer(raw, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)


def _sibling(path: Path, *changes: tuple[str, str]) -> Path | None:
    """The file beside it whose name differs by these changes, packed or not; None where nothing changes."""
    name = path.name
    for old, new in changes:
        name = name.replace(old, new)
    if name == path.name:
        return None
    stems = {name, name.removesuffix(".gz"), name.removesuffix(".gz") + ".gz"}
    return next((p for s in sorted(stems) if (p := path.with_name(s)) != path and p.is_file()), None)


def _one(path: Path, image_size: int) -> Source:
    images = read_idx(path)
    if images.ndim < 3:
        raise UserError(f"{shown(path)} holds {images.shape}, no images: give the images file, not the labels")
    names = _sibling(path, ("images", "labels"), ("idx3", "idx1"), ("idx4", "idx1"))
    labels = read_idx(names) if names else None
    if labels is not None and len(labels) != len(images):
        raise UserError(f"{shown(names)}: {len(labels)} labels for {len(images)} images: give one label an image")
    classes = [str(i) for i in range(int(labels.max()) + 1)] if labels is not None and len(labels) else None
    return from_array(images, labels, where=str(path), classes=classes, image_size=image_size)


def from_idx(path: Path, image_size: int = 0) -> Splits:
    """An images file; labels, and the t10k files where this is the train one, are found beside it."""
    test = _sibling(path, ("train", "t10k")) or _sibling(path, ("train", "test"))
    train = _one(path, image_size)
    return aligned(train, _one(test, image_size) if test else None, str(path))


def find_images(folder: Path) -> Path | None:
    """The training images file of a folder of IDX files, if it is one."""
    found = sorted(p for p in folder.iterdir() if _NAME.search(p.name) and p.is_file())
    found = [p for p in found if "train" in p.name] or found
    if len({p.name.removesuffix(".gz") for p in found}) > 1:
        raise UserError(f"{shown(folder)} holds {found[0].name} and {found[-1].name}: give one of the files")
    return found[0] if found else None
