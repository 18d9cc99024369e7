"""What share of a training step is spent outside the encoder's own forward and backward?

    python benchmarks/step_share.py

Trains SimCLR through `nearfar.learning.learn`, the code path of `nearfar train`, on random 32×32 RGB images with the
small CNN and with ResNet-18, and reads the loop's clock: reading ahead, views, optimiser, logging. The encoder's
part holds the method's forward (projector and loss included) and the backward; the projector's and the loss's
share of it is timed apart on the same tensors and counted as outside. Medians over repeats; the first step's warm-up
and the first ten steps' logging, which is denser, are in the figures.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from nearfar import build
from nearfar.data import open_source
from nearfar.learning import Hooks, fresh, learn
from nearfar.losses import nt_xent
from nearfar.recipe import Recipe


def head_seconds(method: torch.nn.Module, batch: int, mixed: bool, repeats: int = 15) -> float:
    """Median seconds of the projector and the loss, forward and backward, on 2·batch rows, in the run's precision."""
    h = torch.randn(2 * batch, method.encoder.features, requires_grad=True)
    groups = torch.arange(batch).repeat(2)
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = nt_xent(method.project(h), groups, temperature=0.1)
        loss.backward()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def measure(encoder: str, batch: int, steps: int, repeats: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4 * batch, 32, 32, 3), dtype=np.uint8)
    source = open_source(x).train
    rows = []
    for _ in range(repeats):
        recipe = build.resolve(Recipe(source="array", encoder=encoder, batch=batch, steps=steps), source)
        learnt = learn(source, recipe, fresh(source, recipe), Hooks(show=False))
        clock = learnt.clock
        head = head_seconds(learnt.method.train(), batch, recipe.precision == "bf16-mixed") * steps
        outside = clock.total - clock.encoder
        rows.append({
            "data": clock.data / clock.total, "views": clock.views / clock.total,
            "projector and loss": head / clock.total, "optimiser": clock.optimiser / clock.total,
            "logging": clock.logging / clock.total, "outside": (outside + head) / clock.total,
            "views/s": 2 * batch * steps / clock.total,
        })  # fmt: skip
    said = "  ".join(f"{k} {statistics.median(r[k] for r in rows):.1%}" for k in rows[0] if k != "views/s")
    rate = statistics.median(r["views/s"] for r in rows)
    print(f"{encoder:10} batch {batch}, {recipe.precision}: {said}  ({rate:,.0f} views/s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    measure("cnn", 256, 200, given.repeats)
    measure("resnet18", 256, 40, max(1, given.repeats // 3))  # three seconds a step


if __name__ == "__main__":
    main()
