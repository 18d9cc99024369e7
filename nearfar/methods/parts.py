"""What methods share: the record of a step, the settings of a projector."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """What one forward gives: the loss to go down, features and projections to watch, numbers to log."""

    loss: Tensor  # ()
    features: Tensor  # (B·views, features), detached
    projections: Tensor  # (B·views, out), detached
    groups: Tensor  # (B·views,) group ids of both
    stats: dict[str, float] = {}  # noqa: RUF012 - never written to


class Progress(NamedTuple):
    """Where training stands."""

    step: int
    share: float  # of the budget, in [0, 1]
