"""A rank that is killed under torchrun --max-restarts: all start anew and go on."""

from __future__ import annotations

import numpy as np
from attempts import Ground
from stopping import pair, restarted


def prove(ground: Ground) -> str:
    short = ground.short
    rng, flags = np.random.default_rng(1), ("--steps", "150")
    whole = pair(ground, "elastic-whole", flags)
    took = [restarted(ground, whole, flags, rng) for _ in range(1 if short else 10)]
    return (f"{len(took)} runs of two gloo processes, one of them killed: each restarted, resumed by itself and ended "
            f"with the weights and rows of the uninterrupted pair, to the bit, {min(took):.0f} to {max(took):.0f} s "
            f"after the kill")  # fmt: skip
