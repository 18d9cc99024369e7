"""Large pictures cut into squares, so that what is small in them is seen at its own size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nearfar.data.pictures import decode, peek, quiet, reason
from nearfar.data.source import Skipped, Source, shown
from nearfar.errors import UserError

_MOST = 4 * 2**30  # bytes of patches that are held


def shrunk(pixels: np.ndarray, long_side: int) -> np.ndarray:
    """A picture whose longer side is ``long_side`` pixels, antialiased; 0 keeps its size. (H, W, C) -> (h, w, C)"""
    h, w, c = pixels.shape
    if not long_side or max(h, w) == long_side:
        return pixels
    size = size_at((w, h), long_side)
    picture = Image.fromarray(pixels[..., 0] if c == 1 else pixels)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).reshape(size[1], size[0], c)


def size_at(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """(width, height) where the longer side becomes ``long_side``; 0 keeps it.

    >>> size_at((640, 480), 320), size_at((640, 480), 0)
    ((320, 240), (640, 480))
    """
    share = long_side / max(size) if long_side else 1.0
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def offsets(length: int, patch: int) -> list[int]:
    """Where patches begin along a side: as few as cover it, evenly spaced, overlapping where they must.

    >>> offsets(320, 96), offsets(96, 96)
    ([0, 75, 149, 224], [0])
    """
    count = math.ceil(length / patch)
    return [round(i * (length - patch) / max(count - 1, 1)) for i in range(count)]


def cut(pixels: np.ndarray, patch: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(x, y, square) over a picture, row by row; a side that is shorter than a patch is mirrored at its end."""
    h, w, _ = pixels.shape
    if h < patch or w < patch:
        pixels = np.pad(pixels, ((0, max(0, patch - h)), (0, max(0, patch - w)), (0, 0)), "symmetric")
        h, w = pixels.shape[:2]
    for y in offsets(h, patch):
        for x in offsets(w, patch):
            yield x, y, pixels[y : y + patch, x : x + patch]


def from_pictures(
    paths: Sequence[Path], spec: str, *, patch: int, long_side: int = 0, channels: int = 0, max_bad: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
) -> Source:  # fmt: skip
    """A source of the patches of pictures, without labels.

    Args:
        paths: image files.
        patch: pixels a side of the squares.
        long_side: shrink (or enlarge) pictures to this before they are cut; 0: as they are.
        channels: 1 or 3; 0: grey only where all pictures are.

    Raises where too many cannot be read, or where the patches would take more than 4 GiB.
    """
    if patch < 8:
        raise UserError(f"patch {patch}: give 8 pixels or more")
    parts, names, skipped, bytes_held = [], [], [], 0
    with quiet():
        if not channels:
            channels = 1 if all(_grey(p) for p in paths) else 3
        for i, path in enumerate(paths):
            if progress:
                progress(i, len(paths))
            try:
                pixels = shrunk(decode(path, channels, 0), long_side)
            except Exception as error:  # Pillow's decoders raise all kinds
                skipped.append(Skipped(shown(path.name), reason(error)))
                continue
            for x, y, square in cut(pixels, patch):
                parts.append(np.ascontiguousarray(square))
                names.append(f"{shown(path.name)} at {x},{y}")
                bytes_held += square.nbytes
            if bytes_held > _MOST:
                raise UserError(f"{spec}: patches of {patch} take more than {_MOST >> 30} GiB after {i + 1} of "
                                f"{len(paths)} pictures: pass a smaller --long-side")  # fmt: skip
    if progress:
        progress(len(paths), len(paths))
    if not parts or len(skipped) > max_bad * len(paths):
        raise UserError(f"{spec}: {len(skipped)} of {len(paths)} pictures cannot be read"
                        + (f", the first {skipped[0].name}: {skipped[0].reason}" if skipped else ""))  # fmt: skip
    held = np.stack(parts)  # (N, patch, patch, C)
    return Source(spec, held.shape[1:], held.__getitem__, names, skipped=tuple(skipped))


def _grey(path: Path) -> bool:
    try:
        return peek(path)[1]
    except Exception:  # said when it is decoded
        return True
