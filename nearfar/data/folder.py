"""Sources from folders of images: decoded once, bad ones named and left out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nearfar.data.pictures import auto_shape, decode, peek, quiet, reason
from nearfar.data.source import Skipped, Source, Splits, aligned, encode_labels, shown
from nearfar.errors import UserError, one_line

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
_SPLITS = ("test", "val", "valid", "validation")
Progress = Callable[[int, int], None]


def from_folder(
    folder: Path, *, image_size: int = 0, channels: int = 0, max_bad: float = 0.05,
    progress: Progress | None = None, cache_gb: float = 4.0,
) -> Splits:  # fmt: skip
    """Flat, one subfolder a class, or ``train/`` beside ``test/`` (or ``val/``) with either inside."""
    try:
        subfolders = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "."}
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be listed: {one_line(error)}") from None
    other = next((name for name in _SPLITS if name in subfolders), None)

    def read(part: Path, size: int, planes: int) -> Source:
        return _one(part, size, planes, max_bad, progress, cache_gb)

    if "train" not in subfolders or other is None:
        return Splits(read(folder, image_size, channels))
    train = read(subfolders["train"], image_size, channels)
    size = train.shape[0] if train.shape[0] == train.shape[1] else image_size
    return aligned(train, read(subfolders[other], size, train.shape[2]), shown(subfolders[other]))


def _walk(folder: Path) -> Iterator[str]:
    """Image files below a folder, as sorted relative paths; hidden ones and loops of links are passed over."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{shown(error.filename)} cannot be listed: {error.strerror}: allow it or move it away")

    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield os.path.relpath(os.path.join(root, name), folder)


def _one(
    folder: Path, image_size: int, channels: int, max_bad: float, progress: Progress | None, cache_gb: float
) -> Source:
    """One folder's images, flat or by class, every one decoded once."""
    if channels not in (0, 1, 3):
        raise UserError(f"{shown(folder)}: image files have 1 or 3 channels, the run wants {channels}: give an .npz")
    files = list(_walk(folder))
    if not files:
        empty = not any(folder.iterdir())
        raise UserError(f"{shown(folder)} is empty: give a folder of images" if empty else
                        f"{shown(folder)} holds no images ({' '.join(sorted(SUFFIXES))})")  # fmt: skip
    with quiet(), ThreadPoolExecutor(_workers()) as pool:
        peeks = dict(zip(files, pool.map(lambda f: _attempt(peek, folder / f), files)))
        bad = {f: p for f, p in peeks.items() if isinstance(p, str)}
        _fail_if_too_many(folder, bad, len(files), max_bad)
        good = [f for f in files if f not in bad]
        channels = channels or (1 if all(peeks[f][1] for f in good) else 3)
        size, (h, w) = auto_shape([peeks[f][0] for f in good], image_size)
        shape = (h, w, channels)
        held, kept = _decode_all(pool, folder, good, bad, shape, size, progress, cache_gb)
    _fail_if_too_many(folder, bad, len(files), max_bad)
    skipped = tuple(Skipped(shown(f), bad[f]) for f in files if f in bad)
    read = _from_files([folder / f for f in kept], shape, size) if held is None else held.__getitem__
    labels, classes = None, None
    if all(os.sep in f for f in kept):
        labels, classes = encode_labels([shown(f.split(os.sep)[0]) for f in kept], len(kept), shown(folder))
    return Source(shown(folder), shape, read, [shown(f) for f in kept], labels, classes, skipped=skipped)


def _workers() -> int:
    return min(8, (os.cpu_count() or 1) + 1)


def _attempt(job: Callable, *given: object) -> object:
    """What a job gives, or, as text, why it cannot be done."""
    try:
        return job(*given)
    except Exception as error:  # Pillow's decoders raise all kinds
        return reason(error)


def _from_files(
    paths: list[Path], shape: tuple[int, int, int], size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A reader that decodes on demand, for what does not fit in memory."""

    def read(index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), *shape), np.uint8)  # (B, H, W, C)
        wanted = [paths[i] for i in index]
        with quiet(), ThreadPoolExecutor(_workers()) as pool:
            for i, pixels in enumerate(pool.map(lambda p: _attempt(decode, p, shape[2], size), wanted)):
                if isinstance(pixels, str) or pixels.shape != shape:
                    why = pixels if isinstance(pixels, str) else "its size has changed"
                    raise UserError(f"{shown(wanted[i])} cannot be read any more: {why}")
                out[i] = pixels
        return out

    return read


def _decode_all(
    pool: ThreadPoolExecutor, folder: Path, good: list[str], bad: dict[str, str], shape: tuple[int, int, int],
    size: int, progress: Progress | None, cache_gb: float,
) -> tuple[np.ndarray | None, list[str]]:  # fmt: skip
    """Decode every image once, in order; what cannot be decoded goes to ``bad``. -> pixels or None, names"""
    fits = len(good) * math.prod(shape) <= cache_gb * 2**30
    held = np.empty((len(good), *shape), np.uint8) if fits else None
    kept: list[str] = []
    for at in range(0, len(good), 256):  # a few at a time, so that memory stays flat
        names = good[at : at + 256]
        for name, pixels in zip(names, pool.map(lambda f: _attempt(decode, folder / f, shape[2], size), names)):
            if isinstance(pixels, str):
                bad[name] = pixels
            elif pixels.shape != shape:
                bad[name] = f"its pixels are {pixels.shape[1]}×{pixels.shape[0]}, its header says otherwise"
            else:
                if held is not None:
                    held[len(kept)] = pixels
                kept.append(name)
        if progress:
            progress(at + len(names), len(good))
    return (None if held is None else held[: len(kept)]), kept


def _fail_if_too_many(folder: Path, bad: dict[str, str], n: int, max_bad: float) -> None:
    if not bad or (len(bad) < n and len(bad) <= max_bad * n):
        return
    name, why = min(bad.items())
    if len(bad) == n:
        raise UserError(f"{shown(folder)}: none of {n} images can be read, the first {shown(name)}: {why}")
    raise UserError(
        f"{shown(folder)}: {len(bad)} of {n} images cannot be read ({100 * len(bad) / n:.3g}% > {100 * max_bad:.3g}%), "
        f"the first {shown(name)}: {why}; remove them or pass --max-bad {math.ceil(100 * len(bad) / n) / 100:g}"
    )
