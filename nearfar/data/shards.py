"""Sources from tar shards in WebDataset's layout: a folder of them, one, or a pattern of several."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np

from nearfar.data.folder import SUFFIXES, Options, decoded_by, key_of
from nearfar.data.records import table
from nearfar.data.source import Skipped, Source, Splits, aligned, shown
from nearfar.errors import UserError

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TESTS = ("test", "val", "valid", "validation")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 10**6  # shards of a pattern


def looks_sharded(folder: Path) -> bool:
    """Whether a folder, or its ``train/``, holds tar archives and neither images nor other folders."""
    found = _listed(folder)
    return bool(found) or any(_listed(p) for p in (folder / "train",) if p.is_dir())


def _listed(folder: Path) -> list[Path]:
    out = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir() or os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                return []
            if entry.name.lower().endswith((".tar", *_PACKED)):
                out.append(Path(entry.path))
    return sorted(out)


def looks_like_shards(text: str) -> bool:
    """Whether a path is of one archive, or a pattern of several: ``shards-{000000..000099}.tar``."""
    return text.lower().endswith((".tar", *_PACKED))


def from_shards(text: str, given: Options) -> Splits:
    """A folder of shards, one shard, or a pattern of several.

    In a folder, ``train/`` beside ``test/`` (or ``val/``), or these words in the shards' names, make two parts.
    """
    where, path = shown(text), Path(text)
    if not path.is_dir():
        return Splits(_one(where, os.path.abspath(text), _expanded(text, where), given))
    parts = {name: _listed(path / name) for name in ("train", *_TESTS) if (path / name).is_dir()}
    if not parts.get("train"):
        parts = {name: [p for p in _listed(path) if _is_of(p, name)] for name in ("train", *_TESTS)}
    other = next((name for name in _TESTS if parts.get(name)), None)
    if not parts.get("train") or other is None:
        alone = parts.get("train") if (path / "train").is_dir() else _listed(path)
        return Splits(_one(where, os.path.realpath(path), alone, given))
    train = _one(where, os.path.join(os.path.realpath(path), "train"), parts["train"], given)
    size = train.shape[0] if train.shape[0] == train.shape[1] else given.image_size
    like = dataclasses.replace(given, image_size=size, channels=train.shape[2])
    return aligned(train, _one(where, os.path.join(os.path.realpath(path), other), parts[other], like), where)


def _is_of(path: Path, part: str) -> bool:
    return part in re.split(r"[-_.]", path.stem.lower())


def _expanded(text: str, where: str) -> list[Path]:
    """The shards of a pattern, all of which must be there."""
    pieces = _RANGE.split(text)
    if os.path.exists(text) or len(pieces) == 1:
        paths = [Path(text)]
    else:
        spans = [(int(a), int(b), len(a)) for a, b in zip(pieces[1::3], pieces[2::3])]
        if np.prod([float(b - a + 1) for a, b, _ in spans]) > _MOST or any(b < a for a, b, _ in spans):
            raise UserError(f"{where}: give ranges that rise, of at most {_MOST:,} shards in all")
        ranges = ([f"{i:0{width}d}" for i in range(a, b + 1)] for a, b, width in spans)
        paths = [Path("".join(a + b for a, b in zip(pieces[::3], (*numbers, "")))) for numbers in product(*ranges)]
    missing = [p for p in paths if not p.is_file()]
    if missing:
        more = f", and {len(missing) - 1} more" if missing[1:] else ""
        raise UserError(f"{shown(missing[0])}: no such shard{more}")
    return paths


def _one(where: str, place: str, paths: Sequence[Path], given: Options) -> Source:
    """The records of some shards as one source; ``place`` is what names them in the cache."""
    if given.channels not in (0, 1, 3):
        raise UserError(f"{where}: image files have 1 or 3 channels, the run wants {given.channels}: give an .npz")
    packed = next((p for p in paths if p.name.lower().endswith(_PACKED)), None)
    if packed is not None:
        raise UserError(f"{shown(packed)} is compressed: shards are read at any place: unpack it to a .tar (gunzip)")
    key = key_of("shards", place)
    held = table(where, key, paths, given)
    bad = tuple(Skipped(name, why) for _, name, why in held.bad)
    if not len(held.names):
        raise UserError(f"{where} holds no images ({' '.join(sorted(SUFFIXES))})"
                        + (f": {bad[0].name}: {bad[0].reason}" if bad else ""))  # fmt: skip
    found, kept, skipped = decoded_by(given, where, key, held.names, held.survey, held.place, bad)
    labels, classes = held.labels(found.kept, where, given.say)
    blocks = np.searchsorted(found.kept, held.starts)
    return Source(where, found.shape, found.reader, kept, labels, classes, skipped=skipped, starter=found.starter,
                  hashes=found.hashes, blocks=np.unique(blocks))  # fmt: skip
