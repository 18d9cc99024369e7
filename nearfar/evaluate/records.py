"""What a judge gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Result:
    """A number with its 95 % interval and how many items or draws it comes from."""

    name: str
    value: float
    low: float
    high: float
    n: int
    detail: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """What a task's judge says: measures with their intervals, each class's numbers, and the bootstrap's draws.

    ``drawn``: each measure of the same items drawn again, paired between judgements of equal seeds.
    """

    results: dict[str, Result]
    per_class: tuple[dict[str, Any], ...]
    drawn: dict[str, np.ndarray] = field(repr=False)


def of_draws(values: Mapping[str, float], drawn: Mapping[str, np.ndarray], n: int) -> dict[str, Result]:
    """Each value with the middle 95 % of its draws; draws of NaN are left out."""
    out = {}
    for name, value in values.items():
        low, high = np.nanquantile(drawn[name], (0.025, 0.975))
        out[name] = Result(name, value, float(low), float(high), n)
    return out


@dataclass(frozen=True)
class Judgement:
    result: Result
    predictions: np.ndarray  # (N_test,), or (N_test, K) where an item has several labels
    metrics: dict[str, Any]
    by_item: np.ndarray | None = None  # (N_test,) ranking average precision, where an item has several labels
    predict: Callable[[np.ndarray], np.ndarray] | None = None  # the fitted judge: features (M, d) -> classes (M,)
