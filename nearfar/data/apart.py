"""Batches without false negatives: rows that are alike do not meet in one."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from itertools import chain

import numpy as np


def joined(numbers: np.ndarray) -> np.ndarray:
    """A number a row, the same for rows that share one in any column, directly or by way of others. (N, C) -> (N,)"""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n, columns = numbers.shape
    values, codes = np.unique(numbers, return_inverse=True)
    rows = np.repeat(np.arange(n), columns)
    graph = coo_matrix((np.ones(n * columns, bool), (rows, codes.ravel() + n)), shape=(n + len(values),) * 2)
    return connected_components(graph, directed=False)[1][:n].astype(np.int64)


class Apart:
    """An epoch's order with rows that share a number in different batches, each row once at most.

    Args:
        numbers: (N,), or (N, C): two rows that share a number, in whichever of the columns, do not meet.
        batch: rows a batch.

    ``batches`` is how many there are in an epoch: the same in every one, whatever the order. What finds no place in
    them is left out of the epoch; which rows these are is the order's to say.

    Of one column that is the largest m with Σ_c min(n_c, m) ≥ m · batch, n_c the rows of number c: more cannot be
    made, and so many can, by dealing the rows out, number by number. Of several, sharing is no equivalence: (a, b),
    (b, c) and (c, d) are a chain whose ends may meet. There at most k rows of a number are taken, n in all, so that a
    row is like D = C (k - 1) others at most. Rows like one of an open batch's are at most D · (batch - 1), so that

    - m ≤ (n - D (batch - 1)) / batch batches can be filled: of more rows that wait than that, one fits;
    - m = n / batch can where m ≥ 2 D: the batches that a waiting row may be in have (m - D) · batch rows, which are
      more than that, and one of them that fits the open batch goes there and leaves its place to the one that waits.

    Where more batches come of keeping whole chains apart, that is done.

    >>> Apart(np.array([7, 7, 8, 9]), batch=2).arranged(np.arange(4)).reshape(-1, 2)
    array([[0, 2],
           [1, 3]])
    """

    def __init__(self, numbers: np.ndarray, batch: int) -> None:
        self.batch = batch
        codes = np.unique(numbers, return_inverse=True)[1].reshape(len(numbers), -1)  # (N, C)
        self._codes = _once_a_row(codes)
        self._chains = joined(codes) if codes.shape[1] > 1 else codes[:, 0]
        self.different = int(self._chains.max(initial=-1)) + 1
        self.batches, self._most = _most_batches(np.bincount(self._chains), batch), 0
        if codes.shape[1] > 1 and self.batches < len(codes) // batch:
            batches, most = max((_sure(n, alike, batch), k) for k, n, alike in _taken(self._codes))
            if batches > self.batches:
                self.batches, self._most = batches, most

    @property
    def largest(self) -> int:
        """Rows of the largest batch that is sure."""
        if self._codes.shape[1] == 1:
            return self.different
        return max(self.different, *((n + alike) // (1 + alike) for _, n, alike in _taken(self._codes)))

    @property
    def is_idle(self) -> bool:
        """No two rows share a number."""
        return self.different == len(self._chains)

    def arranged(self, order: np.ndarray) -> np.ndarray:
        """Batch after batch, of a permutation of the rows. (N,) -> (batches · batch,)"""
        if not self._most:
            return _dealt(order, self._chains, self.batches, self.batch)
        rows = order[_first_of_each(self._codes[order], self._most).all(1)]
        to = _placed(self._codes[rows], self.batches, self.batch)  # (n,)
        return rows[np.argsort(to, kind="stable")[np.count_nonzero(to < 0) :]]


def _most_batches(counts: np.ndarray, batch: int) -> int:
    """The largest m with Σ_c min(n_c, m) ≥ m · batch; as the left is concave in m, all below it do, too."""
    low, high = 0, int(counts.sum()) // batch
    while low < high:
        m = (low + high + 1) // 2
        low, high = (m, high) if int(np.minimum(counts, m).sum()) >= m * batch else (low, m - 1)
    return low


def _dealt(order: np.ndarray, number: np.ndarray, batches: int, batch: int) -> np.ndarray:
    """Rows of shared numbers are dealt to the batches in turn, number by number; the others fill these up in order.

    A number has at most ``batches`` rows, and so many that follow each other lie in different ones.
    """
    order = order[_first_of_each(number[order, None], batches)[:, 0]][: batches * batch]
    _, first, codes, counts = np.unique(number[order], return_index=True, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[codes] > 1)  # places in the order
    shared = shared[np.argsort(first[codes[shared]], kind="stable")]  # number by number, as they first come
    turn = np.argsort(order[:batches], kind="stable")  # a permutation of the batches, new with each order
    to = np.full(len(order), -1)
    to[shared] = turn[np.arange(len(shared)) % batches]
    to[to < 0] = np.repeat(np.arange(batches), batch - np.bincount(to[shared], minlength=batches))
    return order[np.argsort(to, kind="stable")]


def _first_of_each(codes: np.ndarray, most: int) -> np.ndarray:
    """Which are among the first ``most`` of their number, row by row. (N, C) -> (N, C) bool"""
    flat = codes.ravel()
    by = np.argsort(flat, kind="stable")
    begins = np.flatnonzero(np.diff(flat[by], prepend=-1))
    rank = np.arange(len(by)) - np.repeat(begins, np.diff(np.append(begins, len(by))))
    out = np.empty(len(by), bool)
    out[by] = rank < most
    return out.reshape(codes.shape)


def _once_a_row(codes: np.ndarray) -> np.ndarray:
    """A number that a row has twice counts once: in the later columns a new one stands for it. (N, C) -> (N, C)"""
    out, new = codes.copy(), int(codes.max()) + 1
    for c in range(1, codes.shape[1]):
        again = np.flatnonzero((codes[:, :c] == codes[:, c : c + 1]).any(1))
        out[again, c] = np.arange(new, new + len(again))
        new += len(again)
    return out


def _taken(codes: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """For k rows of a number at most: k, how many rows are then taken of any order, at least, and D. (N, C)"""
    counts = np.bincount(codes.ravel())
    most = [int(counts[column].max()) for column in codes.T]
    counts, k = counts[counts > 1], 0
    while k < max(most):
        k = min(k + 1 + k // 16, max(most))
        yield k, len(codes) - int(np.maximum(counts - k, 0).sum()), sum(min(n, k) - 1 for n in most)


def _sure(n: int, alike: int, batch: int) -> int:
    """How many batches n rows make in any order, each of which is like so many others at most."""
    return n // batch if n // batch >= 2 * alike else max(0, (n - alike * (batch - 1)) // batch)


def _placed(codes: np.ndarray, batches: int, batch: int) -> np.ndarray:
    """The batch of each row by its place, but for rows whose like is there: they go to the next that is open.

    codes: (n, C) of rows that are like few enough others. -> (n,), -1 for rows that are left out
    """
    home = np.arange(len(codes)) // batch
    met = codes * (int(home[-1]) + 1) + home[:, None]  # (n, C): a number in a batch
    to = np.where(_first_of_each(met, 1).all(1) & (home < batches), home, -1)
    room = batch - np.bincount(to[to >= 0], minlength=batches)
    like = _Like(codes)
    opened = np.flatnonzero(room).tolist()  # in order
    for row in np.flatnonzero((to < 0) & (home < batches)).tolist():
        barred = set(to[like(row)].tolist())
        at = bisect(opened, int(home[row]))
        free = next((b for b in chain(opened[at:], opened[:at]) if b not in barred), None)
        if free is not None:
            to[row] = free
            room[free] -= 1
            if not room[free]:
                opened.remove(free)
    for b in opened:
        room[b] -= _filled(codes, to, b, int(room[b]))
    for b in np.flatnonzero(room).tolist():
        for _ in range(int(room[b])):
            _exchange(codes, to, b, like)
    return to


class _Like:
    """Rows that share a number with one. codes (n, C)"""

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes
        self.by = np.argsort(codes.ravel(), kind="stable") // codes.shape[1]  # rows, number by number
        self.ends = np.concatenate([[0], np.cumsum(np.bincount(codes.ravel()))])

    def __call__(self, row: int) -> np.ndarray:
        return np.concatenate([self.by[self.ends[c] : self.ends[c + 1]] for c in self.codes[row]])


def _fits(codes: np.ndarray, to: np.ndarray, b: int) -> np.ndarray:
    """Which rows share no number with one of this batch's. -> (n,) bool"""
    there = np.zeros(int(codes.max()) + 1, bool)
    there[codes[to == b]] = True
    return ~there[codes].any(1)


def _filled(codes: np.ndarray, to: np.ndarray, b: int, room: int) -> int:
    """Rows that wait go to an open batch where they fit, the first come first; how many."""
    seen: set[int] = set()
    held = 0
    for row in np.flatnonzero((to < 0) & _fits(codes, to, b)).tolist():
        if held == room:
            break
        numbers = set(codes[row].tolist())
        if not numbers & seen:
            seen |= numbers
            to[row] = b
            held += 1
    return held


def _exchange(codes: np.ndarray, to: np.ndarray, b: int, like: _Like) -> None:
    """A row of another batch goes to the open one, and its place to one that waits."""
    fits = _fits(codes, to, b)
    for row in np.flatnonzero(to < 0).tolist():
        can = fits & ~np.isin(to, [*to[like(row)], -1, b])
        if can.any():
            other = int(can.argmax())
            to[row], to[other] = to[other], b
            return
    raise AssertionError("more rows are alike than was reckoned with")
