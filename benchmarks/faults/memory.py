"""Memory that runs out in a step: from then on the encoder is given fewer images at a time, and the loss is the same."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import numpy as np
from attempts import Attempt, Ground, forked, hold, rows

_FLAGS = ("--steps", "4", "--batch", "256", "--image-size", "64", "--workers", "0")
ENCODERS = {"cnn": ("--width", "24"), "LayerNorm (timm:test_convnext)": ("--encoder", "timm:test_convnext", "--norm", "layer")}
_MB = 2**20


def limited(ground: Ground, run: Path, flags: tuple[str, ...], megabytes: float) -> Attempt:
    """The command with so much address space more than it begins with."""

    def limit() -> None:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + int(megabytes * _MB), resource.RLIM_INFINITY))

    shutil.rmtree(run, ignore_errors=True)
    attempt = forked(ground.begin(run, *_FLAGS, *flags), run.with_suffix(".log"), limit)
    attempt.wait()
    return attempt


def least(ground: Ground, flags: tuple[str, ...]) -> float:
    """The least address space, to 4 MB, in which it trains without a word, by bisection."""
    low, high = 0.0, 4096.0
    while high - low > 16:
        middle = (low + high) / 2
        attempt = limited(ground, ground.folder / "probe", flags, middle)
        if attempt.code == 0 and "out of memory" not in attempt.said:
            high = middle
        else:
            low = middle
    return high


def prove(ground: Ground, short: bool = False) -> str:
    tried, split, off, refused = 0, 0, 0.0, 0
    for name, flags in list(ENCODERS.items())[1 if short else 0 :]:
        whole = ground.whole(f"roomy-{len(flags)}", *_FLAGS, *flags)
        enough = least(ground, flags)
        for share in (0.85,) if short else (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6):
            run = ground.folder / "tight"
            attempt = limited(ground, run, flags, enough * share)
            print(name, share, attempt.code, attempt.said[-300:])
            tried += 1
    return str((tried, split, off, refused))
