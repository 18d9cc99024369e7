"""95 % intervals by the bootstrap over test items, and of differences between two judged on the same items."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nearfar.errors import UserError


def of_mean(values: np.ndarray, seed: int = 0, times: int = 1000) -> tuple[float, float]:
    """Percentile interval of a mean over items that are drawn again with replacement. values (n,)

    >>> low, high = of_mean(np.array([0.0, 1.0] * 50))
    >>> low < 0.5 < high
    True
    """
    values = np.asarray(values, np.float64)
    return _quantiles(np.concatenate([w @ values / len(values) for w in draws(len(values), seed, times)]))


def draws(n: int, seed: int = 0, times: int = 1000) -> Iterator[np.ndarray]:
    """How often each of ``n`` items is drawn, ``times`` times over. Yields (part, n), so that memory stays flat in n"""
    if n == 0:
        raise UserError("an interval over no items: nothing was judged")
    rng, few = np.random.default_rng(seed), max(1, 10**7 // n)
    for at in range(0, times, few):
        yield rng.multinomial(n, np.full(n, 1 / n), min(few, times - at))


def of_means(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0, times: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of what follows from several means over the same items.

    values (n, m), statistic: (B, m) means -> (B, ...); returns low and high, of the shape of one statistic.

    >>> low, high = of_means(np.eye(2), lambda m: m.sum(1))
    >>> float(low), float(high)
    (1.0, 1.0)
    """
    means = [w @ values / len(values) for w in draws(len(values), seed, times)]  # each (part, m)
    low, high = np.quantile(statistic(np.concatenate(means)), (0.025, 0.975), axis=0)
    return low, high


def of_statistic(
    statistic: Callable[[np.ndarray], float], n: int, seed: int = 0, times: int = 500
) -> tuple[float, float]:
    """Percentile interval of ``statistic(rows)``, rows (n,) indices into the items; draws of NaN are left out."""
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, n, n)) for _ in range(times)])
    values = values[np.isfinite(values)]
    return _quantiles(values) if len(values) else (float("nan"), float("nan"))


def of_difference(a: np.ndarray, b: np.ndarray, seed: int = 0, times: int = 2000) -> tuple[float, float, float]:
    r"""Mean of ``a - b`` item by item and its interval: the paired bootstrap (Efron & Tibshirani 1993, §8).

    Both were judged on the same items, so what the items have in common cancels: the interval is narrower than the two
    single ones suggest. A difference is real where it leaves out 0. a, b (n,) -> (difference, low, high)

    >>> of_difference(np.ones(50), np.zeros(50))
    (1.0, 1.0, 1.0)
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise UserError(f"differences need the same items: {a.shape} and {b.shape} values")
    return (float((a - b).mean()), *of_mean(a - b, seed, times))


def of_difference_over_seeds(
    a: np.ndarray, b: np.ndarray, seed: int = 0, times: int = 2000
) -> tuple[float, float, float]:
    r"""Mean of ``a`` less mean of ``b`` and its interval over seeds and items: a bootstrap of two levels.

    Each time the seeds of either side are drawn again, and then the items, the same for all of them (Davison &
    Hinkley 1997, §3.8); how far a draw of n seeds lies from their mean is stretched by :math:`\sqrt{n/(n-1)}`, without
    which n seeds would seem less spread than they are. With one seed a side it is :func:`of_difference`.

    a (S, n), b (T, n): seeds × the same items -> (difference, low, high)

    >>> tuple(round(v, 9) for v in of_difference_over_seeds(np.ones((3, 50)), np.zeros((2, 50))))
    (1.0, 1.0, 1.0)
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(f"differences need the same items: {a.shape} and {b.shape} values")
    rng, found = np.random.default_rng([seed, 1]), []
    for w in draws(a.shape[1], seed, times):
        found.append(over_seeds(w @ a.T / a.shape[1], rng) - over_seeds(w @ b.T / a.shape[1], rng))
    return (float((a.mean(0) - b.mean(0)).mean()), *_quantiles(np.concatenate(found)))


def over_seeds(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means over seeds drawn again, a draw a row. (B, S) -> (B,)"""
    n = values.shape[1]
    weight = rng.multinomial(n, np.full(n, 1 / n), len(values)) / n  # (B, S)
    return values.mean(1) + (n / max(1, n - 1)) ** 0.5 * ((weight - 1 / n) * values).sum(1)


def of_paired_draws(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    r"""Mean of ``a`` less mean of ``b`` over the same draws of labels, and Student's interval.

    The error's square is :math:`\sum_i s_i^2/n_i` over the draws' differences and, where there are several, the seeds
    of either side; its degrees of freedom are Satterthwaite's (1946). With one seed a side: the paired t interval.

    a (S, D), b (T, D): seeds × draws, two or more draws -> (difference, low, high)

    >>> of_paired_draws(np.array([[0.5, 0.6, 0.7]]), np.array([[0.25, 0.35, 0.45]]))[0]
    0.25
    """
    from scipy.stats import t as student

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] < 2:
        raise UserError(f"{a.shape} and {b.shape} values: give seeds and the same draws, two or more")
    by_draw = a.mean(0) - b.mean(0)  # (D,)
    parts = [x for x in (by_draw, a.mean(1), b.mean(1)) if len(x) > 1]
    squares = np.array([x.var(ddof=1) / len(x) for x in parts])
    value, total = float(by_draw.mean()), float(squares.sum())
    if total == 0:
        return value, value, value
    freedom = total**2 / sum(s**2 / (len(x) - 1) for s, x in zip(squares, parts))
    half = float(student.ppf(0.975, freedom)) * total**0.5
    return value, value - half, value + half


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
