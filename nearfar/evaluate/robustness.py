"""What judges and features keep when images change, from arrays; every interval over the same resampled items."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate.intervals import draws
from nearfar.evaluate.retrieval import unit

Cell = dict[str, float | None]
"""``value``, ``low`` and ``high`` of its 95 % interval; None where it is not defined."""


class Resampled:
    """Statistics of means over N items, with percentile intervals over ``times`` draws of the items."""

    def __init__(self, n: int, seed: int = 0, times: int = 1000) -> None:
        self._weights = np.concatenate(list(draws(n, seed, times))) / n  # (times, N)

    def mean(self, values: np.ndarray) -> Cell:
        """values (N,)"""
        return self._cell(float(values.mean()), self._weights @ values)

    def ratio(self, values: np.ndarray, base: np.ndarray) -> Cell:
        """mean(values) / mean(base). (N,), (N,)"""
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.float64(values.mean()) / np.float64(base.mean())
            return self._cell(float(value), (self._weights @ values) / (self._weights @ base))

    @staticmethod
    def _cell(value: float, draws: np.ndarray) -> Cell:
        draws = draws[np.isfinite(draws)]
        if not np.isfinite(value) or not len(draws):
            return {"value": None, "low": None, "high": None}
        low, high = np.quantile(draws, (0.025, 0.975))
        return {"value": value, "low": float(low), "high": float(high)}


def accuracies(
    clean: np.ndarray, hits: Mapping[str, np.ndarray], main: Collection[str], *, seed: int = 0, times: int = 1000
) -> dict:
    r"""A judge's accuracy on corrupted images: each severity, their mean, the mean corruption accuracy, the drops.

    .. math:: \bar a_c=\frac1S\sum_s a_{c,s},\quad \bar a=\frac1{|M|}\sum_{c\in M}\bar a_c,\quad
        drop=1-\bar a/a_{clean}

    (Hendrycks & Dietterich 2019, arXiv:1903.12261, who take errors against AlexNet's.)

    Args:
        clean: (N,) whether the judge is right on each image as it is.
        hits: by corruption (N, S), whether it is right at each severity.
        main: the corruptions M of the overall mean.
    """
    items = Resampled(len(clean), seed, times)
    clean = np.asarray(clean, np.float64)
    found = {}
    for name, hit in hits.items():
        mean = hit.mean(1)  # (N,)
        found[name] = {"severity": [items.mean(column) for column in hit.T.astype(np.float64)],
                       "mean": items.mean(mean), "drop": items.ratio(clean - mean, clean)}  # fmt: skip
    overall = np.mean([hits[name].mean(1) for name in hits if name in main], 0)  # (N,)
    return {"clean": items.mean(clean), "mean": items.mean(overall), "drop": items.ratio(clean - overall, clean),
            "corruptions": found}  # fmt: skip


def sensitivity(z: np.ndarray, view: np.ndarray, *, seed: int = 0, times: int = 1000) -> dict[str, Cell]:
    r"""How far a change moves features: the mean cosine, and how far that is beside another image.

    .. math:: s=\frac{1-\overline{\cos}(z_i,v_i)}{1-\overline{\cos}(z_i,z_{j\ne i})}

    0: the change is ignored; 1: a changed image is as far as another image is. The cosine alone says little, as
    features that tell nothing apart have a cosine near 1 with everything. z, view (N, d), row i of the same image.
    """
    if len(z) < 2 or z.shape != view.shape:
        raise UserError(f"{z.shape} features and {view.shape} of views: give the same shape, two images or more")
    a, b = unit(z).astype(np.float64), unit(view).astype(np.float64)
    cosine = (a * b).sum(1)
    other = (a @ a.sum(0) - (a * a).sum(1)) / (len(a) - 1)  # mean cosine with each other image
    items = Resampled(len(z), seed, times)
    apart = 1 - other if (1 - other).mean() > 1e-6 else np.zeros(len(z))  # float32's rounding is no distance
    return {"cosine": items.mean(cosine), "other": items.mean(other), "sensitivity": items.ratio(1 - cosine, apart)}
