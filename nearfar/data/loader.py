"""Batches by step: which images a step sees is a function of the seed and the step alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from nearfar.data.apart import Apart
from nearfar.data.order import Order
from nearfar.data.source import Pending, Source, by_class
from nearfar.errors import UserError

_BEGUN = 6  # batches of a source that is decoded as it is read that workers are at, or have ready


@dataclass(frozen=True)
class Batch:
    """What one step sees."""

    index: np.ndarray  # (B,) of the records in the source
    content: np.ndarray  # (B, H, W, C), or (B, S, L) tokens
    label: np.ndarray | None  # (B,) classes, or scores of pairs


class Loader:
    """Batches of a source in a shuffled order that is new each epoch; what is over at an epoch's end is left out.

    The order is ``Order``'s: of all records, or of a few shards' at a time where a source lies in shards.
    Any step's batch can be asked for at any time, so going on after an interruption needs no state. With
    several processes each takes its contiguous share of the same global batch of ``batch_size``.

    ``per_class``: K above 0 makes batches of P = batch / K classes with K images each, drawn anew for every step, as
    losses on labelled pairs and triplets want them: each class as often as any other, however many images it has.
    What does not divide gives the first classes one image more; where there are fewer than P classes, all of them
    come with more images each.

    Of a source with ``apart`` no two rows that share a number share a batch, as a text that comes twice would be its
    own negative; what finds no place in an epoch is left out of it. Where no two rows are alike all is as without.

    ``workers`` threads read ahead; with 0 of them each batch is read when it is asked for.
    """

    def __init__(
        self, source: Source, batch_size: int, seed: int, rank: int = 0, world: int = 1, *, per_class: int = 0,
        workers: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch {batch_size}: pass --batch 1 or more")
        if batch_size > len(source):
            items = "texts" if len(source.shape) == 2 else "images"
            raise UserError(
                f"batch {batch_size} is larger than the {len(source)} training {items}: "
                f"pass --batch {len(source)} or less"
            )
        if batch_size % world:
            near = max(world, batch_size // world * world)
            raise UserError(f"batch {batch_size} does not divide among {world} processes: pass --batch {near}")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.rank, self.world = rank, world
        self.steps_per_epoch = len(source) // batch_size
        self._workers = workers
        self._classes = _balanced_classes(source, batch_size) if per_class else []
        self._per_class = per_class
        self._order = Order(len(source), seed, source.blocks)
        self._apart = None if source.apart is None or per_class else _apart(source.apart, batch_size)
        self._arranged: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))  # of one epoch
        if self._apart is not None:
            self.steps_per_epoch = self._apart.batches

    def indices(self, step: int) -> np.ndarray:
        """The records of this process's part of a step. (B / world,)"""
        mine = self.batch_size // self.world
        if self._classes:
            return self._balanced(step)[self.rank * mine : (self.rank + 1) * mine]
        epoch, at = divmod(step, self.steps_per_epoch)
        start = at * self.batch_size + self.rank * mine
        if self._apart is not None:
            return self._epoch(epoch)[start : start + mine]
        return self._order.at(epoch, start, start + mine)

    def _epoch(self, epoch: int) -> np.ndarray:
        """All batches of an epoch in which some rows must not meet. (steps · B,)"""
        held, rows = self._arranged  # one read, as the thread that reads ahead may be in another epoch
        if held != epoch:
            rows = self._apart.arranged(self._order.at(epoch, 0, len(self.source)))
            self._arranged = epoch, rows
        return rows

    def _balanced(self, step: int) -> np.ndarray:
        """P classes with batch / P images each, a class smaller than that with some twice. (B,)"""
        rng = np.random.default_rng([self.seed, step, 1])
        p = min(len(self._classes), max(2, self.batch_size // self._per_class))
        chosen = [self._classes[c] for c in rng.choice(len(self._classes), p, replace=False)]
        sizes = [len(part) for part in np.array_split(np.arange(self.batch_size), p)]
        rows = np.concatenate([_drawn(rng, held, n) for held, n in zip(chosen, sizes)])
        return rows[rng.permutation(len(rows))]

    def batch(self, step: int) -> Batch:
        return self._take(self._begin(step))

    def _begin(self, step: int) -> tuple[np.ndarray, Pending]:
        index = self.indices(step)
        return index, self.source.start(index)

    def _take(self, begun: tuple[np.ndarray, Pending]) -> Batch:
        index, pending = begun
        labels = self.source.labels if self.source.scores is None else self.source.scores
        return Batch(index, pending.result(), None if labels is None else labels[index])

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches from ``start`` on, in order, read ahead by the workers, which end when the iterator is closed."""
        steps = count(start) if stop is None else iter(range(start, stop))
        if not self._workers:
            yield from map(self.batch, steps)
            return
        ahead = max(_BEGUN if self.source.starter else 0, 1 + self._workers)
        pool, begun = ThreadPoolExecutor(self._workers, "nearfar-loader"), deque()
        try:
            while True:
                for step in islice(steps, ahead - len(begun)):
                    index, pending = self._begin(step)  # of a source that is decoded, decoders are at it from now on
                    begun.append((pending, pool.submit(self._take, (index, pending))))
                if not begun:
                    return
                yield begun.popleft()[1].result()
        finally:
            for pending, _ in begun:
                pending.cancel()
            pool.shutdown(cancel_futures=True)


def _balanced_classes(source: Source, batch_size: int) -> list[np.ndarray]:
    """The records of each class there is, for batches of P classes with K images each."""
    if source.labels is None:
        raise UserError("batches of P classes with K images each need labels: this source has none")
    if batch_size < 4:
        raise UserError(f"batch {batch_size} has no room for two classes with two images each: pass --batch 4 or more")
    kinds = by_class(source.labels)
    if len(kinds) < 2:
        raise UserError("batches of P classes need at least two; all labels are the same")
    return kinds


def _apart(numbers: np.ndarray, batch_size: int) -> Apart | None:
    """What keeps rows apart; None where no two are alike."""
    apart = Apart(numbers, batch_size)
    if not apart.is_idle and not apart.batches:
        raise UserError(
            f"batch {batch_size}: too many of the {len(numbers)} training texts have something in common, and what is "
            f"alike is kept apart: pass --batch {apart.largest} or less"
        )
    return None if apart.is_idle else apart


def _drawn(rng: np.random.Generator, held: np.ndarray, n: int) -> np.ndarray:
    """n of these rows, none once more than another before all have come as often. (n,)"""
    rounds, rest = divmod(n, len(held))
    return np.concatenate([np.tile(held, rounds), rng.choice(held, rest, replace=False)])
