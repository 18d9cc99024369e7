"""How far training is: counted in steps, or in minutes with a schedule that still finishes."""

from __future__ import annotations

import math

from nearfar.errors import UserError

SCHEDULES = ("cosine", "constant", "step")


def learning_rate(share: float, warmup: float, schedule: str = "cosine", end: float = 0.0) -> float:
    """Linear from 0 over ``warmup``, then the schedule, as a factor of the peak. share in [0, 1]

    ``cosine`` is half a cosine to ``end``; ``constant`` stays; ``step`` is a tenth from 60 % of the training on and
    a hundredth from 80 % on (MoCo v1: 120 and 160 of 200 epochs).

    >>> learning_rate(0.05, 0.1), learning_rate(0.1, 0.1), learning_rate(1.0, 0.1)
    (0.5, 1.0, 0.0)
    >>> learning_rate(0.7, 0.0, "step"), learning_rate(1.0, 0.1, end=0.01)
    (0.1, 0.01)
    """
    if share < warmup:
        return share / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if share < 0.6 else 0.1 if share < 0.8 else 0.01
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


class Pace:
    """The share of the budget that a step stands for, as line segments over steps.

    Counted in steps there is one segment. Counted in minutes the steps that will fit are estimated from those
    done, and estimated anew every 2 % of the time; a new estimate bends the line and never breaks it, so the
    schedule ends at 1 when the time ends. The segments, as ``(step, share, slope)``, are kept in the recipe:
    given them, a timed run is repeated step for step.
    """

    def __init__(self, *, steps: int = 0, minutes: float = 0.0, segments: list[list[float]] | None = None):
        self.seconds = 0.0
        if segments:
            self.segments = [(int(a), float(b), float(c)) for a, b, c in segments]
            if self.segments[-1][1:] != (1.0, 0.0):
                raise UserError("pace must end with [steps, 1.0, 0.0]: take the recipe of a finished run")
        elif steps > 0:
            self.segments = [(0, 0.0, 1 / steps), (steps, 1.0, 0.0)]
        elif minutes > 0:
            self.segments, self.seconds = [(0, 0.0, 0.0)], minutes * 60
        else:
            raise UserError("no budget: give --epochs, --steps or --minutes above 0")
        self._planned_at = 0.0
        self._seen = (0, 0.0)  # steps and seconds at the last plan
        self._now = 0  # the segment in force

    @property
    def last_step(self) -> int | None:
        """The number of steps where it is known."""
        step, share, _ = self.segments[-1]
        return step if share == 1.0 else None

    def share(self, step: int) -> float:
        """In [0, 1]; steps are asked for in rising order."""
        while self._now + 1 < len(self.segments) and self.segments[self._now + 1][0] <= step:
            self._now += 1
        at, share, slope = self.segments[self._now]
        return min(1.0, share + (step - at) * slope)

    def done(self, step: int) -> bool:
        return self.last_step is not None and step >= self.last_step

    def observe(self, step: int, elapsed: float) -> None:
        """Tell that ``step`` steps took ``elapsed`` seconds. Does nothing where the steps are counted."""
        if not self.seconds or self.done(step):
            return
        end = self.last_step
        due = elapsed - self._planned_at > 0.02 * self.seconds or elapsed >= self.seconds
        first = end is None and step >= 3
        if not (first or (due and step >= 1)) or (end is not None and end - step <= 1):
            return
        per_step = elapsed / step if end is None else self._per_step(step, elapsed)
        left = max(1, round((self.seconds - elapsed) / per_step))
        share = self.share(step)
        if end is not None:
            self.segments.pop()
        self.segments.append((step, share, (1 - share) / left))
        self.segments.append((step + left, 1.0, 0.0))
        self._seen, self._planned_at = (step, elapsed), elapsed

    def _per_step(self, step: int, elapsed: float) -> float:
        """Seconds a step since the last plan."""
        before, then = self._seen
        return max((elapsed - then) / max(step - before, 1), 1e-9)

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return {"segments": self.segments, "planned_at": self._planned_at, "seen": self._seen}

    def restore(self, state: dict) -> None:
        """Stand where ``state`` was taken."""
        self.segments = [(int(a), float(b), float(c)) for a, b, c in state["segments"]]
        self._planned_at, (step, elapsed) = state["planned_at"], state["seen"]
        self._seen, self._now = (step, elapsed), 0

    def left(self, step: int, elapsed: float) -> float | None:
        """Seconds left, as far as can be said."""
        if self.seconds:
            return max(0.0, self.seconds - elapsed)
        return elapsed / step * (self.last_step - step) if step and self.last_step else None
