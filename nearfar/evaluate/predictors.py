"""How well a label-free measure tells which embedding a probe will read best."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate.intervals import of_statistic
from nearfar.evaluate.records import Result


def predictive(measures: Mapping[str, np.ndarray], scores: np.ndarray, *, seed: int = 0) -> dict[str, Result]:
    r"""Spearman's rank correlation of each measure with the scores, over embeddings, with its interval over embeddings.

    .. math:: \rho=1-\frac{6\sum_i (r_i-s_i)^2}{n(n^2-1)}\quad\text{(without ties)}

    r and s are ranks. The interval draws embeddings again with replacement; embeddings of one method or one source are
    not independent, so it is on the narrow side. Embeddings without a value (NaN) are left out of that measure's.
    measures {name: (n,)}, scores (n,), e.g. linear probe accuracies. Raises for fewer than five embeddings.

    >>> other = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5.0])
    >>> found = predictive({"rank": np.arange(9.0), "other": other}, np.arange(9.0) ** 2)
    >>> round(found["rank"].value, 6), round(found["other"].value, 2)
    (1.0, 0.55)
    """
    from scipy.stats import spearmanr

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

        def rho(rows: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            a, b = x[rows], y[rows]
            return float(spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")

        low, high = of_statistic(rho, len(x), seed)
        out[name] = Result(name, rho(np.arange(len(x))), low, high, len(x))
    return out
