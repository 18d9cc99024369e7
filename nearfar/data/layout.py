"""What the headers of a folder's files decide, and the files decoded by it, in order, by all workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from nearfar.data import pixels as stores
from nearfar.data.index import Index
from nearfar.data.pictures import auto_shape, peek, rule
from nearfar.data.source import item_hash
from nearfar.data.workers import DIGEST, Failed, Place, digest_and_decode, each

_AHEAD = 2**26  # bytes of pixels that may wait to be used
_BEGINNING = 2**16  # bytes in which most formats say how large a picture is


@dataclass(frozen=True)
class Files:
    """Image files in a folder, or in other places, that are to be read, and how."""

    where: str  # what they are called
    key: str  # 32 hexadecimal digits that name what is known of them
    names: Sequence[str]
    survey: Callable[[], Index]  # as they are now, with nothing known of them but their stamps
    place: Callable[[int], Place]
    image_size: int
    channels: int
    progress: Callable[[int, int], None] | None
    say: Callable[[str], None]
    refuse: Callable[[dict[int, str]], None]  # raises where too many are bad


@dataclass(frozen=True)
class Layout:
    """What the files' headers decide."""

    good: np.ndarray  # (G,) files whose header can be read
    shape: tuple[int, int, int]
    size: int  # the side to resize to, 0 where none is needed
    rule: str  # what decides the pixels beside the files' content

    @property
    def bytes(self) -> int:
        """What the pixels take in the cache, with all that is beside them."""
        return stores.size(len(self.good), self.shape)


def look(files: Files, index: Index) -> Layout:
    """Read the headers that have not been read. -> what they decide"""
    unseen = index.unseen
    for i, got in zip(unseen, each(_peek, map(files.place, unseen))):
        if isinstance(got, Failed):
            index.heads[i], index.reasons[int(i)] = 0, got.why
            if not got.lasting:
                index.distrust(i)
        else:
            (width, height), grey = got
            index.heads[i] = width, height, grey
    return layout_of(files, index)


def _peek(place: Place) -> tuple[tuple[int, int], bool]:
    """Of what lies within another file only the beginning is read, where that is enough."""
    if isinstance(place, Path):
        return peek(place)
    with suppress(Exception):  # it may be too short for this format
        return peek(BytesIO(place.read(_BEGINNING)))
    return peek(BytesIO(place.read()))


def layout_of(files: Files, index: Index) -> Layout:
    files.refuse(index.reasons)
    good = np.flatnonzero(index.heads[:, 0] > 0)
    channels = files.channels or (1 if index.heads[good, 2].all() else 3)
    size, (h, w) = auto_shape(index.heads[good, :2], files.image_size)
    square = size or (h if h == w else 0)  # kept as they are, square images are as if resized to their own size
    return Layout(good, (h, w, channels), size, f"{rule()} {h}x{w}x{channels} to {square}")


def decode_each(files: Files, layout: Layout, todo: np.ndarray) -> Iterator[tuple[int, bytes, np.ndarray | Failed]]:
    """Decode files in parallel, in order. -> file, digest of its content (or none), pixels or why not"""

    def job(i: int) -> tuple[bytes, np.ndarray | Failed]:
        return digest_and_decode(files.place(i), layout.shape[2], layout.size)

    ahead = min(256, max(32, _AHEAD // math.prod(layout.shape)))
    for done, (i, got) in enumerate(zip(map(int, todo), each(job, todo, ahead)), 1):
        sha, pixels = (bytes(DIGEST), got) if isinstance(got, Failed) else got
        if not isinstance(pixels, Failed) and pixels.shape != layout.shape:
            said = f"{pixels.shape[1]}×{pixels.shape[0]}"
            pixels = Failed(f"its pixels are {said}, its header says otherwise", True)
        if files.progress and (done % 32 == 0 or done == len(todo)):
            files.progress(done, len(todo))
        yield i, sha, pixels


def unchecked(index: Index, layout: Layout) -> np.ndarray:
    """Files of which it is not known whether they can be decoded. (n,)"""
    done = index.checked.get(layout.rule)
    return layout.good if done is None else layout.good[~done[layout.good]]


def check(files: Files, index: Index, layout: Layout) -> None:
    """Decode what has not been decoded yet, so that a bad image is known before training and not in the midst of it."""
    todo, n = unchecked(index, layout), len(files.names)
    checked = index.checked.pop(layout.rule, np.zeros(n, bool))
    hashes = index.hashes.pop(layout.rule, np.zeros(n, np.uint64))
    index.checked[layout.rule], index.hashes[layout.rule] = checked, hashes  # the last used is the last
    failed = index.failed.setdefault(layout.rule, {})
    for i, sha, pixels in decode_each(files, layout, todo):
        checked[i], index.digests[i] = True, np.frombuffer(sha, np.uint8)
        if isinstance(pixels, Failed):
            failed[i] = pixels.why
            if not pixels.lasting:
                index.distrust(i)
        else:
            hashes[i] = item_hash(pixels)
