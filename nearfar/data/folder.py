"""Sources from folders of images: decoded once, bad ones named and left out."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearfar.data import cache
from nearfar.data.decoding import IN_MEMORY, Decoded, Files, decoded
from nearfar.data.index import Index, survey
from nearfar.data.names import Names, Picked, coded
from nearfar.data.source import Skipped, Source, Splits, aligned, shown
from nearfar.data.workers import Place
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
    names = Names.of(_walk(folder) if only is None else only)
    if not len(names):
        empty = not any(folder.iterdir())
        raise UserError(f"{shown(folder)} is empty: give a folder of images" if empty else
                        f"{shown(folder)} holds no images ({' '.join(sorted(SUFFIXES))})")  # fmt: skip
    key = key_of(os.path.realpath(folder))
    held, kept, skipped = decoded_by(
        given, shown(folder), key, names, lambda: survey(folder, names), lambda i: folder / names[i])
    labels, classes = None, None
    if only is None:
        labels, classes = _labels(names, held.kept)
    return Source(shown(folder), held.shape, held.reader, kept, labels, classes, skipped=skipped,
                  starter=held.starter, hashes=held.hashes)  # fmt: skip


def _labels(names: Names, kept: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """The subfolder each image lies in; none where some lie in none. -> (n,) int64, the subfolders' names"""
    parts = (name.partition(os.sep) for name in names)
    codes, kinds = coded((shown(first) if sep else "" for first, sep, _ in parts), len(names))
    used, labels = np.unique(codes[kept], return_inverse=True)
    classes = tuple(kinds[i] for i in used)
    return (None, None) if "" in classes else (labels, classes)


def key_of(*what: str) -> str:
    """The name in the cache of what is known of a folder, or of something else."""
    return hashlib.blake2b(os.fsencode("\0".join(what)), digest_size=16).hexdigest()


def decoded_by(
    given: Options, where: str, key: str, names: Sequence[str], look: Callable[[], Index],
    place: Callable[[int], Place], bad: Sequence[Skipped] = (),
) -> tuple[Decoded, Sequence[str], tuple[Skipped, ...]]:  # fmt: skip
    """Image files, wherever they lie, decoded by the options; the names of those that can be read, and the others.

    ``bad`` are known to be so, and are no files of these; all together may not be more than ``max_bad``.
    """

    def refuse(found: dict[int, str]) -> None:
        every = {s.name: s.reason for s in bad} | {names[i]: why for i, why in found.items()}
        _fail_if_too_many(where, every, len(names) + len(bad), given.max_bad)

    memory = IN_MEMORY if given.cache_gb is None else min(IN_MEMORY, given.cache_gb * 2**30)
    files = Files(where, key, names, look, place, given.image_size, given.channels, given.progress, given.say, refuse)
    held = decoded(files, cache.find(given.cache_gb), memory)
    refuse(held.bad)
    skipped = tuple(Skipped(shown(names[i]), held.bad[i]) for i in sorted(held.bad))
    return held, Picked(names, held.kept, shown), (*bad, *skipped)


def _fail_if_too_many(where: str, bad: dict[str, str], n: int, max_bad: float) -> None:
    if not bad or (len(bad) < n and len(bad) <= max_bad * n):
        return
    name, why = min(bad.items())
    if len(bad) == n:
        raise UserError(f"{where}: none of {n} images can be read, the first {shown(name)}: {why}")
    raise UserError(
        f"{where}: {len(bad)} of {n} images cannot be read ({100 * len(bad) / n:.3g}% > {100 * max_bad:.3g}%), "
        f"the first {shown(name)}: {why}; remove them or pass --max-bad {math.ceil(100 * len(bad) / n) / 100:g}"
    )
