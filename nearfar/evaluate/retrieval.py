"""Nearest neighbours by cosine, and how well they retrieve what belongs together."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch

from nearfar.errors import UserError, nearest
from nearfar.evaluate import approximate
from nearfar.evaluate.approximate import Neighbours
from nearfar.evaluate.intervals import of_mean
from nearfar.evaluate.records import Result
from nearfar.evaluate.sparse import is_sparse, products, unit_rows

ENGINES = ("auto", "exact", "faiss")
EXACT_UP_TO = 10**13  # products


def unit(z: np.ndarray) -> np.ndarray:
    """Rows of length one (rows of zeros stay zero). (N, d) -> (N, d) float32, or CSR float64 of sparse rows"""
    if is_sparse(z):
        return unit_rows(z)
    z = np.asarray(z, dtype=np.float32)
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def neighbours(
    query: np.ndarray, bank: np.ndarray, k: int, *, exclude_self: bool = False, chunk: int = 1024, engine: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows of ``bank`` with the largest cosine to each query; ties go to the lower index.

    Args:
        query: (Q, d). bank: (N, d), both dense or both SciPy's sparse.
        exclude_self: leave row i out for query i (query and bank are the same).
        engine: as for :func:`find`.

    Returns indices (Q, k) and cosines (Q, k), falling.

    >>> import numpy as np
    >>> neighbours(np.eye(2), np.array([[1.0, 0.1], [0.0, 2.0]]), 1)[0].tolist()
    [[0], [1]]
    """
    found = find(query, bank, k, exclude_self=exclude_self, chunk=chunk, engine=engine)
    return found.index, found.cosine


def find(
    query: np.ndarray, bank: np.ndarray, k: int, *, exclude_self: bool = False, chunk: int = 1024, engine: str = "auto"
) -> Neighbours:
    """As :func:`neighbours`, with which search it was and its recall, measured against the exact one.

    engine: ``"exact"``; ``"faiss"``, which looks at part of the bank and misses about one neighbour in a hundred
    at most (extra ``faiss``); ``"auto"``, exact up to 10¹³ products Q · N · d, beyond that faiss where it is installed.
    """
    q, b = unit(query), unit(bank)
    n, k = q.shape[0], min(k, b.shape[0] - exclude_self)
    if not is_sparse(q) and engine_of(n, *b.shape, engine) == "faiss":
        return approximate.search(q, b, k, itself=exclude_self)
    of, index, cosine = products(q, b), np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for at in range(0, n, chunk):
        s = of(slice(at, at + chunk))  # (chunk, N)
        if exclude_self:
            rows = torch.arange(len(s))
            s[rows, at + rows] = -torch.inf
        index[at : at + chunk], cosine[at : at + chunk] = largest(s, k)
    return Neighbours(index, cosine, "exact", 1.0)


def engine_of(queries: int, rows: int, dimensions: int, engine: str = "auto") -> str:
    """Which search is made: ``"exact"`` or ``"faiss"``. Raises ``UserError`` for an unknown engine."""
    if engine not in ENGINES:
        raise UserError(f"engine {engine!r}{nearest(engine, ENGINES)}")
    if engine != "auto":
        return engine
    large = queries * rows * dimensions > EXACT_UP_TO
    return "faiss" if large and importlib.util.find_spec("faiss") is not None else "exact"


def largest(s: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row, equals by the lower index. (Q, N) -> (Q, k), (Q, k)"""
    n = s.shape[1]
    values, index = s.topk(min(k + 1, n), dim=1)  # one more, to see a tie across the edge
    for row in torch.nonzero(values[:, k - 1] == values[:, k]).flatten().tolist() if k < n else ():
        above, equal = (torch.nonzero(f(s[row], values[row, k])).flatten() for f in (torch.gt, torch.eq))
        index[row, :k] = torch.cat([above, equal])[:k]
    index = index[:, :k].sort(dim=1).values
    values, order = s.gather(1, index).sort(dim=1, descending=True, stable=True)
    return index.gather(1, order).numpy(), values.numpy()


def retrieval(
    query: np.ndarray, y_query: np.ndarray, bank: np.ndarray | None = None, y_bank: np.ndarray | None = None, *,
    ks: tuple[int, ...] = (1, 5, 10), seed: int = 0, chunk: int = 1024,
) -> dict[str, Result]:  # fmt: skip
    r"""How near a query lie the rows of its own class, over the whole ranking by cosine; means over queries.

    With :math:`r_j` 1 where the j-th neighbour is relevant, R the relevant rows of the bank and :math:`P_j` the
    precision among the first j:

    - ``recall@k``: 1 where any of the first k is relevant (the field's Recall@k, Jégou et al. 2011)
    - ``precision@k``: :math:`\frac1k\sum_{j\le k} r_j`; ``R-precision``: :math:`P_R`
    - ``MRR``: 1 / rank of the first relevant one
    - ``MAP@R``: :math:`\frac1R\sum_{j\le R} P_j r_j` (Musgrave et al. 2020, arXiv:2003.08505, eq. 4)
    - ``nDCG@k``: :math:`\sum_{j\le k} r_j/\log_2(j+1)` over its largest possible value (Järvelin & Kekäläinen 2002)

    Args:
        query, bank: (Q, d), (N, d). Without a bank each query is ranked against the other queries.
        ks: cut-offs, at most the bank's size.

    Queries of which the bank holds nothing are left out and counted: ``detail["without"]``. Intervals: bootstrap over
    queries. Raises ``UserError`` where no query has a relevant row.

    >>> z = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> retrieval(z, np.array([0, 0, 1, 1]), ks=(1,))["MAP@R"].value
    1.0
    """
    own = bank is None
    bank, y_bank = (query, y_query) if own else (bank, y_bank)
    y_query, y_bank = np.asarray(y_query), np.asarray(y_bank)
    n = bank.shape[0] - own
    for k in ks:
        if not 1 <= k <= n:
            raise UserError(f"recall@{k}: a query is ranked against {n} rows: give 1 to {n}")
    kinds, counts = np.unique(y_bank, return_counts=True)
    where = np.searchsorted(kinds, y_query).clip(max=len(kinds) - 1)
    relevant = np.where(kinds[where] == y_query, counts[where], 0) - own  # (Q,)
    rows = np.flatnonzero(relevant > 0)
    if not len(rows):
        raise UserError("no query has a row of its own class in the bank: nothing can be retrieved")
    of = products(unit(query), unit(bank))
    deep = int(max(max(ks), relevant.max()))
    parts: dict[str, list[np.ndarray]] = {}
    for at in range(0, len(rows), chunk):
        mine = rows[at : at + chunk]
        s = of(mine)  # (chunk, N)
        same = torch.as_tensor(y_bank[None] == y_query[mine, None])
        if own:
            itself = torch.arange(len(mine)), torch.as_tensor(mine)
            s[itself], same[itself] = -torch.inf, False
        best = s.masked_fill(~same, -torch.inf).max(1, keepdim=True).values
        ahead = (s > best).sum(1)  # what is nearer than the first relevant one
        column, equal = torch.arange(s.shape[1]), s == best
        first = torch.where(same & equal, column, s.shape[1]).min(1, keepdim=True).values
        ahead += (equal & (column < first)).sum(1)  # equals: the lower index first
        near, _ = largest(s, min(deep, n))
        hit = y_bank[near] == y_query[mine, None]  # (chunk, deep)
        for name, values in _of_ranking(hit, relevant[mine], ks).items():
            parts.setdefault(name, []).append(values)
        parts.setdefault("MRR", []).append(1 / (1 + ahead.numpy()))
    detail = {"queries": len(rows), "without": query.shape[0] - len(rows), "bank": n}
    out = {}
    for name, values in parts.items():
        v = np.concatenate(values).astype(np.float64)
        out[name] = Result(name, float(v.mean()), *of_mean(v, seed), len(v), detail)
    return out


def _of_ranking(hit: np.ndarray, relevant: np.ndarray, ks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Each measure of each query. hit (Q, deep) in the ranking's order, relevant (Q,)"""
    place = np.arange(1, hit.shape[1] + 1)
    found = hit.cumsum(1)  # (Q, deep)
    gain = (hit / np.log2(place + 1)).cumsum(1)
    ideal = (1 / np.log2(place + 1)).cumsum()
    rows, out = np.arange(len(hit)), {}
    for k in ks:
        out[f"recall@{k}"] = found[:, k - 1] > 0
        out[f"precision@{k}"] = found[:, k - 1] / k
        out[f"nDCG@{k}"] = gain[:, k - 1] / ideal[np.minimum(relevant, k) - 1]
    out["R-precision"] = found[rows, relevant - 1] / relevant
    inside = hit & (place <= relevant[:, None])
    out["MAP@R"] = (found / place * inside).sum(1) / relevant
    return out
