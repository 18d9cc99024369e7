"""Checkpoints that are cut short, or changed by a bit: named, refused, and the one before taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from attempts import OFTEN, Attempt, Ground, checkpoints, forked, hold, rows, same

from nearfar.errors import UserError
from nearfar.training import keeper

FILES = ("manifest.json", "method.safetensors", "training.safetensors")


def flip(path: Path, bit: int) -> None:
    held = bytearray(path.read_bytes())
    held[bit // 8] ^= 1 << bit % 8
    path.write_bytes(held)


def refused(checkpoint: Path, damaged: Path) -> None:
    """Opening says no in one line with the file's path."""
    try:
        keeper.checked(checkpoint)
    except UserError as error:
        hold(str(damaged) in str(error) and "\n" not in str(error), f"{damaged} is not named in one line: {error}")
    else:
        hold(False, f"{damaged} is damaged, and its checkpoint is taken")


def lengths(size: int) -> list[int]:
    return sorted({0, 1, 7, 8, 9, 100, size // 4, size // 2, 3 * size // 4, size - 8, size - 1})


def bits(file: Path, count: int, rng: np.random.Generator) -> list[int]:
    """Half of them anywhere, half in the first kilobyte: the header's length and the header."""
    size = 8 * file.stat().st_size
    return [int(rng.integers(size if i % 2 else min(size, 8192))) for i in range(count)]


def stopped_halfway(ground: Ground, name: str, *flags: str) -> Path:
    """A run that was killed with two whole checkpoints or more."""
    run = ground.folder / name
    attempt = forked(ground.begin(run, *flags, *OFTEN), run.with_suffix(".log"))
    attempt.until(lambda: len(checkpoints(run)) > 1 and checkpoints(run)[-1].name >= "step-00000030", nap=0.001)
    attempt.send()
    hold(attempt.wait() == -9 and len(checkpoints(run)) > 1, f"{name} was not killed halfway: {attempt.said[-500:]}")
    return run


def each_kind(run: Path, flips: int, rng: np.random.Generator) -> tuple[int, int]:
    """Every file of the last checkpoint at every length, missing, longer, another's, and with flipped bits."""
    last, tried = checkpoints(run)[-1], 0
    for name in FILES:
        file = last / name
        good = file.read_bytes()
        other = (checkpoints(run)[-2] / name).read_bytes()
        for content in (*(good[:n] for n in lengths(len(good))), good + b"\0", other, None):
            file.unlink() if content is None else file.write_bytes(content)
            refused(last, last if content == other and name == FILES[0] else file)  # that manifest is sound
            tried += 1
            file.write_bytes(good)
        for bit in bits(file, flips, rng):
            flip(file, bit)
            refused(last, file)
            flip(file, bit)
    keeper.checked(last)
    return tried, flips * len(FILES)


def resumed(ground: Ground, run: Path, harm: Callable[[Path], None]) -> tuple[Attempt, Path]:
    """A copy of a run, harmed, and gone on with."""
    copy = ground.folder / "harmed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    harm(copy)
    attempt = forked(["train", "--resume", str(copy)], copy.with_suffix(".log"))
    attempt.wait()
    return attempt, copy


def fallen_back(ground: Ground, run: Path, whole: Path, harm: Callable[[Path], None], name: str) -> None:
    """The run names the file, takes the checkpoint before and ends as the uninterrupted one."""
    attempt, copy = resumed(ground, run, lambda copy: harm(checkpoints(copy)[-1] / name))
    before = int(checkpoints(run)[-2].name[5:])
    hold(attempt.code == 0, f"{name}: {attempt.said[-500:]}")
    hold(f"{checkpoints(run)[-1].name}/{name}" in attempt.said, f"{name} is not named: {attempt.said[:500]}")
    hold(f"from step {before}" in attempt.said, f"not from step {before}: {attempt.said[:500]}")
    same(copy, whole)


def prove(ground: Ground) -> str:
    short = ground.short
    rng = np.random.default_rng(0)
    flags = ("--steps", "120")
    whole, run = ground.whole(*flags), stopped_halfway(ground, "halfway", *flags)
    cut, flipped = each_kind(run, 40 if short else 334, rng)
    tries = 1 if short else 4
    names = FILES[1:2] if short else FILES
    for name in names:
        size = (checkpoints(run)[-1] / name).stat().st_size
        for _ in range(tries):
            length, bit = int(rng.choice(lengths(size))), int(rng.integers(8 * size))
            fallen_back(ground, run, whole, lambda file, n=length: file.write_bytes(file.read_bytes()[:n]), name)
            fallen_back(ground, run, whole, lambda file, b=bit: flip(file, b), name)

    def all_of_them(copy: Path) -> None:
        for i, checkpoint in enumerate(checkpoints(copy)):
            flip(checkpoint / FILES[i % 3], 99)

    attempt, copy = resumed(ground, run, all_of_them)
    hold(attempt.code == 2 and "holds no checkpoint that can be used" in attempt.line, f"all damaged: {attempt.said}")
    hold(rows(copy) == rows(run), "rows went where no checkpoint could be used")
    return (f"{cut} files cut, lengthened, missing or another checkpoint's and {flipped:,} flipped bits: each refused, "
            f"the file named; {2 * len(names) * tries} more resumed: from the checkpoint before, to the uninterrupted "
            f"run's bits; all checkpoints damaged: one line, exit 2, nothing changed")  # fmt: skip
