"""Two commands on one run's folder: one trains, the other says so in a line and touches nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from attempts import OFTEN, Attempt, Ground, checkpoints, forked, hold, same

TAKEN = "is being trained by another process"


def live(ground: Ground, whole: Path, flags: tuple[str, ...]) -> None:
    """A second command on a folder that is being trained: refused, whether it resumes or forces."""
    run = ground.folder / "live"
    shutil.rmtree(run, ignore_errors=True)
    attempt = forked(ground.begin(run, *flags, *OFTEN), run.with_suffix(".log"))
    attempt.until(lambda: checkpoints(run) != [], nap=0.001)
    for argv in (["train", "--resume", str(run)], [*ground.begin(run, *flags), "--force"]):
        other = forked(argv, ground.folder / "second.log")
        hold(other.wait() == 2 and TAKEN in other.line, f"{argv}: {other.code}, {other.said[-500:]}")
        hold(not attempt.over(), "the first ended too early for the second to meet it")
    hold(attempt.wait() == 0, attempt.said[-500:])
    same(run, whole)


def at_once(ground: Ground, whole: Path, flags: tuple[str, ...], rng: np.random.Generator) -> int:
    """Two resume a killed run in the same instant, or nearly; how many had the folder to themselves at some time."""
    run = ground.folder / "both"
    shutil.rmtree(run, ignore_errors=True)
    attempt = forked(ground.begin(run, *flags, *OFTEN), run.with_suffix(".log"))
    attempt.until(lambda: checkpoints(run) != [], nap=0.001)
    attempt.send()
    attempt.wait()
    two: list[Attempt] = []
    for name in "ab":
        two.append(forked(["train", "--resume", str(run)], ground.folder / f"{name}.log"))
        late = rng.uniform(0, 0.1)
        two[-1].until(lambda: False, seconds=late)
    codes = sorted(a.wait() for a in two)
    hold(codes in ([0, 2], [0, 0]), f"{codes}: {two[0].said[-300:]} {two[1].said[-300:]}")
    for one in two:
        hold(one.code == 0 or TAKEN in one.line, one.said[-500:])
    same(run, whole)
    return codes.count(0)


def prove(ground: Ground) -> str:
    short = ground.short
    flags, rng = ("--steps", "120" if short else "250"), np.random.default_rng(0)
    whole, tries = ground.whole(*flags), 1 if short else 10
    for _ in range(1 if short else 5):
        live(ground, whole, flags)
    for _ in range(tries):
        hold(at_once(ground, whole, flags, rng) == 1, "both have trained")
    return (f"{2 if short else 10} times --resume or --force on a run under way: one line, exit 2, the run ended as "
            f"if alone; {tries} times two --resume at once: one trained to the uninterrupted run's bits, the other "
            f"said so and left")  # fmt: skip
