"""The order of an epoch: a function of seed and epoch alone, asked for in pieces, in bounded memory."""

from __future__ import annotations

import numpy as np

PLAIN = 2**24  # records up to which a permutation is drawn and held, 8 bytes each
WINDOW = 16  # shards whose records are mixed with one another
_ROUNDS = 6


class Order:
    """Which record comes at which place of which epoch.

    Without blocks every order of up to 2^24 records is equally likely; above that it is a keyed Feistel network's, of
    which no part but the one asked for is ever made. With ``blocks`` the shards come in an order that is new each
    epoch, and the records of ``WINDOW`` shards at a time are shuffled together, so that what is read lies close.

    >>> sorted(Order(5, seed=0).at(epoch=3, start=0, stop=5).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, seed: int, blocks: np.ndarray | None = None, window: int = WINDOW) -> None:
        self.n, self.seed, self.window = n, seed, window
        self.blocks = None if blocks is None or len(blocks) < 3 else blocks  # (S + 1,) where shards begin, and n
        self._held: tuple[tuple[int, ...], np.ndarray] = ((), np.empty(0, np.int64))
        self._laid: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def at(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """The records at places ``start`` to ``stop`` of an epoch. (stop - start,)"""
        if self.blocks is None:
            return self._permuted(self.n, np.arange(start, stop), (self.seed, epoch))
        shards, ends = self._layout(epoch)
        out = []
        while start < stop:
            window = int(np.searchsorted(ends, start, "right"))
            begin = int(ends[window - 1]) if window else 0
            until = min(stop, int(ends[window]))
            size = int(ends[window]) - begin
            place = self._permuted(size, np.arange(start - begin, until - begin), (self.seed, epoch, 2, window))
            out.append(self._records(shards[window * self.window : (window + 1) * self.window], place))
            start = until
        return np.concatenate(out) if out else np.empty(0, np.int64)

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of shards, and where each window of them ends. (S,), (windows,)"""
        held, shards, ends = self._laid  # one read, as the thread that reads ahead may be in another epoch
        if held != epoch:
            shards = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.blocks) - 1)
            sizes = np.diff(self.blocks)[shards]
            ends = np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), self.window)))
            self._laid = (epoch, shards, ends)
        return shards, ends

    def _records(self, shards: np.ndarray, place: np.ndarray) -> np.ndarray:
        """The records that lie at these places of the shards' records end to end."""
        before = np.concatenate([[0], np.cumsum(np.diff(self.blocks)[shards])])  # (W + 1,)
        which = np.searchsorted(before, place, "right") - 1
        return self.blocks[shards[which]] + place - before[which]

    def _permuted(self, n: int, place: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
        """Where a permutation of n things puts these places; the last one that was drawn is held."""
        if n > PLAIN:
            return feistel(place, n, key)
        held, order = self._held
        if held != key:
            order = np.random.default_rng(list(key)).permutation(n)
            self._held = (key, order)
        return order[place]


def feistel(place: np.ndarray, n: int, key: tuple[int, ...]) -> np.ndarray:
    """A pseudorandom permutation of 0..n-1 at some places, in O(1) memory and time a place. (B,) -> (B,) int64

    Halves of k bits with 2^(2k) ≥ n: (L, R) -> (R, L ⊕ f(R, key_r)), six times, f a 64-bit mixer (Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", 2014). What falls outside of 0..n-1 goes through again
    until it is inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    out = np.array(place, np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & mask
        for k in keys:
            left, right = right, left ^ (_mixed(right ^ k) & mask)
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
