"""Pairs: are they the same (verification), and how alike (graded similarity)."""

from __future__ import annotations

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate.intervals import of_statistic
from nearfar.evaluate.records import Result
from nearfar.evaluate.retrieval import unit
from nearfar.evaluate.sparse import is_sparse


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows, dense or sparse, in float64; 0 for a row of zeros. (N, d), (N, d) -> (N,)"""
    if a.shape != b.shape:
        raise UserError(f"pairs of different shapes: {a.shape} and {b.shape}")
    if is_sparse(a):
        return np.asarray(unit(a).multiply(unit(b)).sum(1), np.float64).ravel()
    return (unit(a).astype(np.float64) * unit(b)).sum(1)


def roc(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true acceptance rates at every threshold, rising from (0, 0) to (1, 1); scikit-learn's."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(same, scores, drop_intermediate=False)
    return false, true


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """Where false acceptances are as many as false rejections: the ROC's crossing with FAR = 1 - TAR, along its lines.

    >>> equal_error_rate(np.array([0.9, 0.8, 0.2, 0.1]), np.array([1, 1, 0, 0]))
    0.0
    """
    false, true = roc(scores, same)
    apart = false - (1 - true)  # rises from -1 to 1
    i = int(np.searchsorted(apart, 0.0))
    if apart[i] == 0:
        return float(false[i])
    share = -apart[i - 1] / (apart[i] - apart[i - 1])
    return float(false[i - 1] + share * (false[i] - false[i - 1]))


def verification(scores: np.ndarray, same: np.ndarray, *, seed: int = 0, times: int = 500) -> dict[str, Result]:
    """AUC, equal error rate and TAR at FAR 1 % of pairs that are the same (1) or not (0), by their score.

    Intervals: bootstrap over pairs, ``times`` draws. scores (N,), same (N,). Raises ``UserError`` where scores
    are not finite or all pairs are of one kind.
    """
    from sklearn.metrics import roc_auc_score

    scores, same = _checked(scores, same, "same")
    same = same.astype(bool)
    if same.all() or not same.any():
        raise UserError(f"verification needs pairs of both kinds: all {len(same)} are "
                        f"{'the same' if same.all() else 'different'}")  # fmt: skip

    def tar(s: np.ndarray, y: np.ndarray) -> float:
        false, true = roc(s, y)
        return float(true[false <= 0.01].max())

    measures = {"AUC": lambda s, y: float(roc_auc_score(y, s)), "EER": equal_error_rate, "TAR@FAR=1%": tar}
    return {name: _with_interval(name, f, scores, same, seed, times) for name, f in measures.items()}


def graded(scores: np.ndarray, wanted: np.ndarray, *, seed: int = 0, times: int = 500) -> dict[str, Result]:
    """Spearman's and Pearson's correlation of scores with graded similarity; SciPy's. (N,), (N,)

    Raises ``UserError`` where one of them is not finite or constant.
    """
    from scipy.stats import pearsonr, rankdata

    scores, wanted = _checked(scores, wanted, "wanted")
    for name, values in (("scores", scores), ("wanted", wanted)):
        if len(values) < 3 or np.ptp(values) == 0:
            raise UserError(f"correlation: {name} are all alike or fewer than three: there is nothing to rank")

    def pearson(s: np.ndarray, y: np.ndarray) -> float:
        return float("nan") if np.ptp(s) == 0 or np.ptp(y) == 0 else float(pearsonr(s, y).statistic)

    measures = {"Spearman": lambda s, y: pearson(rankdata(s), rankdata(y)), "Pearson": pearson}
    return {name: _with_interval(name, f, scores, wanted, seed, times) for name, f in measures.items()}


def _checked(scores: np.ndarray, other: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    scores, other = np.asarray(scores, np.float64), np.asarray(other, np.float64)
    if scores.ndim != 1 or scores.shape != other.shape:
        raise UserError(f"{scores.shape} scores for {name} of shape {other.shape}: give one each, (N,)")
    bad = int((~np.isfinite(scores)).sum() + (~np.isfinite(other)).sum())
    if bad:
        raise UserError(f"{bad} scores or values of {name} are NaN or infinite")
    return scores, other


def _with_interval(name, measure, scores, other, seed: int, times: int) -> Result:
    def drawn(rows: np.ndarray) -> float:
        s, y = scores[rows], other[rows]
        return float("nan") if y.min() == y.max() else measure(s, y)

    return Result(name, measure(scores, other), *of_statistic(drawn, len(scores), seed, times), len(scores))
