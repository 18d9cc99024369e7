"""Memory that runs out in a step: from then on the encoder is given fewer images at a time; the loss is the same."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

from attempts import Attempt, Ground, forked, hold, rows

_FLAGS = ("--steps", "4", "--batch", "128", "--image-size", "64", "--workers", "0")
_CONVNEXT = ("--encoder", "timm:test_convnext", "--width", "0", "--norm", "layer")
ENCODERS = {"cnn (BatchNorm)": ("--width", "16"), "timm:test_convnext (LayerNorm)": _CONVNEXT}
_MB = 2**20
SPLIT = "out of memory: from now on the encoder is given"


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


def trained(run: Path) -> bool:
    return (run / "checkpoints" / "step-00000004").is_dir()


def least(ground: Ground, flags: tuple[str, ...]) -> float:
    """The least address space, to 32 MB, in which it trains whole, by bisection."""
    low, high, run = 0.0, 2048.0, ground.folder / "probe"
    while high - low > 32:
        middle = (low + high) / 2
        attempt = limited(ground, run, flags, middle)
        if trained(run) and SPLIT not in attempt.said:
            high = middle
        else:
            low = middle
    return high


def tight(ground: Ground, whole: Path, flags: tuple[str, ...], megabytes: float) -> float | None:
    """A run with too little: how far a step's loss is off after splitting, or None where it was too little for that."""
    run = ground.folder / "tight"
    attempt = limited(ground, run, flags, megabytes)
    hold(attempt.code in (0, 2) and "Traceback" not in attempt.said, attempt.said[-1500:])
    if not trained(run):  # oneDNN does not always recover where it had no address space for its code
        hold(attempt.code == 2, attempt.said[-800:])
        return None
    hold(attempt.code == 0 or f"--resume {run}" in attempt.line, attempt.line)  # judging wants memory too
    hold(attempt.said.count(SPLIT) >= 1, f"trained whole in less than the least: {attempt.said[-500:]}")
    pairs = zip(rows(run), rows(whole))
    off = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in pairs)
    again = forked(["train", "--resume", str(run)], ground.folder / "again.log")
    hold(again.wait() == 0, again.said[-800:])
    return off


def prove(ground: Ground) -> str:
    short = ground.short
    said = []
    for name, flags in list(ENCODERS.items())[1 if short else 0 :]:
        whole = ground.whole(*_FLAGS, *flags)
        enough = least(ground, flags)
        shares = (0.8,) if short else (0.92, 0.89, 0.86, 0.83, 0.8, 0.77, 0.74, 0.6)
        offs = [tight(ground, whole, flags, enough * share) for share in shares]
        held = [off for off in offs if off is not None]
        hold(held, f"{name}: in {offs} no way was found")
        hold("Layer" not in name or max(held) < 1e-5, f"{name}: a loss is off by {max(held)}")
        said.append(f"{name}, whole in {enough:.0f} MB: {len(held)} of {len(offs)} runs with {shares[-1]:.0%} to "
                    f"{shares[0]:.0%} of that went on in parts, losses of 4 steps off by {max(held):.1e} at most, the "
                    f"others ended in one line")  # fmt: skip
    return "; ".join(said)
