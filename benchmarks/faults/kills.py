"""SIGKILL at any instant, resumed each time until finished: weights, rows and results are the uninterrupted run's."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from attempts import OFTEN, Attempt, Ground, checkpoints, forked, fresh, hold, once, same, side

_SMALL = ("--width", "8", "--batch", "32", "--steps", "150")
CASES: dict[str, tuple[str, ...]] = {
    "simclr, AdamW": ("--method", "simclr"),
    "simclr, SGD, accumulate 2": ("--method", "simclr", "--optim.name", "sgd", "--accumulate", "2", "--batch", "64"),
    "simclr, LARS": ("--method", "simclr", "--optim.name", "lars", "--optim.lr", "1.0"),
    "moco, twin and queue": ("--method", "moco", "--queue", "256", "--momentum", "0.9"),
    "swav, prototypes and queue": ("--method", "swav", "--prototypes", "30", "--queue", "128", "--queue-from", "1",
                                   "--hidden", "64"),
    "dino, twin and centre": ("--method", "dino", "--prototypes", "64", "--hidden", "64", "--dim", "32",
                              "--steps", "60"),
    "byol, twin and predictor": ("--method", "byol", "--hidden", "64", "--predictor-hidden", "64", "--dim", "32"),
    "deepcluster-v2, bank and k-means": ("--method", "deepcluster-v2", "--prototypes", "20", "--hidden", "64",
                                         "--steps", "60"),
    "inst-disc, bank": ("--method", "inst-disc", "--negatives", "64"),
    "supcon, labels": ("--method", "supcon"),
    "triplet, batches of P classes": ("--method", "triplet"),
    "simclr, stochastic depth": ("--method", "simclr", "--encoder", "torchvision:efficientnet_b0", "--batch", "16",
                                 "--steps", "12", "--optim.name", "sgd"),
}  # fmt: skip


def begin(source: Path, case: str, out: Path, *more: str) -> list[str]:
    return ["train", str(source), *once(*_SMALL, *CASES[case]), "--out", str(out), *more]


@dataclass
class Whole:
    """An uninterrupted run: its folder, its last step, and a fork's seconds until the first row and from there on."""

    run: Path
    first: float
    training: float

    @property
    def last(self) -> str:
        return checkpoints(self.run)[-1].name


class Trials:
    """Runs that are killed until they are done, each held against its case's uninterrupted one."""

    def __init__(self, ground: Ground, seed: int = 0) -> None:
        self.folder, self.source, self.rng = ground.folder, ground.labelled, np.random.default_rng(seed)
        self.short = ground.short
        self.kills: Counter[str] = Counter()
        self.fresh = self.runs = self.left = 0
        self._wholes: dict[str, Whole] = {}

    def whole(self, case: str) -> Whole:
        """In a process of its own, with few checkpoints; a fork with many is timed, and comes to the same."""
        if case not in self._wholes:
            run, timed = (self.folder / f"{name}-{len(self._wholes)}" for name in ("whole", "timed"))
            attempt = (forked if self.short else fresh)(begin(self.source, case, run), run.with_suffix(".log"))
            hold(attempt.wait() == 0, f"{case}: {attempt.said[-800:]}")
            held = Whole(run, 0, 0)
            attempt = forked(begin(self.source, case, timed, *OFTEN), timed.with_suffix(".log"))
            attempt.until(lambda: _step(timed) > 0, nap=0.002)
            held.first = time.monotonic() - attempt.begun
            attempt.until(lambda: (timed / "checkpoints" / held.last).is_dir(), nap=0.002)
            held.training = time.monotonic() - attempt.begun - held.first
            hold(attempt.wait() == 0, f"{case}: {attempt.said[-800:]}")
            same(timed, run)
            self._wholes[case] = held
        return self._wholes[case]

    def run(self, case: str, workers: int, kinds: list[str], share_fresh: float = 0.0) -> list[str]:
        """One run, killed in each of these ways in turn, then finished and compared; the kinds that are left over."""
        whole, run, kinds = self.whole(case), self.folder / "killed", list(kinds)
        shutil.rmtree(run, ignore_errors=True)
        first = begin(self.source, case, run, "--workers", str(workers), *OFTEN)
        while True:
            argv = ["train", "--resume", str(run)] if (run / "recipe.toml").is_file() else first
            new, step = self.rng.random() < share_fresh, _step(run)
            attempt = (fresh if new else forked)(argv, run.with_suffix(".log"))
            if kinds and self._strike(attempt, run, whole, kinds[0], new):
                self.kills[_where(run, whole, step, attempt.pid)] += 1
                self.fresh += new
                kinds.pop(0)
                continue
            hold(attempt.wait() == 0, f"{case}, workers {workers}, {argv}: {attempt.said[-800:]}")
            same(run, whole.run)
            break
        self.runs += 1
        for path in self.folder.glob(".killed.*"):  # of kills while the folder was being made
            self.left += 1
            shutil.rmtree(path)
        return kinds

    def _strike(self, attempt: Attempt, run: Path, whole: Whole, kind: str, new: bool) -> bool:
        """Kill at an instant of that kind; False where the process had ended before."""
        if kind == "start":
            return _kill(attempt, self.rng.uniform(0, whole.first + 2.5 * new))
        if kind == "judging":
            attempt.until(lambda: (run / "checkpoints" / whole.last).is_dir() and not (run / "results.json").exists())
            return _kill(attempt, self.rng.uniform(0, 0.8))
        at = _changed(run)
        attempt.until(lambda: _changed(run) != at and _step(run) > 0, nap=0.001)
        late = time.monotonic() + self.rng.uniform(0, whole.training / 8)
        attempt.until(lambda: time.monotonic() > late)
        if kind == "writing":
            attempt.until(lambda: side(run))
            return _kill(attempt, self.rng.uniform(0, 0.004))
        return _kill(attempt, 0)


def _kill(attempt: Attempt, seconds: float) -> bool:
    end = time.monotonic() + seconds
    attempt.until(lambda: time.monotonic() > end)
    if not attempt.over():
        attempt.send()
    return attempt.wait() == -9


def _changed(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _step(run: Path) -> int:
    """Of the last whole row."""
    try:
        text = (run / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return 0
    whole = text[: text.rfind(b"\n") + 1].splitlines()
    return json.loads(whole[-1])["step"] if whole else 0


def _where(run: Path, whole: Whole, before: int, pid: int) -> str:
    """What the killed process was at, by what it has left."""
    if side(run, f".{pid}"):
        return "while a checkpoint was written"
    if (run / "checkpoints" / whole.last).is_dir():
        return "after training, before the end"
    return "in training" if _step(run) > before else "before its first row"


def prove(ground: Ground) -> str:
    """200 kills over all cases, with 0 and with 2 workers; what happened, in words."""
    trials = Trials(ground)
    cases = [(case, workers) for workers in (0, 2) for case in CASES]
    kinds = ["start", "writing", "training", "writing", "writing", "training", "start", "writing"]
    if ground.short:
        cases, kinds = [("moco, twin and queue", 2)], kinds[:6]
    wanted, at = 6 if ground.short else 200, 0
    while trials.kills.total() < wanted:
        case, workers = cases[at % len(cases)]
        part = [*trials.rng.permutation(kinds), "judging"]
        trials.run(case, workers, part, share_fresh=0.0 if ground.short else 0.15)
        at += 1
        print(f"{case}, workers {workers}: {dict(trials.kills)}", file=sys.stderr, flush=True)
    where = ", ".join(f"{n} {name}" for name, n in trials.kills.most_common())
    return (f"{trials.runs} runs of {len({c for c, _ in cases})} cases resumed to their end: weights, rows and results "
            f"equal to the bit. Killed: {where}; {trials.fresh} in processes that were started for it, the rest forks "
            f"of one with the imports done")  # fmt: skip
