"""A disk that fills up while a checkpoint is written: the last good one stands, training goes on, resuming works."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attempts import OFTEN, Attempt, Ground, checkpoints, forked, hold, same

from nearfar.training import keeper


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of its own in memory, where this user may mount one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path, left: int) -> None:
    """Write until the disk is full, then give back so many bytes."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            file.truncate(max(0, file.tell() - left))


def full(ground: Ground, disk: Path, whole: Path, flags: tuple[str, ...], left: int) -> Attempt:
    """A disk that fills up in training but for ``left`` bytes; then there is room again."""
    run = disk / "run"
    attempt = forked(ground.begin(run, *flags, *OFTEN), ground.folder / "full.log")
    attempt.until(lambda: len(checkpoints(run)) > 1, nap=0.001)
    fill(disk / "ballast", left)
    code = attempt.wait()
    said = attempt.said
    hold("could not be written" in said and "stands" in said, f"nothing is said of a full disk: {said[-500:]}")
    hold(said.count("Traceback") == ("tensorboard" in said), said[-800:])  # whose own thread says what befell it
    for checkpoint in checkpoints(run):
        keeper.checked(checkpoint)
    if code:
        hold(code == 2 and f"--resume {run}" in attempt.line, f"the end does not name --resume: {attempt.line}")
        hold("is trained" in attempt.line, f"training did not go on: {attempt.line}")
    (disk / "ballast").unlink()
    again = forked(["train", "--resume", str(run)], ground.folder / "again.log")
    hold(again.wait() == 0, f"{again.said[-800:]}")
    same(run, whole)
    shutil.rmtree(run)
    return attempt


def limited(ground: Ground, whole: Path, flags: tuple[str, ...], size: int) -> None:
    """No file may grow beyond ``size`` bytes: the second means, which needs no disk of its own."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    run = ground.folder / "limited"
    shutil.rmtree(run, ignore_errors=True)
    attempt = forked(ground.begin(run, *flags, *OFTEN), ground.folder / "limited.log", limit)
    hold(attempt.wait() == 2 and f"--resume {run}" in attempt.line, f"limit {size}: {attempt.said[-800:]}")
    hold("could not be written" in attempt.said, f"limit {size}: {attempt.said[-800:]}")
    again = forked(["train", "--resume", str(run)], ground.folder / "again.log")
    hold(again.wait() == 0, again.said[-800:])
    same(run, whole)


def prove(ground: Ground) -> str:
    short = ground.short
    flags = ("--steps", "120")
    whole = ground.whole(*flags)
    tried, ended = 0, 0
    with small_disk(ground.folder / "disk", 8) as mounted:
        for left in ((65536,) if short else (0, 0, 4096, 65536, 65536, 150_000, 300_000, 400_000)) if mounted else ():
            ended += full(ground, ground.folder / "disk", whole, flags, left).code != 0
            tried += 1
    if not mounted:
        print("no file system may be mounted here: files are limited in size instead", file=sys.stderr)
    sizes = (100_000,) if short and not mounted else () if short else (20_000, 100_000, 200_000)
    for size in sizes:
        limited(ground, whole, flags, size)
    return (f"{tried} file systems filled up in training, {len(sizes)} runs with a limit on a file's size: training "
            f"went on to its last step, the last good checkpoint stood, a line said so each time; {ended + len(sizes)} "
            f"could not write the last checkpoint and ended with one line that names --resume; with room, all resumed "
            f"to the uninterrupted run's bits")  # fmt: skip
