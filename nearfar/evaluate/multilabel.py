"""Several labels an item: kNN and a linear probe, their measures and intervals; nothing is chosen on test data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nearfar.errors import UserError
from nearfar.evaluate.intervals import draws, of_means
from nearfar.evaluate.probes import GRID, standardised
from nearfar.evaluate.records import Judgement, Result
from nearfar.evaluate.retrieval import neighbours

THRESHOLD = 0.5  # fixed; a label is given where its chance is above
_TIMES = 200  # bootstrap draws
_KINDS = ("macro", "micro", "weighted")
_ITEM = ("samples precision", "samples recall", "samples F1", "subset accuracy", "Hamming loss", "LRAP",
         "coverage error")  # fmt: skip


def check(y_train: np.ndarray, y_test: np.ndarray) -> None:
    """One line for labels that are not two matrices of zeros and ones with the same classes."""
    if y_train.ndim != 2 or y_test.ndim != 2 or y_train.shape[1] != y_test.shape[1]:
        raise UserError(f"labels of shapes {y_train.shape} and {y_test.shape}: give (N, K) and (M, K) for both parts")
    for y in (y_train, y_test):
        if y.dtype.kind not in "biuf":
            raise UserError(f"a matrix of labels of type {y.dtype}: give zeros and ones")
        wrong = y[(y != 0) & (y != 1)]
        if wrong.size:
            raise UserError(f"label {wrong[0]} in a matrix of several labels an item: give zeros and ones")
    if not len(y_train) or not len(y_test):
        raise UserError(f"{len(y_train)} training and {len(y_test)} test rows: both are needed")


def judged_classes(y_train: np.ndarray, y_test: np.ndarray, classes: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """Which classes can be judged, and what to tell of the others: one value only cannot be learnt or ranked. (K,)"""
    kept, notes = np.ones(len(classes), bool), []
    for part, y in (("training", y_train), ("test", y_test)):
        same = y.min(0) == y.max(0)
        lost = [classes[k] for k in np.flatnonzero(same)]
        if lost:
            few = ", ".join(lost[:5]) + (", …" if len(lost) > 5 else "")
            notes.append(f"{len(lost)} of {len(classes)} classes left out of all means: all {part} items have the same "
                         f"value ({few})")  # fmt: skip
        kept &= ~same
    if not kept.any():
        raise UserError(f"none of {len(classes)} classes has items with and without it in both parts: nothing to judge")
    return kept, notes


def knn(train: np.ndarray, y: np.ndarray, test: np.ndarray, *, k: int = 20, temperature: float = 0.07) -> np.ndarray:
    r"""The chance of each label, :math:`\sum_j w_j y_{jc}/\sum_j w_j` with :math:`w_j=\exp(\cos_j/\tau)`.

    Over the ``k`` nearest by cosine. train (N, d), y (N, K), test (M, d) -> (M, K)
    """
    index, cosine = neighbours(test, train, min(k, len(train)))  # (M, k)
    weight = np.exp((cosine.astype(np.float64) - cosine[:, :1]) / temperature)
    weight /= weight.sum(1, keepdims=True)
    chance = np.zeros((len(test), y.shape[1]))
    for j in range(index.shape[1]):
        chance += weight[:, j, None] * y[index[:, j]]
    return chance


def fit(x: torch.Tensor, y: torch.Tensor, c: float, start: np.ndarray, *, tol: float = 1e-6) -> tuple[np.ndarray, bool]:
    r"""One-vs-rest logistic regressions, all classes in one L-BFGS, each with the objective of scikit-learn's.

    .. math:: \min_{W,b}\sum_c\Big[\frac1N\sum_i\log(1+e^{z_{ic}})-y_{ic}z_{ic}+\frac{\|W_c\|^2}{2CN}\Big]

    with :math:`z=xW^\top+b`. x (N, d), y (N, K) float64; start (K, d + 1), the intercept last. Returns such weights,
    and whether the largest entry of the gradient fell to ``tol``.
    """
    from scipy.optimize import minimize

    n, zero = len(x), torch.zeros((), dtype=x.dtype)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(flat).view(y.shape[1], -1)
        z = x @ w[:, :-1].T + w[:, -1]  # (N, K)
        value = (torch.logaddexp(z, zero) - y * z).sum() / n + w[:, :-1].square().sum() / (2 * c * n)
        off = (z.sigmoid() - y) / n
        slope = torch.cat([off.T @ x + w[:, :-1] / (c * n), off.sum(0)[:, None]], 1)
        return float(value), slope.flatten().numpy()

    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B",
                     options={"gtol": tol, "ftol": 0.0, "maxiter": 5000, "maxfun": 10000, "maxcor": 20})  # fmt: skip
    return found.x.reshape(start.shape), bool(np.abs(found.jac).max() <= tol)


def linear_probe(
    train: np.ndarray, y: np.ndarray, test: np.ndarray, *, grid: tuple[float, ...] = GRID, seed: int = 0
) -> tuple[np.ndarray, dict[str, Any]]:
    """The chance of each label by one logistic regression a class on standardised features, one C for all.

    C is chosen on a fifth of (at most 5,000 rows of) the *training* part by log-likelihood: unlike mean average
    precision it counts a class that has no positive among those rows, is not moved by a few rare ones, and judges what
    the threshold of 0.5 needs, the chances themselves. A class of one training value keeps that value.
    train (N, d), y (N, K), test (M, d) -> (M, K), detail
    """
    a, b = (torch.from_numpy(z).double() for z in standardised(train, test))
    t = torch.as_tensor(y).double()
    rows = np.random.default_rng(seed).permutation(len(a))[:5000]
    val, part = np.split(rows, [len(rows) // 5])
    varied = lambda t: torch.nonzero(t.min(0).values < t.max(0).values).flatten()  # noqa: E731
    chosen, best, some = grid[len(grid) // 2], -np.inf, varied(t[part])
    w = np.zeros((len(some), a.shape[1] + 1))
    if len(val) and len(some):
        for c in sorted(grid):  # each from where the one before ended
            w, _ = fit(a[part], t[part][:, some], c, w, tol=1e-4)
            score = -float(torch.nn.functional.binary_cross_entropy_with_logits(_logits(a[val], w), t[val][:, some]))
            if score > best:
                best, chosen = score, c
    learnt = varied(t)
    w, converged = fit(a, t[:, learnt], chosen, np.zeros((len(learnt), a.shape[1] + 1)))
    chance = t[:1].expand(len(b), -1).clone()
    chance[:, learnt] = _logits(b, w).sigmoid()
    return chance.numpy(), {"C": chosen, "converged": converged}


def _logits(x: torch.Tensor, w: np.ndarray) -> torch.Tensor:
    """(N, d), (K, d + 1) -> (N, K)"""
    held = torch.from_numpy(w)
    return x @ held[:, :-1].T + held[:, -1]


def average_precision(score: np.ndarray, y: np.ndarray, weights: np.ndarray, item: np.ndarray) -> np.ndarray:
    r""":math:`\sum_t (R_t-R_{t-1})P_t` over the distinct scores t, falling, once for each row of weights.

    scikit-learn's and torchmetrics'; NaN where no positive has weight. score, y (n,), weights (B, N), item (n,): whose
    weight each entry has. -> (B,)
    """
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    item, positive = item[order], y[order].astype(np.float64)
    out, few = [], max(1, 4 * 10**6 // len(score))
    for at in range(0, len(weights), few):
        w = weights[at : at + few, item].astype(np.float64)  # (few, n)
        hits, seen = (w * positive).cumsum(1)[:, ends], w.cumsum(1)[:, ends]
        gained = np.diff(hits, axis=1, prepend=0)
        total = hits[:, -1]
        area = (gained * hits / np.maximum(seen, 1)).sum(1)
        out.append(np.where(total > 0, area / np.maximum(total, 1), np.nan))
    return np.concatenate(out)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over classes of those that have a value; NaN where none has. (K, B) -> (B,)"""
    there = np.isfinite(values)
    return np.where(there.any(0), np.where(there, values, 0).sum(0) / np.maximum(there.sum(0), 1), np.nan)


def _result(name: str, value: float, drawn: np.ndarray, n: int) -> Result:
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (value, value)
    return Result(name, float(value), float(low), float(high), n)


def _ranked(chance: np.ndarray, y: np.ndarray, seed: int) -> tuple[list[Result], list[Result]]:
    """Mean and micro average precision, and each class's. (M, K), (M, K)"""
    n, kinds = y.shape
    weights = np.concatenate([np.ones((1, n), np.int64), *draws(n, seed, _TIMES)])  # the data itself first
    own = np.stack([average_precision(chance[:, c], y[:, c], weights, np.arange(n)) for c in range(kinds)])
    micro = average_precision(chance.ravel(), y.ravel(), weights, np.repeat(np.arange(n), kinds))
    means = [_result(name, v[0], v[1:], n) for name, v in (("mAP", _mean(own)), ("micro AP", micro))]
    return means, [_result("AP", v[0], v[1:], n) for v in own]


def _over(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a, np.float64), where=b > 0)


def _triple(hit: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Precision, recall, F1 from what was right, said and true; 0 where undefined. Each (...) -> (..., 3)"""
    return np.stack([_over(hit, said), _over(hit, true), _over(2 * hit, said + true)], -1)


def _counted(means: np.ndarray) -> np.ndarray:
    """Each class's precision, recall and F1, then macro, micro, weighted. (B, 3, K) -> (B, K + 3, 3)"""
    hit, said, true = means.transpose(1, 0, 2).astype(np.float64)  # each (B, K)
    each = _triple(hit, said, true)  # (B, K, 3)
    micro = _triple(hit.sum(1), said.sum(1), true.sum(1))
    weighted = _over((each * true[..., None]).sum(1), true.sum(1, keepdims=True).repeat(3, 1))
    return np.concatenate([each, np.stack([each.mean(1), micro, weighted], 1)], 1)


def by_item(chance: np.ndarray, y: np.ndarray) -> np.ndarray:
    r"""What each item gets, in the order of ``samples`` precision, recall and F1, subset accuracy, Hamming loss, LRAP,
    coverage error.

    LRAP: :math:`\frac1{|Y|}\sum_{c\in Y}|\{c'\in Y: s_{c'}\ge s_c\}|/|\{c': s_{c'}\ge s_c\}|`, 1 where all or no labels
    are true; coverage error: how far down the ranking the last true label is, 0 where none is. scikit-learn's.
    chance (M, K), y (M, K) zeros and ones -> (M, 7)
    """
    from scipy.stats import rankdata

    said, true = chance > THRESHOLD, y.astype(bool)
    ranks = rankdata(-chance, method="max", axis=1)  # how many score as much or more
    among = rankdata(np.where(true, -chance, np.inf), method="max", axis=1)  # how many true ones do
    some, count = true.any(1), true.sum(1)
    lrap = np.where(some, _over((among / ranks * true).sum(1), count.astype(np.float64)), 1.0)
    return np.column_stack([
        _triple((said & true).sum(1), said.sum(1), count), (said == true).all(1), (said != true).mean(1), lrap,
        np.where(some, (ranks * true).max(1), 0),
    ])  # fmt: skip


def judge(
    name: str, chance: np.ndarray, y: np.ndarray, kept: np.ndarray, classes: tuple[str, ...], *, seed: int = 0,
    **detail: Any,
) -> Judgement:  # fmt: skip
    """All measures of the kept classes, each with its bootstrap interval over items. chance, y (M, K), kept (K,)

    ``metrics`` holds ``measures`` by name, ``per_class``, and the threshold; the result is the mean average precision.
    """
    score, true = chance[:, kept], y[:, kept].astype(bool)
    said, (n, kinds) = score > THRESHOLD, true.shape
    ranked, own = _ranked(score, true, seed)
    counts = np.stack([said & true, said, true], 1).reshape(n, -1).astype(np.float64)  # (M, 3K)
    counted = lambda means: _counted(means.reshape(-1, 3, kinds))  # noqa: E731
    value, (low, high) = counted(counts.mean(0))[0], of_means(counts, counted, seed, _TIMES)  # each (K + 3, 3)
    items = by_item(score, true)
    edges = of_means(items, lambda means: means, seed, _TIMES)
    found = {r.name: r for r in ranked}
    for i, kind in enumerate(_KINDS, kinds):
        for j, what in enumerate(("precision", "recall", "F1")):
            found[f"{kind} {what}"] = Result(f"{kind} {what}", *(float(v[i, j]) for v in (value, low, high)), n)
    found |= {m: Result(m, *map(float, row), n) for m, *row in zip(_ITEM, items.mean(0), *edges)}
    places = dict(zip(np.flatnonzero(kept).tolist(), range(kinds)))
    per_class = []
    for c, called in enumerate(classes):
        row: dict[str, Any] = {"name": str(called), "support": int(y[:, c].sum()), "judged": c in places}
        if c in places:
            i, ap = places[c], own[places[c]]
            row |= {"AP": ap.value} | dict(zip(("precision", "recall", "f1"), value[i].tolist()))
            row["intervals"] = {"AP": [ap.low, ap.high]}
            for j, m in enumerate(("precision", "recall", "f1")):
                row["intervals"][m] = [float(low[i, j]), float(high[i, j])]
        per_class.append(row)
    metrics = {"measures": {m: r.to_dict() for m, r in found.items()}, "per_class": per_class, "threshold": THRESHOLD}
    result = Result(name, found["mAP"].value, found["mAP"].low, found["mAP"].high, n, detail | {"bootstrap": _TIMES})
    return Judgement(result, chance > THRESHOLD, metrics, items[:, _ITEM.index("LRAP")])
