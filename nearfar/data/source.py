"""What a source is: images, or texts as tokens, by index, with labels where there are some."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from nearfar.data.names import Picked
from nearfar.errors import UserError

MANY = 100_000  # images above which a fingerprint is of their hashes, so that they need not be read again


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read, and why."""

    name: str
    reason: str


class Pending(Protocol):
    """A batch on its way."""

    def result(self) -> np.ndarray: ...

    def cancel(self) -> None: ...


@dataclass(frozen=True)
class Later:
    """A batch that is read when it is asked for."""

    reader: Callable[[np.ndarray], np.ndarray]
    index: np.ndarray

    def result(self) -> np.ndarray:
        return self.reader(self.index)

    def cancel(self) -> None:
        """Nothing has been begun."""


@dataclass(frozen=True)
class Source:
    """Images of one shape, or texts as tokens, read by index.

    ``read(indices)`` gives (B, H, W, C), uint8, or float32 in the original units; ``low`` and ``high`` are the
    values that stand for 0 and 1. Of texts it gives (B, S, L) int32, -1 beyond a text's end, and ``shape`` is (S, most
    tokens). A source that is decoded as it is read has a ``starter`` too: it sets workers to a batch and returns at
    once; one that lies in shards has ``blocks``, by which the loader keeps reading local.
    """

    spec: str
    shape: tuple[int, ...]
    reader: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)
    names: Sequence[str] = dataclasses.field(repr=False)
    labels: np.ndarray | None = dataclasses.field(default=None, repr=False)  # (N,) int64 in 0..K-1
    classes: tuple[str, ...] | None = None
    low: float = 0.0
    high: float = 255.0
    skipped: tuple[Skipped, ...] = ()
    hint: str | None = None  # the augmentation policy that suits it, where the source knows
    starter: Callable[[np.ndarray], Pending] | None = dataclasses.field(default=None, repr=False)
    hashes: np.ndarray | None = dataclasses.field(default=None, repr=False)  # (N,) uint64: item_hashes, where known
    blocks: np.ndarray | None = dataclasses.field(default=None, repr=False)  # (S + 1,) where shards begin, and N
    scores: np.ndarray | None = dataclasses.field(default=None, repr=False)  # (N,) float32 in [0, 1], of pairs
    apart: np.ndarray | None = dataclasses.field(default=None, repr=False)  # (N,), (N, C): sharing one, none meet
    origin: Any = dataclasses.field(default=None, repr=False)  # of tokens: the texts and the tokeniser

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.reader(np.asarray(indices, dtype=np.int64))

    def start(self, indices: Sequence[int] | np.ndarray) -> Pending:
        """Begin to read what takes workers some time; ``result()`` waits for it, ``cancel()`` lets go of it."""
        index = np.asarray(indices, dtype=np.int64)
        return Later(self.reader, index) if self.starter is None else self.starter(index)

    def subset(self, indices: Sequence[int] | np.ndarray, spec: str | None = None) -> Source:
        """The same source with these records only, in this order; a mask of booleans picks where it is true."""
        given = np.asarray(indices)
        if given.dtype == bool and given.shape != (len(self),):
            raise UserError(f"subset: a mask of shape {given.shape} for {len(self)} images: give one value an image")
        index = np.flatnonzero(given) if given.dtype == bool else given.astype(np.int64)
        return dataclasses.replace(
            self,
            spec=spec or self.spec,
            reader=lambda i: self.reader(index[i]),
            starter=None if self.starter is None else lambda i: self.starter(index[i]),
            names=Picked(self.names, index),
            labels=None if self.labels is None else self.labels[index],
            hashes=None if self.hashes is None else self.hashes[index],
            blocks=_blocks_of(self.blocks, index),
            scores=None if self.scores is None else self.scores[index],
            apart=None if self.apart is None else self.apart[index],
            origin=None if self.origin is None else self.origin.subset(index),
        )

    def fingerprint(self) -> str:
        """SHA-256 over content, names, labels and scores; 16 hexadecimal digits. Taken once a source, as it reads all.

        Of more than 100,000 images ``item_hashes`` stand for the content, which sources that were decoded once know;
        of texts always, so that it says which texts they are, whatever the tokeniser.
        """
        return self._fingerprint

    @cached_property
    def item_hashes(self) -> np.ndarray:
        """A 64-bit hash of every image's pixels, by which copies are known. (N,) uint64; read at most once a source"""
        if self.hashes is not None:
            return self.hashes
        out = np.empty(len(self), np.uint64)
        for at in range(0, len(self), 512):
            for i, image in enumerate(self.read(np.arange(at, min(at + 512, len(self))))):
                out[at + i] = item_hash(image)
        return out

    @cached_property
    def _fingerprint(self) -> str:
        texts = len(self.shape) == 2
        sha = hashlib.sha256(repr(self.shape[:1] if texts else self.shape).encode())
        if texts or len(self) > MANY:
            sha.update(self.item_hashes.tobytes())
        else:
            for at in range(0, len(self), 1024):
                sha.update(np.ascontiguousarray(self.read(np.arange(at, min(at + 1024, len(self))))).tobytes())
        for i, name in enumerate(self.names):
            sha.update(f"{chr(0) if i else ''}{name}".encode())
        if self.labels is not None:
            sha.update(self.labels.tobytes())
        if self.scores is not None:
            sha.update(self.scores.tobytes())
        return sha.hexdigest()[:16]


def item_hash(image: np.ndarray) -> int:
    """64 bits of the BLAKE2b of an image's values. (H, W, C)"""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest(), "little")


def _blocks_of(blocks: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
    """Where shards begin among some of their records; None where these are not in the order they lie in."""
    if blocks is None or (np.diff(index) < 0).any():
        return None
    return np.unique(np.searchsorted(index, blocks))


@dataclass(frozen=True)
class Splits:
    """A source as it comes: what may be trained on and, where it has its own, what judges."""

    train: Source
    test: Source | None = None


def aligned(train: Source, test: Source | None, where: str) -> Splits:
    """Two parts of one data set: of one shape, the test labels in the training part's numbers.

    A part's own numbers come from the labels it happens to hold: where ``c`` is 2 among a, b, c, it is 1 among
    a, c. Raises where the shapes differ, or where the test part has a class that the training part has not.
    """
    if test is None:
        return Splits(train)
    if test.shape != train.shape:
        said, mine = ("×".join(map(str, s)) for s in (test.shape, train.shape))
        raise UserError(f"{where}: test images are {said}, training images {mine}: pass --image-size")
    if train.classes is None or test.classes is None or test.classes == train.classes:
        return Splits(train, test)
    return Splits(train, in_numbers_of(train, test, where))


def in_numbers_of(train: Any, test: Any, where: str) -> Any:
    """A labelled part with its labels in another's numbers. Raises where it has a class that the other has not."""
    new = [c for c in test.classes if c not in train.classes]
    if new:
        raise UserError(f"{where}: test class {new[0]!r} is not among the training classes: add or remove it")
    to = np.array([train.classes.index(c) for c in test.classes], dtype=np.int64)  # (K of test,)
    return dataclasses.replace(test, labels=to[test.labels], classes=train.classes)


def shown(name: object) -> str:
    """A name fit for one line of output: escaped where it holds line breaks or bytes that are no text."""
    text = str(name)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}…"


class Numbers(Sequence):
    """``"0", "1", …`` as names, without holding them."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> str:
        if not -self._n <= i < self._n:
            raise IndexError(i)
        return str(range(self._n)[i])


def encode_labels(
    raw: object, n: int, where: str, classes: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of any kind to 0..K-1 and their names. -> (n,) int64, K names

    Given ``classes``, integers are indices into them. Raises where there are not ``n`` of them, or where one
    is negative or not a whole number.
    """
    try:
        y = np.asarray(raw)
    except ValueError:
        raise UserError(f"{where}: labels are lists of different lengths: give one label an image, (N,)") from None
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise UserError(f"{where}: labels are of shape {y.shape}: give one label an image, (N,)")
    if len(y) != n:
        raise UserError(f"{where}: {len(y)} labels for {n} images: give one label an image")
    if y.dtype.kind == "f":
        if not np.isfinite(y).all() or (y != np.round(y)).any():
            first = int(np.flatnonzero(~(np.isfinite(y) & (y == np.round(y))))[0])
            raise UserError(f"{where}: label {first} is {y[first]}: labels are classes, give whole numbers or names")
        y = y.astype(np.int64)
    if y.dtype.kind in "iu" and len(y) and y.min() < 0:
        raise UserError(f"{where}: label {int(np.argmin(y))} is {y.min()}: labels must not be negative")
    if classes is not None and y.dtype.kind in "iub":
        if len(y) and y.max() >= len(classes):
            raise UserError(f"{where}: label {y.max()} has no name among the {len(classes)} classes")
        return y.astype(np.int64), tuple(map(str, classes))
    if y.dtype.kind == "O":
        missing = np.array([v is None or v != v for v in y], dtype=bool)
        if missing.any():
            raise UserError(f"{where}: label {int(missing.argmax())} is {y[missing.argmax()]}: drop it or name it")
    if y.dtype.kind not in "iubUSO":
        raise UserError(f"{where}: labels of type {y.dtype}: give whole numbers or names")
    kinds, codes = np.unique(y.astype(str) if y.dtype.kind in "SO" else y, return_inverse=True)
    return codes.astype(np.int64), tuple(str(k) for k in kinds)


def by_class(labels: np.ndarray) -> list[np.ndarray]:
    """The records of each class there is, in their order; classes in theirs. (N,) -> K index arrays"""
    order = np.argsort(labels, kind="stable")  # (N,)
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def hold_out(source: Source, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split a source's indices, class by class, into training and test. -> two sorted index arrays

    The test part has ``round(share · N)`` records, shared out among the classes by their sizes, what is left
    over going to the largest remainders; each class keeps at least one for training.
    """
    if not 0 <= share < 1:
        raise UserError(f"hold out {share}: give a share of at least 0 and below 1")
    rng = np.random.default_rng([seed, 0x5117])
    y = np.zeros(len(source), np.int64) if source.labels is None else source.labels
    members = [rng.permutation(held) for held in by_class(y)]
    sizes = np.array([len(m) for m in members], dtype=np.int64)  # (K,)
    take = np.floor(share * sizes).astype(np.int64)
    left = round(share * len(source)) - int(take.sum())
    order = np.lexsort((rng.random(len(sizes)), -(share * sizes - take)))  # largest remainder first, ties by lot
    order = order[sizes[order] > take[order] + 1]  # one stays for training
    take[order[:left]] += 1
    held = np.sort(np.concatenate([m[:n] for m, n in zip(members, take)] or [np.empty(0, np.int64)]))
    return np.setdiff1d(np.arange(len(source)), held), held.astype(np.int64)
