"""Judges of pairs of texts by their embeddings: do cosines rank as people do, and does a text find its other half."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate.intervals import over_seeds
from nearfar.evaluate.judge import Evaluation
from nearfar.evaluate.records import Result
from nearfar.evaluate.retrieval import retrieval
from nearfar.evaluate.similarity import cosines, graded
from nearfar.evaluate.sparse import not_finite

KS = (1, 5, 10)
Sides = Mapping[str, tuple[Any, Any]]  # by embedding: both texts of each pair, (N, d) each, dense or sparse


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation, equals at their mean rank; NaN where one side is constant. (N,), (N,)

    >>> spearman(np.array([1, 2, 3]), np.array([1, 5, 9]))
    1.0
    """
    from scipy.stats import rankdata

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    p, q = rankdata(x), rankdata(y)
    p, q = p - p.mean(), q - q.mean()
    return float(np.clip(p @ q / np.sqrt((p @ p) * (q @ q)), -1, 1))


def sts(
    a: Any, b: Any, scores: np.ndarray, subsets: np.ndarray | None = None, *, seed: int = 0, times: int = 500
) -> dict[str, Result]:  # fmt: skip
    """Semantic textual similarity: Spearman's and Pearson's correlation of cosines with scores, over all pairs.

    This is the field's protocol where there are several subsets, too: all their pairs together, one correlation
    (SentEval's ``all``, as SimCSE reports it: Gao et al. 2021, arXiv:2104.08821). With ``subsets`` there
    are besides ``Spearman mean`` and ``Spearman wmean``, the mean of the subsets' own and that weighted by their pairs,
    and ``Spearman in NAME`` of each.

    Args:
        a, b: (N, d) embeddings of the first and second texts, dense or sparse. scores: (N,) on any scale.
        subsets: (N,) names.

    Intervals: bootstrap over pairs, within subsets for the means. Raises ``UserError`` where a side is constant.

    >>> z = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> round(sts(z, z[[0, 0, 0]], np.array([5, 3, 0]))["Spearman"].value, 6)
    1.0
    """
    cosine = cosines(a, b)
    out = graded(cosine, scores, seed=seed, times=times)
    if subsets is None:
        return out
    subsets, scores = np.asarray(subsets), np.asarray(scores, np.float64)
    if subsets.shape != scores.shape:
        raise UserError(f"{subsets.shape} subsets for {len(scores)} pairs: give one each, ({len(scores)},)")
    parts = {str(name): np.flatnonzero(subsets == name) for name in np.unique(subsets)}
    for name, rows in parts.items():
        if len(rows) < 3 or np.ptp(scores[rows]) == 0 or np.ptp(cosine[rows]) == 0:
            raise UserError(f"subset {name}: its {len(rows)} scores or cosines are all alike or fewer than three")
        own = graded(cosine[rows], scores[rows], seed=seed, times=times)["Spearman"]
        out[f"Spearman in {name}"] = Result(f"Spearman in {name}", own.value, own.low, own.high, own.n)
    weights = {"mean": np.ones(len(parts)), "wmean": np.array([len(rows) for rows in parts.values()])}
    drawn = _within(cosine, scores, list(parts.values()), seed, times)  # (times, subsets)
    for kind, weight in weights.items():
        value = np.average([out[f"Spearman in {name}"].value for name in parts], weights=weight)
        low, high = np.nanquantile(np.average(drawn, axis=1, weights=weight), (0.025, 0.975))
        out[f"Spearman {kind}"] = Result(f"Spearman {kind}", float(value), float(low), float(high), len(scores))
    return out


def _within(cosine: np.ndarray, scores: np.ndarray, parts: list[np.ndarray], seed: int, times: int) -> np.ndarray:
    """Spearman of each part, its pairs drawn again. -> (times, parts)"""
    rng = np.random.default_rng(seed)
    picks = ([rows[rng.integers(0, len(rows), len(rows))] for rows in parts] for _ in range(times))
    return np.array([[spearman(cosine[rows], scores[rows]) for rows in pick] for pick in picks])


def spearman_difference(
    a: np.ndarray, b: np.ndarray, scores: np.ndarray, *, seed: int = 0, times: int = 1000
) -> tuple[float, float, float]:  # fmt: skip
    r"""Spearman of cosines ``a`` less that of ``b`` on the same pairs, and its interval: the paired bootstrap.

    Each time the same pairs are drawn for both, so what is hard for both cancels: the one beats the other beyond chance
    where the interval leaves out 0. With several seeds a side, the seeds are drawn again, too, as in
    :func:`nearfar.evaluate.of_difference_over_seeds`.

    a: (N,) or (S, N), b: (N,) or (T, N) cosines. scores: (N,) -> (difference, low, high)

    >>> spearman_difference(np.arange(9.0), np.arange(9.0), np.arange(9.0))
    (0.0, 0.0, 0.0)
    """
    a, b = (np.atleast_2d(np.asarray(x, np.float64)) for x in (a, b))
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or a.shape[1:] != scores.shape or b.shape[1:] != scores.shape:
        raise UserError(f"{a.shape} and {b.shape} cosines for scores {scores.shape}: give the same pairs")
    if not all(np.isfinite(x).all() for x in (a, b, scores)):
        raise UserError("cosines or scores are NaN or infinite")
    if len(scores) < 3 or any(np.ptp(x) == 0 for x in (*a, *b, scores)):
        raise UserError("correlation: cosines or scores are all alike or fewer than three: there is nothing to rank")

    def both(rows: np.ndarray) -> np.ndarray:  # -> (S + T,)
        return np.array([spearman(x[rows], scores[rows]) for x in (*a, *b)])

    n, rng = len(scores), np.random.default_rng(seed)
    drawn = np.array([both(rng.integers(0, n, n)) for _ in range(times)])  # (times, S + T)
    drawn = drawn[np.isfinite(drawn).all(1)]
    again = np.random.default_rng([seed, 1])
    apart = over_seeds(drawn[:, : len(a)], again) - over_seeds(drawn[:, len(a) :], again)  # (times,)
    low, high = np.quantile(apart, (0.025, 0.975)) if len(apart) else (float("nan"),) * 2
    value = both(np.arange(n))
    return float(value[: len(a)].mean() - value[len(a) :].mean()), float(low), float(high)


def pair_retrieval(a: Any, b: Any, ids: np.ndarray | None = None, *, seed: int = 0) -> dict[str, Result]:
    """How well the first text of a pair finds its second among all pairs' second texts, by cosine.

    ``recall@1``, ``recall@5``, ``recall@10`` (at most as many as there are pairs), ``MRR`` and ``nDCG@10``, as
    :func:`nearfar.evaluate.retrieval` defines them. Pairs of the same id are each right for the other: give equal
    texts equal ids, or a right answer counts as a wrong one.

    a, b: (N, d), dense or sparse; ids: (N,), else each pair its own. Intervals: bootstrap over pairs. Raises
    ``UserError``.

    >>> pair_retrieval(np.eye(3), np.eye(3))["recall@1"].value
    1.0
    """
    if a.shape != b.shape:
        raise UserError(f"pairs of different shapes: {a.shape} and {b.shape}")
    n = a.shape[0]
    ids = np.arange(n) if ids is None else np.asarray(ids)
    if ids.shape != (n,):
        raise UserError(f"{ids.shape} ids for {n} pairs: give one each, ({n},)")
    if n < 2:
        raise UserError(f"{n} pairs: a text needs others to be found among")
    ks = tuple(k for k in KS if k <= n)
    found = retrieval(a, ids, b, ids, ks=ks, seed=seed)
    return {name: found[name] for name in (*(f"recall@{k}" for k in ks), "MRR", f"nDCG@{ks[-1]}")}


def judge_pairs(sides: Sides, scores: np.ndarray, *, seed: int = 0, times: int = 500) -> Evaluation:
    """Judge embeddings of scored pairs: a row each, columns Spearman and Pearson; :func:`sts`.

    ``sides``: ``{name: (first texts (N, d), second texts (N, d))}``, dense or sparse. A note says by how much the first
    embedding's Spearman is above each other's, by :func:`spearman_difference`, and the others' ``detail["below"]``
    holds it. Where all cosines of an embedding are alike, it ranks nothing: 0, and a note says so.
    """
    scores = np.asarray(scores, np.float64)
    cosine = {name: _checked(name, a, b, len(scores)) for name, (a, b) in sides.items()}
    cells, notes = {}, []
    for name, x in cosine.items():
        if len(x) >= 3 and np.ptp(x) == 0:
            notes.append(f"{name}: all {len(x)} cosines are alike, it ranks nothing: correlations are given as 0")
            cells[name] = {c: Result(c, 0.0, 0.0, 0.0, len(x)) for c in ("Spearman", "Pearson")}
        else:
            cells[name] = graded(x, scores, seed=seed, times=times)
    first, *others = [name for name in cosine if np.ptp(cosine[name]) > 0] or [""]
    if first and first == next(iter(cosine)):
        said = []
        for name in others:
            value, low, high = spearman_difference(cosine[first], cosine[name], scores, seed=seed, times=times)
            cells[name]["Spearman"].detail["below"] = {"of": first, "by": value, "low": low, "high": high}
            said.append(f"{name} {value:+.3f} ({low:+.3f} to {high:+.3f})")
        notes += [f"Spearman of {first} less that of: {'; '.join(said)} (paired bootstrap, 95 %)"] if said else []
    protocol = _protocol(scores, {
        "title": f"correlation of cosines with the scores of {len(scores):,} pairs", "seed": seed,
        "aggregation": "all: one correlation over all pairs", "intervals": f"95 %: bootstrap over pairs, {times} draws",
    })  # fmt: skip
    return Evaluation(cells, {}, (), protocol, tuple(notes))


def judge_retrieval(sides: Sides, ids: np.ndarray | None = None, *, seed: int = 0) -> Evaluation:
    """Judge embeddings of pairs without scores: a row each, columns as :func:`pair_retrieval` gives them.

    ``sides``: ``{name: (first texts (N, d), second texts (N, d))}``, dense or sparse; ids: (N,) pairs of one id are
    each right for the other.
    """
    n = next(iter(sides.values()))[0].shape[0]
    ids = np.arange(n) if ids is None else np.asarray(ids)
    cells = {}
    for name, (a, b) in sides.items():
        _checked(name, a, b, n)
        cells[name] = pair_retrieval(a, b, ids, seed=seed)
    same = n - len(np.unique(ids))
    notes = (f"{same:,} of {n:,} pairs repeat another: each is right for the other",) if same else ()
    protocol = _protocol(np.unique(ids, return_inverse=True)[1], {
        "title": f"the second text of each of {n:,} pairs, found by the first among all", "seed": seed,
        "intervals": "95 %: bootstrap over pairs",
    })  # fmt: skip
    return Evaluation(cells, {}, (), protocol, notes)


def _checked(name: str, a: Any, b: Any, n: int) -> np.ndarray:
    """The cosines of one embedding's pairs, or one line for what cannot be judged. -> (N,)"""
    if a.shape != b.shape or a.shape[0] != n:
        raise UserError(f"{name}: {a.shape} and {b.shape} for {n} pairs")
    if bad := not_finite(a) + not_finite(b):
        raise UserError(f"{name}: {bad} features are NaN or infinite: training diverged or the input is bad")
    return cosines(a, b)


def _protocol(values: np.ndarray, how: dict[str, Any]) -> dict[str, Any]:
    sha = hashlib.sha256(np.ascontiguousarray(values, np.float64).tobytes())
    return how | {"test": len(values), "split hash": sha.hexdigest()[:16], "python": platform.python_version(),
                  "numpy": np.__version__}  # fmt: skip
