"""What images lie where in tar shards: found once by walking the headers, and mapped from the cache ever after."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearfar.data import cache as caches
from nearfar.data import flat
from nearfar.data.folder import SUFFIXES, Options
from nearfar.data.index import Index, settled, stamp_of, unlooked
from nearfar.data.names import Names
from nearfar.data.source import encode_labels, shown
from nearfar.data.tar import Broken, Member, Window, compression, members
from nearfar.data.workers import Extent, each
from nearfar.errors import UserError, one_line

_LABEL = 2**20  # bytes of a label's file
_LAYOUT = "nearfar shards 1"


@dataclass(frozen=True)
class Records:
    """The images of one shard, in its order; a label is a number into ``texts``, -1 where there is none."""

    names: Names
    at: np.ndarray  # (n,) int64
    size: np.ndarray  # (n,) int64
    label: np.ndarray  # (n,) int32
    texts: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]  # name and reason


@dataclass(frozen=True)
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
    bad: tuple[tuple[int, str, str], ...]  # shard, name and reason of what is not to be read
    broken: tuple[int, ...]  # shards of which nothing is

    def place(self, i: int) -> Extent:
        shard = int(np.searchsorted(self.starts, i, "right")) - 1
        return Extent(str(self.paths[shard]), int(self.at[i]), int(self.size[i]), self.names[i])

    def records(self, shard: int) -> Records:
        """Those of one shard."""
        start, stop = (int(i) for i in self.starts[shard : shard + 2])
        names = Names.of(self.names[i] for i in range(start, stop))
        bad = tuple(row[1:] for row in self.bad if row[0] == shard)
        return Records(names, self.at[start:stop], self.size[start:stop], self.label[start:stop], self.texts, bad)

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


def table(where: str, key: str, paths: Sequence[Path], given: Options) -> Table:
    """The shards' records; of shards that have not changed, from the cache."""
    try:
        stamps = settled(np.array([stamp_of(p.stat()) for p in paths], np.int64))  # (S, 3)
    except OSError as error:
        raise UserError(f"{shown(error.filename)} cannot be read: {error.strerror}") from None
    cache = caches.find(given.cache_gb)
    if cache is None:
        return _scanned(where, paths, stamps, given)
    try:
        old = _remembered(cache, key, given.say)
        if not _current(old, paths, stamps):
            waiting = f"{where}: another process is looking through it: waiting for it"
            with cache.turn(key, lambda: given.say(waiting)):
                old = _remembered(cache, key, given.say)
                if not _current(old, paths, stamps):
                    old = _scanned(where, paths, stamps, given, old)
                    with suppress(OSError):  # without it the next opening takes longer
                        _leave(cache, key, old)
        return old
    except OSError:  # of the cache, which will be said when the images are opened
        return _scanned(where, paths, stamps, given)


def _current(old: Table | None, paths: Sequence[Path], stamps: np.ndarray) -> bool:
    return old is not None and old.paths == paths and np.array_equal(old.stamps, stamps) and bool((stamps >= 0).all())


def _scanned(
    where: str, paths: Sequence[Path], stamps: np.ndarray, given: Options, old: Table | None = None
) -> Table:
    """Look through the headers of what is new; broken shards are left out, or all refused where too many are."""
    names, at, size, label = bytearray(), array("q"), array("q"), array("i")
    starts, texts, bad, broken = [0], {}, [], []
    places = {} if old is None else {p: i for i, p in enumerate(old.paths) if i not in old.broken}

    def look(shard: int) -> Records:
        before = places.get(paths[shard])
        same = before is not None and stamps[shard, 0] >= 0 and np.array_equal(old.stamps[before], stamps[shard])
        return old.records(before) if same else scan(paths[shard])

    for shard, found in enumerate(each(look, range(len(paths)), 4)):
        if isinstance(found, Records):
            to = [texts.setdefault(text, len(texts)) for text in found.texts] + [-1]
            names += found.names.content.tobytes()
            at.frombytes(found.at.tobytes())
            size.frombytes(found.size.tobytes())
            label.frombytes(np.array(to, np.int32)[found.label].tobytes())
            bad += [(shard, shown(name), why) for name, why in found.bad]
        else:
            bad.append((shard, shown(paths[shard]), found.why))
            broken.append(shard)
        starts.append(len(at))
    _refuse(where, paths, [row for row in bad if row[0] in broken], given)
    return Table(paths, Names(np.frombuffer(bytes(names), np.uint8)), np.array(starts), stamps, np.array(at),
                 np.array(size), np.array(label), tuple(texts), tuple(bad), tuple(broken))  # fmt: skip


def _refuse(where: str, paths: Sequence[Path], broken: list[tuple[int, str, str]], given: Options) -> None:
    if broken and len(broken) > given.max_bad * len(paths):
        _, name, why = broken[0]
        raise UserError(f"{where}: {len(broken)} of {len(paths)} shards cannot be read, the first {name}: {why}: make "
                        "it anew or take it away")  # fmt: skip
    for _, name, why in broken:
        given.say(f"{name} is left out: {why}")


def _leave(cache: caches.Cache, key: str, table: Table) -> None:
    """Write what was found for the next opening."""
    about = {"layout": _LAYOUT, "paths": list(map(str, table.paths)), "texts": table.texts, "bad": table.bad,
             "broken": table.broken}  # fmt: skip
    with cache.side(key, 40 * len(table.at) + len(table.names.content) + 2**16) as side:
        flat.write(side.file, {
            "names": table.names.content, "starts": table.starts, "stamps": table.stamps, "at": table.at,
            "size": table.size, "label": table.label, "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        })  # fmt: skip
        side.commit(cache.path(key, "shards"))


def _remembered(cache: caches.Cache, key: str, say: Callable[[str], None]) -> Table | None:
    """What an earlier opening found; damage is said, and the file removed."""
    path = cache.path(key, "shards")
    if not path.exists():
        return None
    try:
        held = flat.load(path)
        about = json.loads(held["about"].tobytes())
        if about["layout"] != _LAYOUT:
            return None
        found = Table([Path(p) for p in about["paths"]], Names(held["names"]), held["starts"], held["stamps"],
                      held["at"], held["size"], held["label"], tuple(about["texts"]),
                      tuple(map(tuple, about["bad"])), tuple(about["broken"]))  # fmt: skip
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
