"""Texts: rows of one, two or three of them, flat in memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nearfar.data.source import Skipped


@dataclass(frozen=True)
class Texts:
    """N rows of S texts: one, a pair, or anchor, positive and negative.

    ``blob`` holds the UTF-8 of all texts, one after the other; text s of row i is its ``sizes[i, s]`` bytes from
    ``starts[i, s]`` on. ``scores`` (N,) lie in [0, 1]; rows of one of the ``documents`` stand next to each other, in
    reading order.
    """

    spec: str
    slots: tuple[str, ...]
    blob: np.ndarray = dataclasses.field(repr=False)  # (bytes,) uint8
    starts: np.ndarray = dataclasses.field(repr=False)  # (N, S) int64
    sizes: np.ndarray = dataclasses.field(repr=False)  # (N, S) int32
    labels: np.ndarray | None = dataclasses.field(default=None, repr=False)  # (N,) int64 in 0..K-1
    classes: tuple[str, ...] | None = None
    scores: np.ndarray | None = dataclasses.field(default=None, repr=False)  # (N,) float32
    documents: np.ndarray | None = dataclasses.field(default=None, repr=False)  # (N,) int64
    skipped: tuple[Skipped, ...] = ()
    score_range: tuple[float, float] | None = None  # what scores of 0 and 1 were in the source

    def __len__(self) -> int:
        return len(self.starts)

    def raw(self, i: int, slot: int = 0) -> bytes:
        """A text's UTF-8."""
        at = int(self.starts[i, slot])
        return self.blob[at : at + int(self.sizes[i, slot])].tobytes()

    def text(self, i: int, slot: int = 0) -> str:
        return self.raw(i, slot).decode("utf-8")

    def row(self, i: int) -> tuple[str, ...]:
        return tuple(self.text(i, s) for s in range(len(self.slots)))

    def column(self, slot: int = 0) -> Iterator[str]:
        """The texts of one slot, in order."""
        return (self.text(i, slot) for i in range(len(self)))

    def every(self) -> Iterator[str]:
        """All texts, slot after slot."""
        return (text for slot in range(len(self.slots)) for text in self.column(slot))

    def subset(self, indices: Sequence[int] | np.ndarray, spec: str | None = None) -> Texts:
        """These rows only, in this order; the blob is shared."""
        index = np.asarray(indices, dtype=np.int64)
        pick = lambda a: None if a is None else a[index]  # noqa: E731
        return dataclasses.replace(
            self, spec=spec or self.spec, starts=self.starts[index], sizes=self.sizes[index],
            labels=pick(self.labels), scores=pick(self.scores), documents=pick(self.documents),
        )  # fmt: skip

    @cached_property
    def hashes(self) -> np.ndarray:
        """64 bits of the BLAKE2b of every row's texts, by which copies are known. (N,) uint64"""
        out = np.empty(len(self), np.uint64)
        for i in range(len(self)):
            digest = hashlib.blake2b(digest_size=8)
            for s in range(len(self.slots)):
                digest.update(self.raw(i, s) + b"\0")
            out[i] = int.from_bytes(digest.digest(), "little")
        return out


@dataclass(frozen=True)
class TextSplits:
    """Texts as they come: what may be trained on and, where there is one of its own, what judges."""

    train: Texts
    test: Texts | None = None
