"""Names of very many records, without a Python object for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

_CHUNK = 4096  # names that are decoded at once


class Names(Sequence):
    """Texts end to end in one array of bytes, each with a zero after it: the text's bytes and 9 more a name.

    >>> Names.of(["a.png", "b/c.png"])[1]
    'b/c.png'
    """

    def __init__(self, content: np.ndarray) -> None:
        self.content = content  # (bytes,) uint8
        self._ends = np.flatnonzero(content == 0)  # (N,)

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        held = bytearray()
        for name in names:
            held += name.encode("utf-8", "surrogateescape") + b"\0"
        return cls(np.frombuffer(held, np.uint8))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        i = range(len(self))[i]
        return self._bytes(i, i + 1)[:-1].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for at in range(0, len(self), _CHUNK):
            part = self._bytes(at, min(at + _CHUNK, len(self)))[:-1]
            yield from part.decode("utf-8", "surrogateescape").split("\0")

    def __eq__(self, other: object) -> bool:
        return np.array_equal(self.content, other.content) if isinstance(other, Names) else same(self, other)

    __hash__ = None

    def _bytes(self, start: int, stop: int) -> bytes:
        return self.content[self._ends[start - 1] + 1 if start else 0 : self._ends[stop - 1] + 1].tobytes()


class Picked(Sequence):
    """Some of many names, in another order, without copying them; ``make`` changes each as it is asked for."""

    def __init__(self, names: Sequence[str], index: np.ndarray, make: Callable[[str], str] = str) -> None:
        within = isinstance(names, Picked) and make is str
        self._names = names._names if within else names
        self._index = names._index[index] if within else index
        self._make = names._make if within else make

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> str:
        return self._make(self._names[int(self._index[i])])

    def __eq__(self, other: object) -> bool:
        return same(self, other)

    __hash__ = None


def same(one: Sequence[str], other: object) -> bool:
    """Whether both hold the same, in the same order."""
    return isinstance(other, Sequence) and len(one) == len(other) and all(a == b for a, b in zip(one, other))


def paired(old: Sequence[str], new: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the names that both hold, in ``old`` and ``new``: found by 64-bit hashes, then compared. (n,), (n,)"""
    if old == new:
        return np.arange(len(old)), np.arange(len(new))
    _, theirs, mine = np.intersect1d(_hashed(old), _hashed(new), return_indices=True)
    fits = np.fromiter((old[a] == new[b] for a, b in zip(theirs, mine)), bool, len(mine))
    return theirs[fits], mine[fits]


def _hashed(names: Sequence[str]) -> np.ndarray:
    """(N,) uint64"""
    short = (blake2b(n.encode("utf-8", "surrogateescape"), digest_size=8).digest() for n in names)
    return np.frombuffer(b"".join(short), np.uint64)


def coded(texts: Iterable[str], n: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Few different texts as numbers in their sorted order. -> (n,) int64, the texts"""
    known: dict[str, int] = {}
    codes = np.fromiter((known.setdefault(text, len(known)) for text in texts), np.int64, n)
    kinds = sorted(known)
    rank = np.empty(len(kinds), np.int64)
    rank[[known[kind] for kind in kinds]] = np.arange(len(kinds))
    return rank[codes], tuple(kinds)
