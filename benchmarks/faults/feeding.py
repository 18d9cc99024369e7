"""Images that go bad while training streams them: named in one line, the checkpoints stand, mended it goes on."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from attempts import OFTEN, Ground, checkpoints, forked, fresh, hold, same
from PIL import Image

from nearfar.training import keeper

_FLAGS = ("--width", "8", "--batch", "32", "--steps", "250")
HARMS: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "replaced by text": lambda path: path.write_text("no picture"),
    "replaced by a folder": lambda path: (path.unlink(), path.mkdir()),
}


def pictures(folder: Path, plain: Path) -> Path:
    """The digits as PNG files of 32 pixels a side."""
    folder.mkdir()
    for i, x in enumerate(np.load(plain)):
        Image.fromarray(np.kron(x, np.ones((4, 4), np.uint8))).save(folder / f"{i:03}.png")
    return folder


def harmed(ground: Ground, source: Path, whole: Path, harm: str, workers: int, rng: np.random.Generator,
           env: dict[str, str]) -> None:  # fmt: skip
    """One picture of a run under way goes bad, and is mended after the run has ended."""
    run = ground.folder / "fed"
    shutil.rmtree(run, ignore_errors=True)
    argv = ["train", str(source), *_FLAGS, "--out", str(run), "--workers", str(workers), *OFTEN]
    attempt = forked(argv, run.with_suffix(".log"), **env)
    attempt.until(lambda: len(checkpoints(run)) > 1, nap=0.001)
    path = source / f"{rng.integers(300):03}.png"
    good = path.read_bytes()
    HARMS[harm](path)
    hold(attempt.wait() == 2, f"{harm}, exit {attempt.code}: {attempt.said[-800:]}")
    hold(path.name in attempt.line and "cannot be read any more" in attempt.line, attempt.said[-800:])
    hold("Traceback" not in attempt.said, attempt.said[-800:])
    keeper.checked(checkpoints(run)[-1])
    refused = forked(["train", "--resume", str(run)], ground.folder / "again.log", **env)
    hold(refused.wait() == 2 and "is not what" in refused.line, f"not mended: {refused.said[-800:]}")
    if path.is_dir():
        path.rmdir()
    path.write_bytes(good)
    again = forked(["train", "--resume", str(run)], ground.folder / "again.log", **env)
    hold(again.wait() == 0, f"{harm}, mended: {again.said[-800:]}")
    same(run, whole)


def mapped(ground: Ground, source: Path, whole: Path) -> None:
    """A memory-mapped array is cut short: the system ends the process, and the checkpoint stands."""
    run = ground.folder / "mapped"
    shutil.rmtree(run, ignore_errors=True)
    argv = ["train", str(source), *_FLAGS, "--out", str(run), *OFTEN]
    attempt = forked(argv, run.with_suffix(".log"))
    attempt.until(lambda: len(checkpoints(run)) > 1, nap=0.001)
    with open(source, "rb+") as file:
        file.truncate(0)
    hold(attempt.wait() == -signal.SIGBUS, f"exit {attempt.code}: {attempt.said[-500:]}")
    shutil.copy(ground.plain, source)
    again = forked(["train", "--resume", str(run)], ground.folder / "again.log")
    hold(again.wait() == 0, again.said[-800:])
    same(run, whole)


def prove(ground: Ground) -> str:
    short = ground.short
    rng = np.random.default_rng(0)
    env = {"NEARFAR_CACHE": str(ground.folder / "cache"), "NEARFAR_CACHE_GB": "0.0001"}
    source = pictures(ground.folder / "pictures", ground.plain)
    whole = ground.folder / "fed-whole"
    attempt = fresh(["train", str(source), *_FLAGS, "--out", str(whole)], whole.with_suffix(".log"), **env)
    hold(attempt.wait() == 0 and "decoded as they are read" in " ".join(attempt.said.split()), attempt.said[-800:])
    tried = 0
    for harm in list(HARMS)[: 2 if short else None]:
        for workers in (2,) if short else (0, 2):
            harmed(ground, source, whole, harm, workers, rng, env)
            tried += 1
    if not short:
        array, cut = ground.folder / "mapped.npy", ground.folder / "mapped-whole"
        shutil.copy(ground.plain, array)
        attempt = fresh(["train", str(array), *_FLAGS, "--out", str(cut)], cut.with_suffix(".log"))
        hold(attempt.wait() == 0, attempt.said[-800:])
        for _ in range(3):
            mapped(ground, array, cut)
    return (f"{tried} times ({', '.join(HARMS)}; 0 and 2 workers): one line with the file's name, exit 2, the last "
            f"checkpoint sound; resumed before it was mended: one line, as the data differ; after: the uninterrupted "
            f"run's bits. A memory-mapped .npy cut short (3 times): the system ends the process with SIGBUS; mended "
            f"and resumed, the same bits")  # fmt: skip
