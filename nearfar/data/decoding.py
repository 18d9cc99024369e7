"""From a folder's files to a reader of pixels: decoded once into the cache, held in memory, or streamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearfar.data import cache as caches
from nearfar.data import index as indices
from nearfar.data import pixels as stores
from nearfar.data.cache import Cache
from nearfar.data.index import Index
from nearfar.data.layout import Files, Layout, check, decode_each, layout_of, look, unchecked
from nearfar.data.pictures import quiet, rule
from nearfar.data.pixels import Pixels
from nearfar.data.workers import Failed, attempt, decode_at, digest, each, still, streamed
from nearfar.errors import one_line

IN_MEMORY = 4 * 2**30  # bytes of pixels that are held where there is no cache
_ROWS = 256  # rows that are checked at once


@dataclass(frozen=True)
class Decoded:
    """The files that could be decoded, in order, and how to read them."""

    kept: np.ndarray  # (N,)
    bad: dict[int, str]
    shape: tuple[int, int, int]
    reader: Callable[[np.ndarray], np.ndarray]
    starter: Callable | None = None
    hashes: np.ndarray | None = None  # (N,) uint64, where they are known


@dataclass(frozen=True)
class Copies:
    """Rows of another set's pixels that files of this one have, too."""

    store: Pixels
    places: np.ndarray  # (n,) of the files among those that are good
    rows: np.ndarray  # (n,)


def decoded(files: Files, cache: Cache | None, in_memory: int = IN_MEMORY) -> Decoded:
    """Open a folder's files by what the cache allows; what goes wrong with the cache is said, and costs only time."""
    with quiet():
        if cache is None:
            return _uncached(files, in_memory)
        waiting = f"{files.where}: another process is decoding it: waiting for it"
        try:
            found = _opened(files, cache, files.key)
            if found is None:
                with cache.turn(files.key, lambda: files.say(waiting)):
                    found = _opened(files, cache, files.key) or _made(files, cache, files.key)
            return found
        except OSError as error:  # of the cache: what goes wrong with an image is a Failed
            return _uncached(files, in_memory, (cache, error))


def _opened(files: Files, cache: Cache, key: str) -> Decoded | None:
    """What an earlier opening left, with a stat a file and no file opened; None where anything is missing."""
    before = _remembered(files, cache, key)
    if before is None:
        return None
    index = _known(files, before)
    if len(index.unseen):
        return None
    layout = layout_of(files, index)
    if layout.bytes > cache.largest:
        return None if len(unchecked(index, layout)) else _stream(files, index, layout, cache)
    if len(index.undigested(layout.good)):
        return None
    store = _stored(files, cache, layout, index)
    return None if store is None else _from_store(files, index, layout, store)


def _made(files: Files, cache: Cache, key: str) -> Decoded:
    """Do what is missing, and leave it for the next opening."""
    index = _known(files, _remembered(files, cache, key))
    layout = look(files, index)
    if layout.bytes > cache.largest:
        check(files, index, layout)
        found = _stream(files, index, layout, cache)
    else:
        old = _rows_elsewhere(files, cache, index, layout)
        store = _stored(files, cache, layout, index)
        if store is None:
            for rows in (old, []):
                try:
                    store = _write(files, cache, key, index, layout, rows)
                    break
                except caches.Short:
                    if not rows:
                        raise
                    old.clear()  # their files are in use by this, and in the way
        found = _from_store(files, index, layout, store)
        _supersede(cache, index, layout, store)
    with suppress(OSError), cache.side(key, 200 * len(files.names)) as side:  # without it the next opening takes longer
        indices.write(index, side.file, rule())
        side.commit(cache.path(key, "index"))
    return found


def _uncached(files: Files, in_memory: int, trouble: tuple[Cache, OSError] | None = None) -> Decoded:
    """Decode into memory, or where that is too much check every file and decode on demand."""
    index = _known(files, None)
    layout = look(files, index)
    fits = layout.bytes <= in_memory
    if trouble:
        _tell(files, layout, fits, *trouble)
    if not fits:
        check(files, index, layout)
        return _stream(files, index, layout)
    held, kept = np.empty((len(layout.good), *layout.shape), np.uint8), []  # (G, H, W, C)
    failed = index.failed.setdefault(layout.rule, {})
    for i, _, pixels in decode_each(files, layout, layout.good):
        if isinstance(pixels, Failed):
            failed[i] = pixels.why
        else:
            held[len(kept)] = pixels
            kept.append(i)
    return Decoded(np.array(kept, np.int64), index.reasons | failed, layout.shape, held[: len(kept)].__getitem__)


def _remembered(files: Files, cache: Cache, key: str) -> Index | None:
    """What earlier openings knew of the folder; a damaged file of it is said and removed."""
    path = cache.path(key, "index")
    try:
        return indices.load(path, rule())
    except stores.Damaged as error:
        _say_damaged(files, path, error, "looking through")
        path.unlink(missing_ok=True)
        return None


def _known(files: Files, before: Index | None) -> Index:
    """The files as they are, with what was known of those that have not changed since."""
    index = files.survey()
    if before is not None:
        indices.carry(before, index)
    return index


def _stream(files: Files, index: Index, layout: Layout, cache: Cache | None = None) -> Decoded:
    """Decode on demand, by workers that are asked ahead of time."""
    if cache and cache.largest:
        files.say(f"{files.where}: {len(layout.good):,} images of {'×'.join(map(str, layout.shape))} take "
                  f"{caches.text(layout.bytes)}, more than the cache's {caches.text(cache.largest)}: they are decoded "
                  f"as they are read; raise NEARFAR_CACHE_GB or pass a smaller --image-size")  # fmt: skip
    failed = index.failed.get(layout.rule, {})
    kept = np.setdiff1d(layout.good, np.fromiter(failed, np.int64, len(failed)))
    start = streamed(lambda row: files.place(kept[row]), layout.shape, layout.size)
    hashes = index.hashes[layout.rule][kept]
    return Decoded(kept, index.reasons | failed, layout.shape, lambda rows: start(rows).result(), start, hashes)


def _rows_elsewhere(files: Files, cache: Cache, index: Index, layout: Layout) -> list[Copies]:
    """Rows that other sets, or this one before it changed, have of these files' content."""
    alike = []
    for path in cache.folder.glob("*.pixels"):
        with suppress(OSError, stores.Damaged):
            if stores.head(path)["rule"] == layout.rule:
                alike.append(path)
    if not alike:
        return []  # the digests come with decoding
    unknown = index.undigested(layout.good)
    for i, sha in zip(unknown, each(digest, map(files.place, unknown))):
        if not isinstance(sha, Failed):
            index.digests[i] = np.frombuffer(sha, np.uint8)
    digests = index.digests[layout.good]  # (G, 16)
    if cache.path(stores.key(layout.rule, digests), "pixels") in alike:
        return []  # the whole of it is there
    wanted, found = np.flatnonzero(digests.any(1)), []
    for path in alike:
        with suppress(OSError, stores.Damaged):
            if store := stores.load(path):
                rows = stores.rows_of(store.digests[store.files()], digests[wanted])
                found.append(Copies(store, wanted[rows >= 0], rows[rows >= 0]))
                wanted = wanted[rows < 0]
    return [copies for copies in found if len(copies.places)]


def _sound(old: list[Copies], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of which set each of n files has a sound row (-1: of none), and which row. (n,), (n,)"""
    which, row = np.full(n, -1, np.int32), np.zeros(n, np.int64)
    for number, copies in enumerate(old):
        for at in range(0, len(copies.rows), _ROWS):
            places, rows = copies.places[at : at + _ROWS], copies.rows[at : at + _ROWS]
            good = np.setdiff1d(np.arange(len(rows)), copies.store.take(rows)[1])
            which[places[good]], row[places[good]] = number, rows[good]
    return which, row


def _write(files: Files, cache: Cache, key: str, index: Index, layout: Layout, old: list[Copies]) -> Pixels:
    """Decode what no other set has into a file of the cache, chunk by chunk, so that memory stays flat."""
    good = layout.good
    which, row = _sound(old, len(good))
    reasons: dict[int, str] = {}
    with cache.side(key, stores.size(len(good), layout.shape)) as side:
        writer = stores.Writer(side.file, layout.shape)
        with closing(decode_each(files, layout, good[which < 0])) as news:
            for place, number in enumerate(which):
                if number >= 0:
                    writer.add(old[number].store.rows[row[place]])
                    continue
                i, sha, pixels = next(news)
                index.digests[i] = np.frombuffer(sha, np.uint8)
                if isinstance(pixels, Failed):
                    reasons[place] = pixels.why
                    if not pixels.lasting:
                        index.distrust(i)
                else:
                    writer.add(pixels)
        if len(reasons) == len(good):
            files.refuse(index.reasons | {int(good[place]): why for place, why in reasons.items()})
        digests = index.digests[good]  # (G, 16)
        writer.finish(layout.rule, digests, reasons)
        path = cache.path(stores.key(layout.rule, digests), "pixels")
        side.commit(path)
    store = stores.load(path)
    if store is None:
        raise OSError(f"{path.name} was taken away at once")
    return store


def _stored(files: Files, cache: Cache, layout: Layout, index: Index) -> Pixels | None:
    """The set's pixels where the cache has them; a damaged file is said and removed."""
    if not len(layout.good) or len(index.undigested(layout.good)):
        return None
    path = cache.path(stores.key(layout.rule, index.digests[layout.good]), "pixels")
    try:
        store = stores.load(path)
    except stores.Damaged as error:
        _say_damaged(files, path, error)
        path.unlink(missing_ok=True)
        return None
    if store is not None:
        cache.used(path)
    return store


def _from_store(files: Files, index: Index, layout: Layout, store: Pixels) -> Decoded:
    """Read from the cache; a row that is not as it was written is decoded anew, and the file given up."""
    kept = layout.good[store.files()]  # (N,)
    told = []

    def read(rows: np.ndarray) -> np.ndarray:
        out, damaged = store.take(rows)  # (B, H, W, C)
        if damaged and not told:
            told.append(_say_damaged(files, store.path, "a row is not as it was written"))
            store.remove()
        for place in damaged:
            lost = files.place(kept[rows[place]])
            with quiet():
                pixels = attempt(decode_at, lost, layout.shape[2], layout.size)
            out[place] = still(lost, pixels, layout.shape)
        return out

    bad = index.reasons | {int(layout.good[place]): why for place, why in store.reasons.items()}
    return Decoded(kept, bad, layout.shape, read, hashes=store.hashes)


def _supersede(cache: Cache, index: Index, layout: Layout, store: Pixels) -> None:
    """The pixels of the folder as it was are the first to go."""
    before = index.stores.pop(layout.rule, None)
    index.stores[layout.rule] = store.path.stem
    if before not in (None, store.path.stem):
        with suppress(OSError):
            os.utime(cache.path(before, "pixels"), (0, 0))


def _say_damaged(files: Files, path: Path, why: object, doing: str = "decoding") -> None:
    files.say(f"{path}: {why}: {doing} {files.where} anew")


def _tell(files: Files, layout: Layout, fits: bool, cache: Cache, error: OSError) -> None:
    """Why there is no cache, and what is done instead."""
    why = str(error) if isinstance(error, caches.Short) else f"{cache.folder}: {error.strerror or one_line(error)}"
    files.say(f"{files.where}: decoded it takes {caches.text(layout.bytes)} and cannot be cached: {why}; it is "
              f"{'kept in memory' if fits else 'decoded as it is read'}: free some space or set NEARFAR_CACHE to "
              f"another folder")  # fmt: skip
