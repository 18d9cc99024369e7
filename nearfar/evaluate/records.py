"""What a judge gives."""

from __future__ import annotations

from collections.abc import Callable
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
class Judgement:
    result: Result
    predictions: np.ndarray  # (N_test,), or (N_test, K) where an item has several labels
    metrics: dict[str, Any]
    by_item: np.ndarray | None = None  # (N_test,) ranking average precision, where an item has several labels
    predict: Callable[[np.ndarray], np.ndarray] | None = None  # the fitted judge: features (M, d) -> classes (M,)
