"""Do clusters found without labels agree with the classes."""

from __future__ import annotations

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate.intervals import of_statistic
from nearfar.evaluate.records import Result
from nearfar.evaluate.retrieval import unit


def purity(y: np.ndarray, found: np.ndarray) -> float:
    r""":math:`\frac1N\sum_k\max_c |\{i: found_i = k, y_i = c\}|`: the share whose class is its cluster's commonest.

    >>> purity(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 7]))
    0.75
    """
    _, a = np.unique(y, return_inverse=True)
    _, b = np.unique(found, return_inverse=True)
    table = np.zeros((b.max() + 1, a.max() + 1), np.int64)
    np.add.at(table, (b, a), 1)
    return float(table.max(1).sum() / len(y))


def agreement(y: np.ndarray, found: np.ndarray, *, seed: int = 0, times: int = 200) -> dict[str, Result]:
    """NMI, AMI, ARI (scikit-learn's) and purity of clusters against classes; bootstrap over items. (N,), (N,)"""
    from sklearn import metrics

    y, found = np.asarray(y), np.asarray(found)
    if y.shape != found.shape or y.ndim != 1 or not len(y):
        raise UserError(f"{found.shape} clusters for {y.shape} classes: give one each, (N,)")
    measures = {"NMI": metrics.normalized_mutual_info_score, "AMI": metrics.adjusted_mutual_info_score,
                "ARI": metrics.adjusted_rand_score, "purity": purity}  # fmt: skip
    out = {}
    for name, f in measures.items():
        draws = min(times, 20) if name == "AMI" else times  # its chance correction is slow
        low, high = of_statistic(lambda rows, f=f: float(f(y[rows], found[rows])), len(y), seed, draws)
        out[name] = Result(name, float(f(y, found)), low, high, len(y), {"bootstrap": draws})
    return out


def clustering(z: np.ndarray, y: np.ndarray, *, k: int = 0, seed: int = 0, times: int = 200) -> dict[str, Result]:
    """k-means on unit rows (scikit-learn's, 10 starts), as many clusters as classes, and their agreement with these.

    Nothing but ``k`` is taken from the labels. z (N, d), y (N,)
    """
    from sklearn.cluster import KMeans

    k = k or len(np.unique(y))
    if not 1 <= k <= len(z):
        raise UserError(f"{k} clusters of {len(z)} rows: give 1 to {len(z)}")
    if not np.isfinite(z).all():
        raise UserError(f"{int((~np.isfinite(z)).sum())} features are NaN or infinite")
    found = KMeans(k, n_init=10, random_state=seed).fit_predict(unit(z))
    return agreement(y, found, seed=seed, times=times)
