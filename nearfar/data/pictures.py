"""One picture to pixels: upright, over white, grey or RGB, 8 bits, covering a square."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, features

from nearfar.data.limits import PIXELS
from nearfar.errors import one_line

GREY = {"1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
AUTO = 96  # largest side that is chosen unasked
# told by content, whatever the name says; no others, of which Pillow hands some to programs (EPS to Ghostscript)
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_LARGE = 2**24  # pixels above which pictures are decoded one at a time, so that memory holds one
_alone = threading.Lock()
_TURN = Image.Transpose
# EXIF orientation -> what sets the picture upright
_UPRIGHT = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip
_LOCK = threading.Lock()
# a filter like none that anybody else has set, so that it is ours alone that is taken away again
_HUSH = ("ignore", None, Warning, re.compile(r"PIL\b(?#nearfar)"), 0)
_quiet = 0


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings for as long as anybody is within.

    Warning filters belong to the whole process: decoders on threads must not swap them, or they would restore one
    another's. So whoever starts decoders holds this around them; the first puts one filter in, the last takes it out.
    """
    global _quiet
    with _LOCK:
        _quiet += 1
        if _HUSH not in warnings.filters:
            warnings.filters.insert(0, _HUSH)
    try:
        yield
    finally:
        with _LOCK:
            _quiet -= 1
            if not _quiet and _HUSH in warnings.filters:
                warnings.filters.remove(_HUSH)


@functools.cache
def rule() -> str:
    """What decides pixels beside file and shape: this file's own text, and the decoders' versions."""
    text = inspect.getsource(inspect.getmodule(rule))
    libraries = [features.version(name) for name in ("libjpeg_turbo", "jpg", "zlib", "webp", "libtiff")]
    return f"{hashlib.sha256(text.encode()).hexdigest()[:12]} Pillow {PIL.__version__} {libraries}"


def reason(error: BaseException) -> str:
    """Why a picture cannot be read, in one line."""
    text = one_line(error)
    return "not an image" if text.startswith("cannot identify") else text


def auto_shape(sizes: Sequence[tuple[int, int]] | np.ndarray, image_size: int) -> tuple[int, tuple[int, int]]:
    """The side to resize to (0: none is needed) and the (H, W) of what comes out, from (width, height) of each."""
    if image_size:
        return image_size, (image_size, image_size)
    sizes = np.asarray(sizes)  # (N, 2)
    if (sizes == sizes[0]).all() and sizes[0].max() <= AUTO:
        return 0, (int(sizes[0, 1]), int(sizes[0, 0]))
    side = int(min(AUTO, np.median(sizes.min(1))))
    return side, (side, side)


@contextmanager
def opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """A picture of which the header has been read. Call within ``quiet``.

    Raises whatever Pillow's readers do; ``ValueError`` where it is no file, or larger than ``limits.PIXELS``.
    """
    if isinstance(file, Path) and not stat.S_ISREG(os.stat(file).st_mode):
        raise ValueError("not a file")  # opening a pipe would wait for ever
    try:
        picture = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {PIXELS:,} pixels") from None
    with picture:
        if math.prod(picture.size) > PIXELS:
            raise ValueError(f"it has more than {PIXELS:,} pixels")
        yield picture


def peek(path: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) upright and whether it is grey, from the header alone."""
    with opened(path) as picture:
        late = picture.format == "PNG" and not {"exif", "xmp", "XML:com.adobe.xmp"} & picture.info.keys()
        turned = not late and _orientation(picture) >= 5  # asking a PNG without EXIF would decode all of it
        return picture.size[::-1] if turned else picture.size, picture.mode in GREY


def decode(file: Path | BinaryIO, channels: int, size: int) -> np.ndarray:
    """One image file; size 0 keeps its own. -> (h, w, channels) uint8. Call within ``quiet``."""
    with opened(file) as picture:
        if size:
            picture.draft(None, (2 * size, 2 * size))  # JPEG: decode at a fraction where that is enough
        with _alone if math.prod(picture.size) > _LARGE else nullcontext():
            picture.load()
            return to_pixels(picture, channels, size)


def to_pixels(picture: Image.Image, channels: int, size: int) -> np.ndarray:
    """A loaded picture to 1 or 3 channels. -> (h, w, channels) uint8, (size, size, channels) where size is given"""
    turn = _UPRIGHT.get(_orientation(picture))
    if turn is not None:  # a flip's number is 0
        info, picture = picture.info, picture.transpose(turn)
        picture.info.update({k: v for k, v in info.items() if k == "transparency"})
    picture = _eight_bits(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255,) * 4), picture)
    mode = "L" if channels == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)  # which would copy it, too
    pixels = np.asarray(cover(picture, size) if size else picture)
    return pixels[..., None] if channels == 1 else pixels  # (h, w, channels)


def _orientation(picture: Image.Image) -> int:
    try:
        found = picture.getexif().get(0x0112, 1)
    except Exception:  # broken metadata beside good pixels
        return 1
    return found if isinstance(found, int) else 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey by /257; floats as 0..1 where all lie there, else as 0..255."""
    if picture.mode == "F":
        values = np.asarray(picture)
        if not np.isfinite(values).all():  # before the cast, at which NumPy warns of some NaN
            raise ValueError("holds NaN or infinite values")
        values = values.astype(np.float64)
        scale = 255.0 if values.min() >= 0 and values.max() <= 1 else 1.0
    elif picture.mode.startswith("I"):
        values, scale = np.asarray(picture, dtype=np.float64), 1 / 257
    else:
        return picture
    return Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8))  # (h, w)


def cover(picture: Image.Image, size: int) -> Image.Image:
    """Resize, antialiased, so that the picture covers a square, and cut its middle out."""
    w, h = picture.size
    if (w, h) == (size, size):
        return picture
    side = min(w, h)
    left, top = (w - side) / 2, (h - side) / 2
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def cover_array(image: np.ndarray, size: int) -> np.ndarray:
    """``cover`` for an array of any channels, uint8 or as float32. (H, W, C) -> (size, size, C)"""
    planes = []
    for c in range(image.shape[2]):
        plane = np.ascontiguousarray(image[:, :, c])  # (H, W)
        picture = Image.fromarray(plane if plane.dtype == np.uint8 else plane.astype(np.float32))
        planes.append(np.asarray(cover(picture, size)))
    return np.stack(planes, -1)
