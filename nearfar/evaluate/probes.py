"""kNN, linear probe and few-label probes on frozen features; nothing is chosen on test data."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate.intervals import of_means
from nearfar.evaluate.records import Judgement, Result
from nearfar.evaluate.retrieval import engine_of, neighbours, unit
from nearfar.evaluate.sparse import is_sparse, scaler

GRID = tuple(float(c) for c in 10.0 ** np.arange(-4, 2))
FEW_C = 10.0  # on unit rows; fixed, not tuned


def bootstrap(correct: np.ndarray, seed: int = 0, times: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of a mean of zeros and ones, over resampled test items."""
    n = len(correct)
    means = np.random.default_rng(seed).binomial(n, correct.mean(), times) / n  # resampling 0/1 is binomial
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def classification(y: np.ndarray, predicted: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Accuracy; precision, recall and F1 per class, macro, micro, weighted; confusion (rows: the truth)."""
    from sklearn.metrics import confusion_matrix
    from sklearn.metrics import precision_recall_fscore_support as scores

    known = np.arange(len(classes))
    p, r, f, n = scores(y, predicted, labels=known, zero_division=0)
    confusion = confusion_matrix(y, predicted, labels=known)
    out: dict[str, Any] = {
        "accuracy": float((y == predicted).mean()),
        "balanced_accuracy": float(r[n > 0].mean()),
        "per_class": [
            {"name": str(c), "precision": float(p[i]), "recall": float(r[i]), "f1": float(f[i]), "support": int(n[i])}
            for i, c in enumerate(classes)
        ],
        "confusion": confusion.tolist(),
    }
    for average in ("macro", "micro", "weighted"):
        values = scores(y, predicted, labels=known, average=average, zero_division=0)[:3]
        out[average] = dict(zip(("precision", "recall", "f1"), map(float, values)))
    return out


def calibration(chance: np.ndarray, y: np.ndarray, *, bins: int = 15, times: int = 200) -> dict[str, Any]:
    r"""Do probabilities mean what they say: top-5, log loss, Brier score, expected calibration error.

    .. math:: ECE=\sum_b\frac{n_b}{N}\,|acc_b-conf_b|

    over ``bins`` bins of equal width of the likeliest class's probability, closed above (Guo et al. 2017,
    arXiv:1706.04599, eq. 3); Brier: mean over items of the squared distance to the one-hot truth (0 best, 2 worst);
    top-5: the truth among the five likeliest, ties to the lower class. ``reliability`` holds each bin that has items,
    ``intervals`` the bootstrap's over items, ``times`` draws; the calibration error's lies high, as noise raises it.

    chance (N, K), rows that sum to one; y (N,) in 0..K-1
    """
    n, kinds = chance.shape
    rows = np.arange(n)
    sure, hit = chance.max(1), chance.argmax(1) == y
    place = np.ceil(sure * bins).astype(int).clip(1, bins) - 1
    held = np.eye(bins)[place]  # (N, bins)
    counts = held.sum(0)
    table = [{"low": b / bins, "high": (b + 1) / bins, "n": int(counts[b]),
              "confidence": float(sure @ held[:, b] / counts[b]), "accuracy": float(hit @ held[:, b] / counts[b])}
             for b in np.flatnonzero(counts)]  # fmt: skip
    five = np.argsort(-chance, axis=1, kind="stable")[:, :5]
    items = np.column_stack([
        (five == y[:, None]).any(1), -np.log(np.maximum(chance[rows, y], np.finfo(np.float64).tiny)),
        ((chance - np.eye(kinds)[y]) ** 2).sum(1), held * (hit - sure)[:, None],
    ])  # (N, 3 + bins)  # fmt: skip

    def of(means: np.ndarray) -> np.ndarray:  # (B, 3 + bins) -> (B, 4)
        return np.column_stack([means[:, :3], np.abs(means[:, 3:]).sum(1)])

    names = ("top5", "log_loss", "brier", "ece")
    low, high = of_means(items, of, times=times)
    return dict(zip(names, map(float, of(items.mean(0)[None])[0]))) | {
        "intervals": {k: [float(a), float(b)] for k, a, b in zip(names, low, high)}, "reliability": table}  # fmt: skip


def _chances(model: Any, x: np.ndarray, kinds: int) -> np.ndarray:
    """Probabilities of all classes, 0 for those that the training part lacks. -> (N, K) float64, rows summing to one"""
    chance = np.zeros((x.shape[0], kinds))
    chance[:, model.classes_] = model.predict_proba(x)
    return chance / chance.sum(1, keepdims=True)


def _judged(
    name: str, predict: Callable[[np.ndarray], np.ndarray], test: np.ndarray, y: np.ndarray, classes: list[str],
    **detail: Any,
) -> Judgement:  # fmt: skip
    predicted = predict(test)
    correct = predicted == y
    result = Result(name, float(correct.mean()), *bootstrap(correct), len(y), detail)
    return Judgement(result, predicted, classification(y, predicted, classes), predict=predict)


def vote(
    train: np.ndarray, y_train: np.ndarray, test: np.ndarray, n_classes: int, k: int, temperature: float
) -> np.ndarray:
    """The class with the largest Σ exp(cos/τ) over the k nearest (Wu et al. 2018); ties: the lower class."""
    index, cosine = neighbours(test, train, k)  # (M, k)
    weight = np.exp((cosine.astype(np.float64) - cosine[:, :1]) / temperature)  # same argmax, no overflow
    votes = np.zeros((test.shape[0], n_classes))
    for j in range(index.shape[1]):
        votes[np.arange(len(votes)), y_train[index[:, j]]] += weight[:, j]
    return votes.argmax(1)


def knn(
    train: np.ndarray, y_train: np.ndarray, test: np.ndarray, y_test: np.ndarray, classes: list[str], *,
    k: int = 20, temperature: float = 0.07,
) -> Judgement:  # fmt: skip
    """Weighted k-nearest-neighbour accuracy by cosine."""
    k = min(k, train.shape[0])
    search = "exact" if is_sparse(train) else engine_of(len(test), *train.shape)
    return _judged("kNN", lambda z: vote(train, y_train, z, len(classes), k, temperature), test, y_test, classes,
                   k=k, temperature=temperature, search=search)  # fmt: skip


def _logistic(c: float, x: np.ndarray, y: np.ndarray, tol: float = 1e-4, most: int = 1000) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the detail instead
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # of a few labels a class
        return LogisticRegression(C=c, tol=tol, max_iter=most).fit(x, y)


def _validation(model: Any, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Accuracy and mean log-likelihood of held-out rows."""
    chance = model.predict_proba(x).astype(np.float64)  # (n, K)
    logs = np.log(np.maximum(chance, np.finfo(np.float64).tiny))
    columns = np.searchsorted(model.classes_, y)
    accuracy = float((model.classes_[logs.argmax(1)] == y).mean())
    return accuracy, float(logs[np.arange(len(y)), columns].mean())


def standardiser(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Features by the training part's mean and deviation; what is constant there is 0. (N, d) -> (N, d) float32"""
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    scale = np.where(std > 1e-8, 1 / np.maximum(std, 1e-8), 0)
    return lambda z: ((z - mean) * scale).astype(np.float32)


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both parts, standardised by the training part. (N, d), (M, d)"""
    standard = standardiser(train)
    return standard(train), standard(test)


def linear_probe(
    train: np.ndarray, y_train: np.ndarray, test: np.ndarray, y_test: np.ndarray, classes: list[str], *,
    grid: tuple[float, ...] = GRID, seed: int = 0,
) -> Judgement:  # fmt: skip
    """Multinomial logistic regression on standardised features.

    Standardised with the training part's statistics; sparse rows are scaled by one number alone, which serves bags of
    words better. C is chosen on a stratified fifth of the *training* part (of at most 5,000 rows) by accuracy, and
    among equals by the log-likelihood: where features tell the classes apart at any C, accuracy alone would take the
    one that fits least. Then all of the training part is fitted to convergence.
    """
    from sklearn.model_selection import train_test_split

    standard = scaler(train) if is_sparse(train) else standardiser(train)
    a = standard(train)
    rows = np.random.default_rng(seed).permutation(a.shape[0])[:5000]
    counts = np.bincount(y_train[rows])
    best, chosen = (-1.0, 0.0), grid[len(grid) // 2]
    if counts[counts > 0].min() >= 5 and (counts > 0).sum() > 1:
        fit, val = train_test_split(rows, test_size=0.2, stratify=y_train[rows], random_state=seed)
        for c in grid:
            score = _validation(_logistic(c, a[fit], y_train[fit], 1e-3, 200), a[val], y_train[val])
            if score > best:
                best, chosen = score, c
    model = _logistic(chosen, a, y_train)
    done = int(model.n_iter_[0]) < model.max_iter
    judged = _judged("linear", lambda z: model.predict(standard(z)), test, y_test, classes, C=chosen, converged=done)
    judged.metrics["calibration"] = calibration(_chances(model, standard(test), len(classes)), y_test)
    return judged


def amount(given: int | str) -> int | str:
    """A number of labels a class (``5``, ``"5"``) or a share of them (``"1%"``, ``"0.5%"``), as number or share.

    >>> amount("5"), amount("1.0%")
    (5, '1%')
    """
    text = str(given).strip()
    with contextlib.suppress(ValueError):
        if text.endswith("%") and 0 < (share := float(text[:-1])) <= 100:
            return f"{share:g}%"
        if not isinstance(given, bool) and int(text) >= 1:
            return int(text)
    raise UserError(f"labels {given!r}: give a number a class, 1 or more, or a share of the training labels, "
                    "above 0% and up to 100%")  # fmt: skip


def draw_labels(y: np.ndarray, n: int | str, draw: int, seed: int = 0) -> np.ndarray:
    """``n`` rows of each class, or the share ``"1%"`` of each class's rows, rounded, at least one.

    A function of the labels and the draw alone, the same for every embedding.
    """
    n = amount(n)
    share = float(n[:-1]) / 100 if isinstance(n, str) else None
    rng = np.random.default_rng([seed, draw, n] if share is None else [seed, draw, round(share * 1e9), 1])
    rows = []
    for c in np.unique(y):
        own = np.flatnonzero(y == c)
        rows.append(rng.choice(own, n if share is None else max(1, round(share * len(own))), replace=False))
    return np.concatenate(rows)


def few_probe(x: np.ndarray, y: np.ndarray) -> Any:
    """The logistic probe of few labels, on unit rows: C = 10, which is not tuned. x (n, d), y (n,)"""
    return _logistic(FEW_C, x, y, 1e-3)


def few_label(
    train: np.ndarray, y_train: np.ndarray, test: np.ndarray, y_test: np.ndarray, *, labels_per_class: int | str,
    draws: int = 10, seed: int = 0,
) -> dict[str, Result]:  # fmt: skip
    """kNN and linear accuracy with a few labels a class, or a share of them (``"1%"``), over draws.

    kNN votes among ``min(n, 5)`` neighbours, n the labels drawn a class (the mean, rounded down); the probe is logistic
    on unit rows with a fixed C of 10. The interval is Student's over the draws.
    """
    from scipy.stats import t as student

    a, b, n = unit(train), unit(test), amount(labels_per_class)
    got: dict[str, list[float]] = {"kNN": [], "linear": []}
    kinds, rows = len(np.unique(y_train)), np.empty(0, np.int64)
    for draw in range(draws):
        rows = draw_labels(y_train, n, draw, seed)
        x, y = a[rows], y_train[rows]
        near = vote(x, y, b, int(y_train.max()) + 1, min(len(rows) // kinds, 5), 0.07)
        got["kNN"].append(float((near == y_test).mean()))
        got["linear"].append(float((few_probe(x, y).predict(b) == y_test).mean()))
    out = {}
    for kind, values in got.items():
        half = float(student.ppf(0.975, draws - 1) * np.std(values, ddof=1) / draws**0.5) if draws > 1 else 0.0
        mean = float(np.mean(values))
        name = f"{n} label{'s' * (n != 1)} {kind}"
        out[name] = Result(name, mean, mean - half, mean + half, draws, {"draws": values, "labels": len(rows)})
    return out
