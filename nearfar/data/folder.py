"""Sources from folders of images: decoded once, bad ones named and left out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nearfar.data.arrays import cover
from nearfar.data.source import Skipped, Source, Splits, encode_labels
from nearfar.errors import UserError, one_line

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
_GREY = {"1", "L", "I", "I;16", "I;16B", "I;16L", "F"}
_SPLITS = ("test", "val", "valid", "validation")
_AUTO = 96  # largest side that is chosen unasked
Progress = Callable[[int, int], None]


def from_folder(
    folder: Path, *, image_size: int = 0, channels: int = 0, max_bad: float = 0.05,
    progress: Progress | None = None, cache_gb: float = 4.0,
) -> Splits:  # fmt: skip
    """Flat, one subfolder a class, or ``train/`` beside ``test/`` (or ``val/``) with either inside."""
    subfolders = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "."}
    other = next((name for name in _SPLITS if name in subfolders), None)
    read = lambda path, size, planes: _one(path, size, planes, max_bad, progress, cache_gb)  # noqa: E731
    if "train" not in subfolders or other is None:
        return Splits(read(folder, image_size, channels))
    train = read(subfolders["train"], image_size, channels)
    size = train.shape[0] if train.shape[0] == train.shape[1] else image_size
    test = read(subfolders[other], size, train.shape[2])
    return Splits(train, _same_classes(train, test, f"{folder}/{subfolders[other].name}"))


def _same_classes(train: Source, test: Source, where: str) -> Source:
    """The test part with the training part's class numbers."""
    if train.classes is None or test.classes is None:
        return test
    new = [c for c in test.classes if c not in train.classes]
    if new:
        raise UserError(f"{where}: class {new[0]!r} is not among the training classes")
    to = np.array([train.classes.index(c) for c in test.classes])
    from dataclasses import replace

    return replace(test, labels=to[test.labels], classes=train.classes)


def _walk(folder: Path) -> Iterator[str]:
    """Image files below a folder, as sorted relative paths; hidden ones and loops of links are passed over."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield os.path.relpath(os.path.join(root, name), folder)


def decode(path: Path, channels: int, size: int) -> np.ndarray:
    """One image file, upright, over white where it is transparent. -> (h, w, channels) uint8"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as opened:
            if size:
                opened.draft(None, (2 * size, 2 * size))  # JPEG: decode at a fraction where that is enough
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits and more to 8
        wide = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if wide.max() > 255 else 255.0
        picture = Image.fromarray((wide.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255,) * 4), picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(cover(picture, size) if size else picture)
    return pixels[..., None] if channels == 1 else pixels  # (h, w, channels)


def _peek(path: Path) -> tuple[tuple[int, int], bool] | str:
    """(width, height) upright and whether it is grey, from the header; the reason where it is unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                size = picture.size if picture.getexif().get(0x0112, 1) < 5 else picture.size[::-1]
                return size, picture.mode in _GREY
    except Exception as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    text = one_line(error)
    return "not an image" if text.startswith("cannot identify") else text


def _one(
    folder: Path, image_size: int, channels: int, max_bad: float, progress: Progress | None, cache_gb: float
) -> Source:
    if channels not in (0, 1, 3):
        raise UserError(f"{folder}: images in files have 1 or 3 channels, the run wants {channels}: give an .npz")
    files = list(_walk(folder))
    if not files:
        empty = not any(folder.iterdir())
        raise UserError(f"{folder} is empty: give a folder of images" if empty else
                        f"{folder} holds no images ({' '.join(sorted(SUFFIXES))})")  # fmt: skip
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        peeks = dict(zip(files, pool.map(lambda f: _peek(folder / f), files)))
        bad = {f: p for f, p in peeks.items() if isinstance(p, str)}
        _fail_if_too_many(folder, bad, len(files), max_bad)
        good = [f for f in files if f not in bad]
        channels = channels or (1 if all(peeks[f][1] for f in good) else 3)
        size, shape = _shape([peeks[f][0] for f in good], image_size)
        held, kept = _decode_all(pool, folder, good, bad, (*shape, channels), size, progress, cache_gb)
    _fail_if_too_many(folder, bad, len(files), max_bad)
    skipped = tuple(Skipped(f, bad[f]) for f in files if f in bad)
    read = (lambda i: held[i]) if held is not None else (
        lambda i: np.stack([decode(folder / kept[j], channels, size) for j in i]))  # fmt: skip
    labels, classes = None, None
    if all(os.sep in f for f in kept):
        labels, classes = encode_labels([f.split(os.sep)[0] for f in kept], len(kept), str(folder))
    return Source(str(folder), (*shape, channels), read, kept, labels, classes, skipped=skipped)


def _shape(sizes: list[tuple[int, int]], image_size: int) -> tuple[int, tuple[int, int]]:
    """The side to resize to (0: none is needed) and (H, W) of what comes out."""
    if image_size:
        return image_size, (image_size, image_size)
    if len(set(sizes)) == 1 and max(sizes[0]) <= _AUTO:
        return 0, sizes[0][::-1]
    side = int(min(_AUTO, np.median([min(s) for s in sizes])))
    return side, (side, side)


def _decode_all(
    pool: ThreadPoolExecutor, folder: Path, good: list[str], bad: dict[str, str], shape: tuple[int, int, int],
    size: int, progress: Progress | None, cache_gb: float,
) -> tuple[np.ndarray | None, list[str]]:  # fmt: skip
    """Decode every image once, in order; what cannot be decoded goes to ``bad``. -> pixels or None, names"""
    fits = len(good) * int(np.prod(shape)) <= cache_gb * 2**30
    held = np.empty((len(good), *shape), np.uint8) if fits else None

    def attempt(name: str) -> np.ndarray | str:
        try:
            return decode(folder / name, shape[2], size)
        except Exception as error:
            return _reason(error)

    kept: list[str] = []
    done = 0
    for at in range(0, len(good), 256):  # a few at a time, so that memory stays flat
        names = good[at : at + 256]
        for name, pixels in zip(names, pool.map(attempt, names)):
            if isinstance(pixels, str):
                bad[name] = pixels
            else:
                if held is not None:
                    held[len(kept)] = pixels
                kept.append(name)
        done += len(names)
        if progress:
            progress(done, len(good))
    return (None if held is None else held[: len(kept)]), kept


def _fail_if_too_many(folder: Path, bad: dict[str, str], n: int, max_bad: float) -> None:
    if len(bad) == n or len(bad) > max_bad * n:
        name, reason = next(iter(bad.items()))
        raise UserError(
            f"{folder}: {len(bad)} of {n} images cannot be read ({len(bad) / n:.0%} > {max_bad:.0%}), the first "
            f"{name}: {reason}; remove them or raise --max-bad"
        )
