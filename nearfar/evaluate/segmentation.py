"""Intersection over union of segmented pictures, with intervals over pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate.records import Scores, of_draws

IGNORE = 255


def confusion(said: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of each class (rows) were said to be of each (columns), those of 255 left out. -> (K, K) int64"""
    if said.shape != truth.shape:
        raise UserError(f"a mask of {said.shape} for a picture of {truth.shape}: give the same size")
    judged = truth != IGNORE
    t, s = truth[judged].astype(np.int64), said[judged].astype(np.int64)
    if t.size and (max(t.max(), s.max()) >= classes or min(t.min(), s.min()) < 0):
        raise UserError(f"a mask holds class {max(t.max(), s.max())} of {classes}: number classes from 0")
    return np.bincount(t * classes + s, minlength=classes * classes).reshape(classes, classes)


def segmentation(
    confusions: Sequence[np.ndarray], classes: Sequence[str], *, seed: int = 0, times: int = 200
) -> Scores:
    r"""Scores of confusions by picture, summed over pictures first.

    .. math:: IoU_c=\frac{n_{cc}}{\sum_k n_{ck}+\sum_k n_{kc}-n_{cc}},\quad mIoU=\frac1{|C|}\sum_c IoU_c,\quad
              \text{pixel accuracy}=\frac{\sum_c n_{cc}}{\sum_{ck} n_{ck}}

    Long et al. 2015 (arXiv:1411.4038, §5); n_ck are pixels of class c said to be k; classes that are in neither truth
    nor answer are left out of the means. Intervals: pictures drawn again with replacement. confusions (K, K) each
    """
    table = np.stack([np.asarray(c, np.float64) for c in confusions])  # (N, K, K)
    if not table.sum():
        raise UserError("no pixel of the test pictures has a class: there is nothing to judge by")
    n = len(table)
    rng = np.random.default_rng(seed)
    rows = [_scores(np.tensordot(rng.multinomial(n, np.full(n, 1 / n)), table, 1)) for _ in range(times)]
    drawn = {name: np.array([r[name] for r in rows]) for name in rows[0]}
    total = table.sum(0)
    iou = _ious(total)
    hits = np.diag(total)
    per_class = tuple(
        {"name": str(c), "IoU": float(iou[k]), "recall": _share(hits[k], total[k].sum()),
         "precision": _share(hits[k], total[:, k].sum()), "pixels": int(total[k].sum())}
        for k, c in enumerate(classes))  # fmt: skip
    return Scores(of_draws(_scores(total), drawn, n), per_class, drawn)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _ious(table: np.ndarray) -> np.ndarray:
    hits, union = np.diag(table), table.sum(0) + table.sum(1) - np.diag(table)
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def _scores(table: np.ndarray) -> dict[str, float]:
    rows = table.sum(1)
    recall = np.diag(table)[rows > 0] / rows[rows > 0]
    return {"mIoU": float(np.nanmean(_ious(table))), "pixel accuracy": float(np.trace(table) / table.sum()),
            "mean class accuracy": float(recall.mean())}  # fmt: skip
