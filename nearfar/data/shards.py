"""Sources from tar shards in WebDataset's layout: members are found once, and read at any place ever after."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np

from nearfar.data import cache as caches
from nearfar.data import flat
from nearfar.data.folder import SUFFIXES, Options, decoded_by, key_of
from nearfar.data.index import Index, stamp_of, unlooked
from nearfar.data.names import Names
from nearfar.data.source import Skipped, Source, Splits, aligned, encode_labels, shown
from nearfar.data.tar import Broken, Member, Window, compression, members
from nearfar.data.workers import Extent, each
from nearfar.errors import UserError, one_line

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TESTS = ("test", "val", "valid", "validation")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 10**6  # shards of a pattern
_LABEL = 2**20  # bytes of a label's file
_LAYOUT = "nearfar shards 1"


@dataclasses.dataclass(frozen=True)
class Records:
    """The images of one shard, in its order; a label is a number into ``texts``, -1 where there is none."""

    names: Names
    at: np.ndarray  # (n,) int64
    size: np.ndarray  # (n,) int64
    label: np.ndarray  # (n,) int32
    texts: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]  # name and reason


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
    table = _table(where, key, paths, given)
    if not len(table.names):
        raise UserError(f"{where} holds no images ({' '.join(sorted(SUFFIXES))})"
                        + (f": {table.bad[0].name}: {table.bad[0].reason}" if table.bad else ""))  # fmt: skip
    held, kept, skipped = decoded_by(
        given, where, key, table.names, table.survey, table.place, table.bad)
    labels, classes = table.labels(held.kept, where, given.say)
    blocks = np.searchsorted(held.kept, table.starts)
    return Source(where, held.shape, held.reader, kept, labels, classes, skipped=skipped, starter=held.starter,
                  hashes=held.hashes, blocks=np.unique(blocks))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Table:
    """The records of all shards, end to end."""

    paths: Sequence[Path]
    names: Names
    starts: np.ndarray  # (S + 1,) of each shard's records
    stamps: np.ndarray  # (S, 3)
    at: np.ndarray  # (N,)
    size: np.ndarray  # (N,)
    label: np.ndarray  # (N,) into texts, -1 where there is none
    texts: tuple[str, ...]
    bad: tuple[Skipped, ...]

    def place(self, i: int) -> Extent:
        shard = int(np.searchsorted(self.starts, i, "right")) - 1
        return Extent(str(self.paths[shard]), int(self.at[i]), int(self.size[i]), self.names[i])

    def survey(self) -> Index:
        """An image is as it was where its shard is."""
        stamps = np.repeat(self.stamps, np.diff(self.starts), axis=0)  # (N, 3)
        trusted = stamps[:, 0] >= 0
        stamps[:, 0] = np.where(trusted, self.size, -1)
        return unlooked(self.names, stamps)

    def labels(
        self, kept: np.ndarray, where: str, say: Callable[[str], None]
    ) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
        """Numbers where all are, names else; none where a record has none. -> (n,) int64 in 0..K-1, K names"""
        codes = self.label[kept]
        missing = int((codes < 0).sum())
        if missing:
            if missing < len(codes):
                say(f"{where}: {missing:,} of {len(codes):,} records have no label: all are taken as without")
            return None, None
        used, codes = np.unique(codes, return_inverse=True)
        texts = [self.texts[i] for i in used]
        numbers = all(re.fullmatch(r"\d{1,18}", text) for text in texts)
        of, classes = encode_labels([int(t) for t in texts] if numbers else texts, len(texts), where)
        return of[codes], classes


def _table(where: str, key: str, paths: Sequence[Path], given: Options) -> Table:
    """The shards' records, from the cache those of shards that have not changed."""
    try:
        stamps = np.array([stamp_of(p.stat()) for p in paths], np.int64)  # (S, 3)
    except OSError as error:
        raise UserError(f"{shown(error.filename)} cannot be read: {error.strerror}") from None
    stamps = unlooked([], stamps).stamps
    cache = caches.find(given.cache_gb)
    if cache is None:
        return _scanned(where, paths, stamps, given)
    try:
        known = _remembered(cache, key, paths, stamps, given.say)
        if known is None:
            waiting = f"{where}: another process is looking through it: waiting for it"
            with cache.turn(key, lambda: given.say(waiting)):
                known = _remembered(cache, key, paths, stamps, given.say)
                if known is None:
                    known = _scanned(where, paths, stamps, given)
                    with suppress(OSError):  # without it the next opening takes longer
                        _leave(cache, key, known)
        return known
    except OSError:  # of the cache, which will be said when the images are opened
        return _scanned(where, paths, stamps, given)


def _scanned(where: str, paths: Sequence[Path], stamps: np.ndarray, given: Options) -> Table:
    """Look through all headers of all shards; one that is broken is left out, or all refused where too many are."""
    names, at, size, label = bytearray(), array("q"), array("q"), array("i")
    starts, texts, bad, broken = [0], {}, [], []
    for path, found in zip(paths, each(scan, paths, 4)):
        if isinstance(found, Records):
            to = [texts.setdefault(text, len(texts)) for text in found.texts] + [-1]
            names += found.names.content.tobytes()
            at.frombytes(found.at.tobytes())
            size.frombytes(found.size.tobytes())
            label.frombytes(np.array(to, np.int32)[found.label].tobytes())
            bad += [Skipped(shown(name), why) for name, why in found.bad]
        else:
            broken.append(Skipped(shown(path), found.why))
        starts.append(len(at))
    if broken and len(broken) > given.max_bad * len(paths):
        raise UserError(f"{where}: {len(broken)} of {len(paths)} shards cannot be read, the first {broken[0].name}: "
                        f"{broken[0].reason}: make it anew or take it away")  # fmt: skip
    for one in broken:
        given.say(f"{one.name} is left out: {one.reason}")
    return Table(paths, Names(np.frombuffer(bytes(names), np.uint8)), np.array(starts), stamps, np.array(at),
                 np.array(size), np.array(label), tuple(texts), (*broken, *bad))  # fmt: skip


def _leave(cache: caches.Cache, key: str, table: Table) -> None:
    """Write what was found for the next opening."""
    about = {"layout": _LAYOUT, "paths": list(map(str, table.paths)), "texts": table.texts,
             "bad": [(s.name, s.reason) for s in table.bad]}  # fmt: skip
    with cache.side(key, 40 * len(table.at) + len(table.names.content) + 2**16) as side:
        flat.write(side.file, {
            "names": table.names.content, "starts": table.starts, "stamps": table.stamps, "at": table.at,
            "size": table.size, "label": table.label, "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        })  # fmt: skip
        side.commit(cache.path(key, "shards"))


def _remembered(
    cache: caches.Cache, key: str, paths: Sequence[Path], stamps: np.ndarray, say: Callable[[str], None]
) -> Table | None:
    """What an earlier opening found, where no shard has changed; damage is said, and the file removed."""
    path = cache.path(key, "shards")
    if not path.exists():
        return None
    try:
        held = flat.load(path)
        about = json.loads(held["about"].tobytes())
        if (about["layout"], about["paths"]) != (_LAYOUT, list(map(str, paths))):
            return None
        if not np.array_equal(held["stamps"], stamps) or (stamps[:, 0] < 0).any():
            return None
        found = Table(paths, Names(held["names"]), held["starts"], stamps, held["at"], held["size"], held["label"],
                      tuple(about["texts"]), tuple(Skipped(*row) for row in about["bad"]))  # fmt: skip
    except Exception as error:  # whatever a damaged file makes zip, NumPy and JSON raise
        say(f"{path}: it is not as it was written ({one_line(error)}): looking through the shards anew")
        path.unlink(missing_ok=True)
        return None
    cache.used(path)
    return found


def scan(path: Path) -> Records:
    """One shard's records: members of one key in a row, KEY being the name up to the first dot after the last slash.

    The image is the member whose extension is an image's; the label the content of ``KEY.cls``, or ``label`` or ``cls``
    in ``KEY.json``. Raises ``Broken``, or OSError.
    """
    names, texts, bad = bytearray(), {}, []
    at, size, label = array("q"), array("q"), array("i")
    with open(path, "rb", buffering=0) as file:
        window = Window(file)
        packed = compression(window.read(0, 8))
        if packed:
            raise Broken(f"it is compressed ({packed}), and shards are read at any place: unpack it")
        for key, group in _grouped(members(path, window)):
            said, image = f"{path.name}/{key}", group.get("image")
            try:
                text = _label(window, group)
            except ValueError as error:
                bad.append((said, f"its label cannot be read: {one_line(error)}"))
                continue
            bad += [(f"{path.name}/{m.name}", m.refused) for m in group.values() if m.refused]
            if image is None or image.refused:
                if image is None and "label" in group:
                    bad.append((said, "it has a label and no image"))
                continue
            names += f"{path.name}/{image.name}".encode("utf-8", "surrogateescape") + b"\0"
            at.append(image.at)
            size.append(image.size)
            label.append(-1 if text is None else texts.setdefault(text, len(texts)))
    return Records(Names(np.frombuffer(bytes(names), np.uint8)), np.array(at), np.array(size), np.array(label),
                   tuple(texts), tuple(bad))  # fmt: skip


def _grouped(found: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Members of one key in a row: its first image, its label's file, and all that is refused."""
    key, group = None, {}
    for member in found:
        folder, slash, base = member.name.rpartition("/")
        stem, dot, ending = base.partition(".")
        if not (stem and dot) and not member.refused:
            continue
        if folder + slash + stem != key:
            if group:
                yield key, group
            key, group = folder + slash + stem, {}
        ending = ending.lower()
        kind = "image" if f".{ending}" in SUFFIXES else "label" if ending in ("cls", "json") else ""
        if member.refused and (not kind or kind in group):
            group[member.name] = member
        elif kind and (kind not in group or (ending == "cls" and group[kind].name.lower().endswith("json"))):
            group[kind] = member
        elif kind == "image" and member.name == group[kind].name:
            group[f"{member.name} again"] = member._replace(refused="it is there twice")
    if group:
        yield key, group


def _label(window: Window, group: dict[str, Member]) -> str | None:
    """The text of a record's label; None where there is none. Raises ValueError."""
    member = group.get("label")
    if member is None or member.refused:
        return None
    if member.size > _LABEL:
        raise ValueError(f"it takes {member.size:,} bytes")
    text = window.read(member.at, member.size).decode("utf-8")
    if member.name.lower().endswith("json"):
        try:
            held = json.loads(text)
        except RecursionError:
            raise ValueError("its JSON is nested too deeply") from None
        value = next((held[k] for k in ("label", "cls") if k in held), None) if isinstance(held, dict) else held
        if not isinstance(value, str | int | None):
            raise ValueError(f"{type(value).__name__} is neither text nor a whole number")
        text = "" if value is None else str(value)
    text = text.strip()
    if len(text) > 200:
        raise ValueError(f"it is a text of {len(text):,} letters")
    return shown(text) if text else None
