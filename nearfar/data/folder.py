"""Sources from folders of images: decoded once, bad ones named and left out."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nearfar.data import cache
from nearfar.data.decoding import IN_MEMORY, Files, decoded
from nearfar.data.source import Skipped, Source, Splits, aligned, encode_labels, shown
from nearfar.errors import UserError, one_line

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
_SPLITS = ("test", "val", "valid", "validation")
Progress = Callable[[int, int], None]


def to_stderr(text: str) -> None:
    print(f"nearfar: {text}", file=sys.stderr)


@dataclass(frozen=True)
class Options:
    """How folders are read; see ``open_source``."""

    image_size: int = 0
    channels: int = 0
    max_bad: float = 0.05
    progress: Progress | None = None
    cache_gb: float | None = None
    say: Callable[[str], None] = to_stderr


def from_folder(folder: Path, given: Options) -> Splits:
    """Flat, one subfolder a class, or ``train/`` beside ``test/`` (or ``val/``) with either inside."""
    try:
        subfolders = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "."}
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be listed: {one_line(error)}") from None
    other = next((name for name in _SPLITS if name in subfolders), None)
    if "train" not in subfolders or other is None:
        return Splits(_one(folder, given))
    train = _one(subfolders["train"], given)
    size = train.shape[0] if train.shape[0] == train.shape[1] else given.image_size
    test = _one(subfolders[other], dataclasses.replace(given, image_size=size, channels=train.shape[2]))
    return aligned(train, test, shown(subfolders[other]))


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
        below = os.path.relpath(root, folder)
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield name if below == "." else os.path.join(below, name)


def pictures_of(folder: Path) -> list[Path]:
    """Every image file below a folder."""
    return [folder / name for name in _walk(folder)]


def from_files(folder: Path, names: list[str], given: Options) -> Source:
    """The named files below a folder, without labels, every one decoded once."""
    return _one(folder, given, names)


def _one(folder: Path, given: Options, only: list[str] | None = None) -> Source:
    """One folder's images, flat or by class, every one decoded once; ``only`` some of them, without labels."""
    if given.channels not in (0, 1, 3):
        raise UserError(
            f"{shown(folder)}: image files have 1 or 3 channels, the run wants {given.channels}: give an .npz"
        )
    names = list(_walk(folder)) if only is None else only
    if not names:
        empty = not any(folder.iterdir())
        raise UserError(f"{shown(folder)} is empty: give a folder of images" if empty else
                        f"{shown(folder)} holds no images ({' '.join(sorted(SUFFIXES))})")  # fmt: skip

    def refuse(bad: dict[int, str]) -> None:
        _fail_if_too_many(folder, {names[i]: why for i, why in bad.items()}, len(names), given.max_bad)

    memory = IN_MEMORY if given.cache_gb is None else min(IN_MEMORY, given.cache_gb * 2**30)
    files = Files(folder, names, given.image_size, given.channels, given.progress, given.say, refuse)
    held = decoded(files, cache.find(given.cache_gb), memory)
    refuse(held.bad)
    kept = [names[i] for i in held.kept]
    skipped = tuple(Skipped(shown(names[i]), held.bad[i]) for i in sorted(held.bad))
    labels, classes = None, None
    if only is None and all(os.sep in f for f in kept):
        labels, classes = encode_labels([shown(f.split(os.sep)[0]) for f in kept], len(kept), shown(folder))
    return Source(
        shown(folder), held.shape, held.reader, [shown(f) for f in kept], labels, classes, skipped=skipped,
        starter=held.starter,
    )  # fmt: skip


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
