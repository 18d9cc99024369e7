"""Do clusters found without labels agree with the classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import entr

from nearfar.errors import UserError
from nearfar.evaluate.records import Result, of_draws
from nearfar.evaluate.retrieval import unit
from nearfar.evaluate.sparse import not_finite


def purity(y: np.ndarray, found: np.ndarray) -> float:
    r""":math:`\frac1N\sum_k\max_c |\{i: found_i = k, y_i = c\}|`: the share whose class is its cluster's commonest.

    >>> purity(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 7]))
    0.75
    """
    return _of_table(_table(*_coded(y, found)))["purity"]


def _coded(y: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Class and cluster of each item as one number. -> (N,), classes, clusters"""
    kinds, a = np.unique(y, return_inverse=True)
    groups, b = np.unique(found, return_inverse=True)
    return a * len(groups) + b, len(kinds), len(groups)


def _table(code: np.ndarray, kinds: int, groups: int) -> np.ndarray:
    """How many items of each class lie in each cluster; what is empty is left out. -> (classes, clusters)"""
    table = np.bincount(code, minlength=kinds * groups).reshape(kinds, groups)
    return table[table.any(1)][:, table.any(0)]


def _of_table(table: np.ndarray) -> dict[str, float]:
    """NMI and AMI (by the mean of both entropies), ARI, purity: scikit-learn's, from counts alone."""
    from sklearn.metrics.cluster import expected_mutual_information

    n, a, b = int(table.sum()), table.sum(1), table.sum(0)
    p = table[table > 0] / n
    mutual = max(0.0, float((p * np.log(p / (np.outer(a, b)[table > 0] / n**2))).sum()))
    mean = float((entr(a / n).sum() + entr(b / n).sum()) / 2)
    chance = float(expected_mutual_information(table, n))
    pairs = [float((c * (c - 1.0)).sum() / 2) for c in (table, a, b)]  # together in both, in the classes, the clusters
    by_luck = pairs[1] * pairs[2] / (n * (n - 1) / 2) if n > 1 else 0.0
    spread = (pairs[1] + pairs[2]) / 2 - by_luck
    one = len(a) == len(b) == 1 or len(a) == len(b) == n  # one group, or each item its own, on both sides: the same
    return {"NMI": 1.0 if one else mutual / mean, "AMI": 1.0 if one else (mutual - chance) / (mean - chance),
            "ARI": 1.0 if one else (pairs[0] - by_luck) / spread, "purity": float(table.max(0).sum() / n)}  # fmt: skip


def agreement(y: np.ndarray, found: np.ndarray, *, seed: int = 0, times: int = 200) -> dict[str, Result]:
    """NMI, AMI, ARI and purity of clusters against classes; ``times`` bootstrap draws over items. (N,), (N,)"""
    y, found = np.asarray(y), np.asarray(found)
    if y.shape != found.shape or y.ndim != 1 or not len(y):
        raise UserError(f"{found.shape} clusters for {y.shape} classes: give one each, (N,)")
    code, kinds, groups = _coded(y, found)
    rng, n = np.random.default_rng(seed), len(y)
    rows = [_of_table(_table(code[rng.integers(0, n, n)], kinds, groups)) for _ in range(times)]
    values = _of_table(_table(code, kinds, groups))
    found = of_draws(values, {name: np.array([r[name] for r in rows]) for name in values}, n)
    return {name: replace(r, detail={"bootstrap": times}) for name, r in found.items()}


def clustering(z: np.ndarray, y: np.ndarray, *, k: int = 0, seed: int = 0, times: int = 200) -> dict[str, Result]:
    """k-means on unit rows (scikit-learn's, 10 starts), as many clusters as classes, and their agreement with these.

    Nothing but ``k`` is taken from the labels. z (N, d), y (N,)
    """
    from sklearn.cluster import KMeans

    k = k or len(np.unique(y))
    if not 1 <= k <= z.shape[0]:
        raise UserError(f"{k} clusters of {z.shape[0]} rows: give 1 to {z.shape[0]}")
    if not_finite(z):
        raise UserError(f"{not_finite(z)} features are NaN or infinite")
    found = KMeans(k, n_init=10, random_state=seed).fit_predict(unit(z))
    return agreement(y, found, seed=seed, times=times)
