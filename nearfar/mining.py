"""Hard negatives: what an embedding takes for alike and is not the answer."""

from __future__ import annotations

import numpy as np
import torch

from nearfar.errors import UserError
from nearfar.evaluate.retrieval import largest, unit
from nearfar.evaluate.sparse import not_finite, products

_ROUNDING = 1e-6  # cosines nearer to the limit than this are equal to it
_VALUES = 2**26  # cosines held at a time


def hard_negatives(
    queries: np.ndarray, corpus: np.ndarray, positives: np.ndarray, *, count: int = 1, skip: int = 0,
    margin: float | None = 0.0, relative: bool = False, groups: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    r"""The rows of the corpus with the largest cosine to each query that are not its positive, hardest first.

    .. math:: \cos(q_i, n) < \cos(q_i, p_i) - m\quad\text{or, with relative,}\quad
              \cos(q_i, n) < \cos(q_i, p_i) - m\,|\cos(q_i, p_i)|

    A row nearer to the query than that is likelier a positive that nobody has named. ``margin=0.05, relative=True`` is
    NV-Retriever's TopK-PercPos at 95 % (Moreira et al. 2024, arXiv:2407.15831); sentence-transformers'
    ``relative_margin`` and, without ``relative``, ``absolute_margin``.

    Args:
        queries: (N, d). corpus: (M, d), both dense or both sparse. positives: (N,) rows of the corpus.
        count: how many a query. skip: how many of the hardest are left out, after the others are.
        margin: m; ``None`` takes rows however near. Equal to the limit within 1e-6 is not below it.
        groups: (M,) ids; rows of the positive's id are no negatives: its copies, its class, or the query's own row.

    Exact, at most 256 MiB of cosines at a time; equals by the lower row. Returns (N, count) int64, -1 where there is no
    further one. Raises ``UserError``.

    >>> hard_negatives(np.array([[1.0, 0.0]]), np.array([[1.0, 0.1], [1.0, 0.3], [0.0, 1.0]]), np.array([0]), count=3)
    array([[ 1,  2, -1]])
    """
    positives = _checked(queries, corpus, positives, count, skip, margin, groups)
    groups = np.arange(corpus.shape[0]) if groups is None else np.asarray(groups)
    n, m = queries.shape[0], corpus.shape[0]
    of, out = products(unit(queries), unit(corpus)), np.full((n, count), -1, np.int64)
    chunk, deep = max(1, _VALUES // m), min(count + skip, m)
    for at in range(0, n, chunk):
        own = positives[at : at + chunk]
        s = of(slice(at, at + chunk))  # (b, M)
        near = s[torch.arange(len(own)), torch.from_numpy(own)][:, None]  # (b, 1)
        out_of = torch.from_numpy(groups == groups[own][:, None])  # (b, M)
        if margin is not None:
            out_of |= s >= near - margin * (near.abs() if relative else 1) - _ROUNDING
        index, value = largest(s.masked_fill(out_of, -torch.inf), deep)
        index = np.where(np.isfinite(value), index, -1)[:, skip:]  # (b, deep - skip)
        out[at : at + chunk, : index.shape[1]] = index
    return out


def _checked(
    queries: np.ndarray, corpus: np.ndarray, positives: np.ndarray, count: int, skip: int, margin: float | None,
    groups: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    """One line for what cannot be mined. -> positives (N,) int64"""
    positives, n, m = np.asarray(positives), queries.shape[0], corpus.shape[0]
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise UserError(f"queries are {queries.shape} and the corpus is {corpus.shape}: give both the same width")
    if bad := not_finite(queries) + not_finite(corpus):
        raise UserError(f"{bad} values of queries or corpus are NaN or infinite")
    if positives.shape != (n,) or positives.dtype.kind not in "iu":
        raise UserError(f"positives {positives.shape} {positives.dtype} for {n} queries: give a row of the corpus each")
    if n and not 0 <= int(positives.min()) <= int(positives.max()) < m:
        raise UserError(f"positives run from {positives.min()} to {positives.max()}: give rows of the corpus, 0 to "
                        f"{m - 1}")  # fmt: skip
    if count < 1 or skip < 0:
        raise UserError(f"count {count} and skip {skip}: give 1 or more and 0 or more")
    if margin is not None and not np.isfinite(margin):
        raise UserError(f"margin {margin}: give a finite number, or None for no limit")
    if groups is not None and np.shape(groups) != (m,):
        raise UserError(f"groups {np.shape(groups)} for a corpus of {m} rows: give one each, ({m},)")
    return positives.astype(np.int64)
