"""The doctor reads a run's logged rows and says in words what is wrong, why it likely is, and what helps.

A rule is a function of the rows so far and the run's facts that gives what it has seen, the likely cause and the
remedy, or None; ``RULES`` has them from causes to consequences. Each is said once, at the step where it is seen, and
what follows from it is not said after it. The signs are :mod:`nearfar.training.watch`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from nearfar.training.optim import Optim

Row = Mapping[str, float]
_KEPT = 400  # rows; of more, those between the first and the last are thinned


@dataclass(frozen=True)
class Facts:
    """What is known of a run beforehand."""

    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)  # the method's
    optim: Optim = field(default_factory=Optim)
    precision: str = "32-true"
    batch: int = 256
    classes: int = 0  # that are told apart, where the method is supervised


class Said(NamedTuple):
    seen: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """What was found, at which step, in words."""

    step: int
    name: str
    seen: str
    cause: str
    remedy: str

    @property
    def text(self) -> str:
        """All of it in one line."""
        return f"step {self.step}: {self.seen}. Likely cause: {self.cause}. What to do: {self.remedy}."

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Doctor:
    """Sees row after row; tells each finding once.

    >>> doctor = Doctor(Facts(settings={"temperature": 1e-4}), tell=lambda finding: print(finding.name))
    >>> for step in (1, 2):
    ...     doctor.see({"step": step, "loss": 2600.0, "chance": 6.2})
    temperature
    """

    def __init__(self, facts: Facts, tell: Callable[[Finding], None] = lambda finding: None) -> None:
        self.facts, self.tell = facts, tell
        self.findings: list[Finding] = []
        self._rows: list[Row] = []

    def see(self, row: Row) -> None:
        """Take a row in, and tell what it shows."""
        self._rows.append(row)
        if len(self._rows) > _KEPT:
            del self._rows[20:-100:2]
        for rule in RULES:
            if any(f.name == rule.__name__ for f in self.findings):
                break  # it, and what follows from it, is known
            said = rule(self._rows, self.facts)
            if said:
                self.findings.append(Finding(int(row["step"]), rule.__name__, *said))
                self.tell(self.findings[-1])
                break


def _get(row: Row, name: str) -> float:
    value = row.get(name)
    return math.nan if value is None else float(value)


def _lasting(rows: list[Row], test: Callable[[Row], bool], times: int = 2) -> bool:
    """Whether the last ``times`` rows all pass: one batch is no proof."""
    return len(rows) >= times and all(test(row) for row in rows[-times:])


def _slower(facts: Facts) -> str:
    return f"lower --optim.lr tenfold, to {facts.optim.lr / 10:g}, and again if this comes back"


def _rate(facts: Facts) -> str:
    return f"the learning rate, {facts.optim.lr:g} with {facts.optim.name}, is too high"


def _sharp(facts: Facts) -> tuple[str, float] | None:
    """The smallest temperature, where one is below what any method is trained with."""
    held = {k: v for k, v in facts.settings.items() if k.endswith("temperature") and isinstance(v, float)}
    name = min(held, key=held.get, default="")
    return (name, held[name]) if name and held[name] < 0.02 else None


def not_finite(rows: list[Row], facts: Facts) -> Said | None:
    """The loss is NaN or infinite; the row says since which step."""
    at = _get(rows[-1], "broken_at")
    if not at > 0 and math.isfinite(rows[-1]["loss"]):
        return None
    seen = f"the loss stopped being finite at step {at:.0f}" if at > 0 else f"the loss is {rows[-1]['loss']}"
    sharp = _sharp(facts)
    if at <= 1 and not sharp:
        cause = "no weight had moved yet, so it is the images or a setting of the method"
        return Said(seen, cause, "look for NaN, infinite or huge values in the source, and at the method's settings")
    if sharp:
        return Said(seen, f"{sharp[0]} = {sharp[1]:g} is too small", f"raise {sharp[0]}, to 0.1 or so")
    if facts.precision == "16-mixed" and _get(rows[0], "weight_growth") * 2 > max(_grown(rows), 1.0):
        return Said(seen, "float16 overflowed, as the weights had hardly grown", "--precision bf16-mixed or 32-true")
    return Said(seen, _rate(facts), f"{_slower(facts)}; or set --optim.clip 1")


def _grown(rows: list[Row]) -> float:
    return max((g for row in rows if math.isfinite(g := _get(row, "weight_growth"))), default=math.nan)


def equal_images(rows: list[Row], facts: Facts) -> Said | None:
    """The pictures of a batch are the same picture."""
    spread = _get(rows[-1], "image_spread")
    if not spread < 0.02:
        return None
    seen = f"the images of a batch are all but equal: they differ by {spread:.2g} of what their pixels do"
    remedy = "look at the source (nearfar views SOURCE): is it one picture many times, or a wrong file or column"
    return Said(seen, "the source, in which there is nothing to tell apart", remedy)


def temperature(rows: list[Row], facts: Facts) -> Said | None:
    """From the start the loss is many times that of telling nothing apart, and a temperature is tiny."""
    row, sharp = rows[-1], _sharp(facts)
    times = _get(row, "loss") / _get(row, "chance")
    if not sharp or row["step"] > 20 or not times > 5:
        return None
    seen = f"the loss is {row['loss']:,.0f}, {times:,.0f} times that of an encoder that tells nothing apart"
    cause = (f"{sharp[0]} = {sharp[1]:g} is too small: cosines are divided by it, so that the one most alike negative "
             "decides the loss and all pictures are drawn together to make it small")  # fmt: skip
    return Said(seen, cause, f"raise {sharp[0]}, to 0.1 or so (papers take 0.05 to 0.5)")


def learning_rate(rows: list[Row], facts: Facts) -> Said | None:
    """The weights grow by multiples within a few steps."""
    now, grown = rows[-1], _get(rows[-1], "weight_growth")
    before = [_get(row, "weight_growth") for row in rows[:-1] if now["step"] - row["step"] <= 10]
    lately = grown / min(before, default=1.0)
    if not (lately > 2 or (grown > 5 and now["step"] <= 1000)):
        return None
    seen = f"the encoder's weights have grown {grown:.3g}-fold since the start, {lately:.3g}-fold within ten steps"
    return Said(seen, _rate(facts), f"{_slower(facts)}; or lengthen --optim.warmup")


def divergence(rows: list[Row], facts: Facts) -> Said | None:
    """The loss has risen far above where it began."""
    first = max(abs(_get(row, "loss")) for row in rows[:10])
    chances = [c for row in rows if math.isfinite(c := _get(row, "chance"))]
    bound = 3 * max(first, 0.3, *chances[-1:])
    if len(rows) <= 10 or not _lasting(rows, lambda row: _get(row, "loss") > bound):
        return None
    seen = f"the loss has risen to {rows[-1]['loss']:.3g} and was at most {first:.3g} in the first steps"
    return Said(seen, _rate(facts), f"{_slower(facts)}; or set --optim.clip 1")


def one_prototype(rows: list[Row], facts: Facts) -> Said | None:
    """All pictures are given to one prototype."""

    def used(row: Row) -> float:
        count = min(facts.settings.get("prototypes", math.inf), math.exp(min(_get(row, "chance"), 50.0)))
        return _get(row, "prototype_usage") * count

    if not _lasting(rows, lambda row: used(row) < 4 and _get(row, "prototype_usage") < 0.125):
        return None
    seen = f"all pictures are given to one prototype: {used(rows[-1]):.2f} are in use, in effect"
    if facts.settings.get("centring") is False:
        return Said(seen, "centring is off, so nothing keeps the teacher from one answer for all", "centring = true")
    if "centring" in facts.settings:
        return Said(seen, "the teacher is sharpened more than its centre can make up for, or the rate is too high",
                    "raise teacher_temperature and start_temperature, lower centre_momentum or --optim.lr")  # fmt: skip
    return Said(seen, "the prototypes move faster than the features, or the assignment is too hard",
                "lower --optim.lr, raise epsilon, or frozen_epochs, in which the prototypes stand still")  # fmt: skip


def collapse(rows: list[Row], facts: Facts) -> Said | None:
    """All pictures are one point: two pictures are as alike as two views of one."""
    if not _lasting(rows, lambda row: _get(row, "spread") < 0.03 and _get(row, "negative") > 0.998):
        return None
    row = rows[-1]
    seen = (f"all pictures have become one point: two pictures' cosine is {row['negative']:.4f}, two views' "
            f"{_get(row, 'positive'):.4f}, and the spread a dimension {row['spread']:.3f} (1 where even)")  # fmt: skip
    return Said(seen, *_why_collapsed(facts))


def few_directions(rows: list[Row], facts: Facts) -> Said | None:
    """The embedding is a line or a plane."""
    limits = (facts.classes - 1 if facts.classes else math.inf, facts.settings.get("dim", math.inf), facts.batch - 1)
    names = {"effective_rank_projections": "projections", "effective_rank": "features"}
    if min(limits) < 8:
        return None
    for name, what in names.items():
        known = [row for row in rows if math.isfinite(_get(row, name))]
        if len(known) > 2 and _lasting(known, lambda row: 0 < _get(row, name) < 3):  # noqa: B023
            seen = (f"the {what} have collapsed to a few directions: their effective rank is {known[-1][name]:.1f} and "
                    f"was {known[0][name]:.0f}; two pictures' cosine is {_get(rows[-1], 'negative'):.2f}")  # fmt: skip
            return Said(seen, *_why_collapsed(facts))
    return None


def _why_collapsed(facts: Facts) -> tuple[str, str]:
    """Cause and remedy of a collapse, by what keeps this kind of method from it."""
    held = facts.settings
    if held.get("stop_gradient") is False:
        return ("the gradient is not stopped on the side that is to be foretold, so that both sides meet in one answer "
                "for all", "stop_gradient = true")  # fmt: skip
    if held.get("centring") is False:
        return "centring is off, so nothing keeps the teacher from one answer for all", "centring = true"
    alone = "temperature" not in held  # without negatives
    if alone and held.get("norm") == "none" and ("predictor_hidden" in held or "teacher_temperature" in held):
        return ("without negatives such a method leans on its projector's normalisation, and norm = \"none\"",
                "norm = \"batch\", or lower --optim.lr")  # fmt: skip
    if "predictor_hidden" in held and alone:
        return ("without negatives only the predictor and the side that is held still keep pictures apart, and the "
                "predictor did not keep up", "lower --optim.lr; raise momentum where there is a twin")  # fmt: skip
    for name in ("variance", "off_diagonal", "weight"):
        if name in held and alone:
            return (f"the term that keeps pictures apart weighs too little ({name} = {held[name]:g})",
                    f"raise {name}, or lower --optim.lr")  # fmt: skip
    if "margin" in held:
        return ("the hardest pairs are pushed together before anything is learnt, as hard mining does with a high rate",
                "lower --optim.lr, take easier pairs first (mining), or larger batches")  # fmt: skip
    if "temperature" in held:
        return (f"{_rate(facts)}, or temperature = {held['temperature']:g} does not suit",
                f"{_slower(facts)}; try a temperature from 0.1 to 0.5")  # fmt: skip
    return _rate(facts), _slower(facts)


def at_chance(rows: list[Row], facts: Facts) -> Said | None:
    """For a fifth of the training the loss is that of telling nothing apart."""
    now = rows[-1]
    since = [r for r in rows if r["step"] > 10 and _get(r, "share") > facts.optim.warmup]
    late = [r for r in since if r["share"] >= now["share"] - 0.2 or r["step"] >= now["step"] - 100]
    long = len(late) >= 5 and now["step"] - since[0]["step"] >= 100 and now["share"] - since[0]["share"] >= 0.2
    apart = [abs(_get(row, "loss") / _get(row, "chance") - 1) for row in late]
    if not long or not sum(apart) / len(apart) < 0.003:
        return None
    seen = (f"nothing is being learnt: since step {late[0]['step']:.0f} the loss has been {now['loss']:.3f}, that of "
            "an encoder that tells nothing apart")  # fmt: skip
    if _get(now, "negative") > 0.95:
        return Said(seen, *_why_collapsed(facts))
    if "teacher_temperature" in facts.settings:
        return Said(seen, "the teacher answers all classes alike", "lower teacher_temperature")
    cause = f"the learning rate ({facts.optim.lr:g}) does not suit, or the views leave nothing to know a picture by"
    return Said(seen, cause, "try --optim.lr thrice lower and higher, and look at the views (nearfar views SOURCE)")


def no_gradient(rows: list[Row], facts: Facts) -> Said | None:
    """The gradient has vanished though the loss has not."""
    most = max((g for row in rows if math.isfinite(g := _get(row, "gradient"))), default=0.0)
    first = max(abs(_get(row, "loss")) for row in rows[:10])
    still = _lasting(rows, lambda row: _get(row, "gradient") <= 1e-6 * most and _get(row, "loss") > 0.01 * first, 3)
    if not still or not most > 0:
        return None
    seen = f"no gradient is left: its norm is {_get(rows[-1], 'gradient'):.1g}, of {most:.3g} before, at a loss of "
    cause = "units that are all off (ReLU), after too high a rate, or numbers too small for the precision"
    return Said(seen + f"{rows[-1]['loss']:.3g}", cause, f"{_slower(facts)}; --precision 32-true")


RULES: tuple[Callable[[list[Row], Facts], Said | None], ...] = (
    not_finite, equal_images, temperature, learning_rate, divergence, one_prototype, collapse, few_directions,
    at_chance, no_gradient,
)  # fmt: skip
