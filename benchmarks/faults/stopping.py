"""SIGTERM, SIGUSR1, Ctrl-C: a checkpoint, exit code 75, and resuming; and torchrun's restarts after a SIGKILL."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
from attempts import OFTEN, Attempt, Ground, checkpoints, descendants, forked, fresh, hold, rows, same

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def training(run: Path, step: int) -> bool:
    """Whether a row of at least that step is there."""
    try:
        held = rows(run)
    except (FileNotFoundError, ValueError):
        return False
    return bool(held) and held[-1]["step"] >= step


def ranks(attempt: Attempt) -> dict[int, int]:
    """The process ids of the ranks under a launcher, which may be rank 0 itself."""
    found = {0: attempt.pid}
    for pid in descendants(attempt.pid):
        with contextlib.suppress(OSError):
            if rank := re.search(rb"(?:^|\0)LOCAL_RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes()):
                found[int(rank[1])] = pid
    return found


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended (nobody may have asked for its exit code)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def one(ground: Ground, whole: Path, flags: tuple[str, ...], rng: np.random.Generator) -> list[float]:
    """A single process, stopped three times on its way; the seconds each stop took."""
    run, took = ground.folder / "stopped", []
    shutil.rmtree(run, ignore_errors=True)
    argv = ground.begin(run, *flags, "--workers", str(rng.integers(0, 3)))  # checkpoints a minute apart: never else
    for number in rng.permutation(STOPS):
        attempt = forked(argv, run.with_suffix(".log"))
        last = rows(run)[-1]["step"] if run.exists() else 0
        goal = last + 1 + int(rng.integers(0, 30))
        attempt.until(lambda goal=goal: training(run, goal), nap=0.001)
        begun = time.monotonic()
        attempt.send(int(number))
        code = attempt.wait()
        took.append(time.monotonic() - begun)
        hold(code == 75, f"{signal.Signals(number).name}: exit {code}: {attempt.said[-500:]}")
        said = re.search(r"stopped by (\w+) after step (\d+): go on with nearfar train --resume (.*)", attempt.line)
        hold(said and said[1] == signal.Signals(number).name and said[3] == str(run), attempt.line)
        hold(checkpoints(run)[-1].name == f"step-{int(said[2]):08}", f"no checkpoint of step {said[2]}")
        argv = ["train", "--resume", str(run)]
    attempt = forked(argv, run.with_suffix(".log"))
    hold(attempt.wait() == 0, attempt.said[-500:])
    same(run, whole)
    return took


def launched(ground: Ground, run: Path, argv: list[str], torchrun: bool, restarts: int = 0) -> Attempt:
    if torchrun:
        return fresh([*argv], run.with_suffix(".log"),
                     python=(*TORCHRUN, "--max-restarts", str(restarts), "-m", "nearfar"))  # fmt: skip
    return fresh([*argv, "--devices", "2"], run.with_suffix(".log"))


def two(ground: Ground, whole: Path, flags: tuple[str, ...], torchrun: bool, rank: int, number: int) -> float:
    """One rank of two is asked to stop: both do, at the same step; seconds until all were gone."""
    run = ground.folder / "pair"
    shutil.rmtree(run, ignore_errors=True)
    attempt = launched(ground, run, ground.begin(run, *flags), torchrun)
    hold(attempt.until(lambda: training(run, 11), nap=0.005), attempt.said[-800:])
    begun, pids = time.monotonic(), ranks(attempt)
    os.kill(pids[rank], number)
    code = attempt.wait(60)
    while alive := [pid for pid in pids.values() if runs(pid)]:
        hold(time.monotonic() - begun < 60, f"processes are left: {alive}: {attempt.said[-800:]}")
        time.sleep(0.01)
    took = time.monotonic() - begun
    ends = re.findall(r"exitcode\s*:\s*(-?\d+)", attempt.said)
    hold(set(ends) == {"75"} if torchrun else code == 75, f"exit {code}, {ends}: {attempt.said[-1500:]}")
    hold(f"stopped by {signal.Signals(number).name} after step" in attempt.said, attempt.said[-1500:])
    again = launched(ground, run, ["train", "--resume", str(run)], torchrun)
    hold(again.wait() == 0, again.said[-1500:])
    same(run, whole)
    return took


def restarted(ground: Ground, whole: Path, flags: tuple[str, ...], rng: np.random.Generator) -> float:
    """A rank is killed under torchrun, which starts all anew: seconds from the kill to the end."""
    run = ground.folder / "elastic"
    shutil.rmtree(run, ignore_errors=True)
    attempt = launched(ground, run, ground.begin(run, *flags, *OFTEN), True, restarts=3)
    goal = int(rng.integers(1, 100))
    hold(attempt.until(lambda: training(run, goal), nap=0.005), attempt.said[-800:])
    begun = time.monotonic()
    os.kill(ranks(attempt)[int(rng.integers(2))], signal.SIGKILL)
    hold(attempt.wait(120) == 0, attempt.said[-1500:])
    hold("resuming" in attempt.said, f"it was not resumed: {attempt.said[-800:]}")
    same(run, whole)
    return time.monotonic() - begun


def pair(ground: Ground, name: str, flags: tuple[str, ...]) -> Path:
    """The uninterrupted run on two processes."""
    run = ground.folder / name
    if not run.exists():
        attempt = launched(ground, run, ground.begin(run, *flags), False)
        hold(attempt.wait() == 0, attempt.said[-800:])
    return run


def prove(ground: Ground) -> str:
    short = ground.short
    rng, flags = np.random.default_rng(0), ("--steps", "120" if short else "200")
    whole, took = ground.whole(*flags), []
    for _ in range(1 if short else 10):
        took += one(ground, whole, flags, rng)
    if short:
        return f"{len(took)} stops, at most {max(took):.2f} s"
    flags = ("--steps", "150")
    both, took2 = pair(ground, "both-whole", flags), []
    for torchrun in (False, True):
        for rank in (0, 1):
            for number in (signal.SIGTERM, signal.SIGUSR1):
                took2.append(two(ground, both, flags, torchrun, rank, number))
    return (f"one process: {len(took)} stops in {len(took) // 3} runs, each a checkpoint of that very step and exit "
            f"code 75 within {max(took):.2f} s, resumed to the uninterrupted run's bits; one rank of two ({len(took2)} "
            f"times, --devices 2 and torchrun): both stopped at the same step with 75, all gone within "
            f"{max(took2):.1f} s, resumed to the bits of two uninterrupted ones")  # fmt: skip
