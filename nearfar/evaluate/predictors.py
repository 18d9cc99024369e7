"""How well a label-free measure tells which embedding a probe will read best."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate.intervals import of_statistic
from nearfar.evaluate.records import Result


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    r"""Spearman's ρ: Pearson's correlation of the ranks, ties sharing theirs; NaN where all of one are alike.

    .. math:: \rho=1-\frac{6\sum_i (r_i-s_i)^2}{n(n^2-1)}\quad\text{(without ties)}

    (n,), (n,)

    >>> spearman(np.array([1, 2, 3]), np.array([1, 8, 27]))
    1.0
    """
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    r"""Kendall's τ-b: pairs in one order less pairs in the other, ties reckoned with; NaN where all of one are alike.

    .. math:: \tau=\frac{\sum_{ij} a_{ij} b_{ij}}{\sqrt{\sum_{ij} a_{ij}^2 \sum_{ij} b_{ij}^2}},\quad
              a_{ij}=\mathrm{sign}(x_i-x_j),\ b_{ij}=\mathrm{sign}(y_i-y_j)

    (n,), (n,)

    >>> kendall(np.array([1, 2, 3]), np.array([3, 2, 1]))
    -1.0
    """
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def predictive(
    measures: Mapping[str, np.ndarray], scores: np.ndarray, *, seed: int = 0,
    correlation: Callable[[np.ndarray, np.ndarray], float] = spearman,
) -> dict[str, Result]:  # fmt: skip
    r"""Rank correlation of each measure with the scores, over embeddings, with its interval over embeddings.

    The interval draws embeddings again with replacement; embeddings of one method or one source are not independent,
    so it is on the narrow side. Embeddings without a value (NaN) are left out of that measure's. ``correlation`` is
    :func:`spearman` or :func:`kendall`.
    measures {name: (n,)}, scores (n,), e.g. linear probe accuracies. Raises for fewer than five embeddings.

    >>> other = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5.0])
    >>> found = predictive({"rank": np.arange(9.0), "other": other}, np.arange(9.0) ** 2)
    >>> round(found["rank"].value, 6), round(found["other"].value, 2)
    (1.0, 0.55)
    """
    scores = np.asarray(scores, np.float64)
    out = {}
    for name, values in measures.items():
        values = np.asarray(values, np.float64)
        if values.shape != scores.shape or scores.ndim != 1:
            raise UserError(f"{name}: {values.shape} values for {scores.shape} scores: give one each")
        held = np.isfinite(values) & np.isfinite(scores)
        x, y = values[held], scores[held]
        if len(x) < 5:
            raise UserError(f"{name}: {len(x)} embeddings: give five or more, a correlation of fewer says nothing")
        low, high = of_statistic(lambda rows, x=x, y=y: correlation(x[rows], y[rows]), len(x), seed)
        out[name] = Result(name, correlation(x, y), low, high, len(x))
    return out
