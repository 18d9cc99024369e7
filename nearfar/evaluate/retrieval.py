"""Exact nearest neighbours by cosine, a chunk of queries at a time."""

from __future__ import annotations

import numpy as np


def unit(z: np.ndarray) -> np.ndarray:
    """Rows of length one (rows of zeros stay zero). (N, d) -> (N, d) float32"""
    z = np.asarray(z, dtype=np.float32)
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def neighbours(
    query: np.ndarray, bank: np.ndarray, k: int, *, exclude_self: bool = False, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows of ``bank`` with the largest cosine to each query; ties go to the lower index.

    Args:
        query: (Q, d). bank: (N, d). exclude_self: leave row i out for query i (query and bank are the same).

    Returns indices (Q, k) and cosines (Q, k), falling.

    >>> import numpy as np
    >>> neighbours(np.eye(2), np.array([[1.0, 0.1], [0.0, 2.0]]), 1)[0].tolist()
    [[0], [1]]
    """
    q, b = unit(query), unit(bank)
    k = min(k, len(b) - exclude_self)
    index, cosine = np.empty((len(q), k), np.int64), np.empty((len(q), k), np.float32)
    for at in range(0, len(q), chunk):
        s = q[at : at + chunk] @ b.T  # (chunk, N)
        if exclude_self:
            rows = np.arange(len(s))
            s[rows, at + rows] = -np.inf
        if k < s.shape[1]:  # what is above the k-th value, and of its equals the first
            kth = -np.partition(-s, k - 1, axis=1)[:, k - 1 : k]
            s = np.where(s >= kth, s, -np.inf)
        order = np.argsort(-s, axis=1, kind="stable")[:, :k]
        index[at : at + chunk] = order
        cosine[at : at + chunk] = np.take_along_axis(s, order, 1)
    return index, cosine
