"""The loop of `nearfar train` against a bare PyTorch loop, and against lightly's Lightning example, side by side.

    pip install lightly pytorch-lightning
    python benchmarks/throughput.py --out throughput.json

SimCLR on random 32×32 RGB images, batch 256, the same encoder, projector, optimiser and precision on all sides. `bare`
is what is left of training where nothing is watched, logged, kept or guarded: a permutation, nearfar's views, the
encoder, the projector, the loss, AdamW, half a cosine. `nearfar` is `nearfar.train` as it comes: metrics every ten
steps with spectra, TensorBoard's events, the check that loss and gradient are finite, checkpoints every minute;
`checkpoints` makes them every 2 seconds. `lightly` is its own example (docs.lightly.ai, pytorch_lightning/simclr.py):
`SimCLRTransform` in a DataLoader with two workers, `NTXentLoss`, a LightningModule, the Trainer with its bar and
logger off. Each round runs all of them one after the other; given are medians over rounds of images (not views) a
second after the first ten steps, and of the ratio to `bare` in the same round. C's allocator is told alike
(docs/views.md).
"""

import argparse
import json
import logging
import math
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nearfar
from nearfar import build
from nearfar.data import open_source
from nearfar.learning import fresh
from nearfar.losses import nt_xent
from nearfar.recipe import Recipe
from nearfar.training.loop import step_generator
from nearfar.training.memory import keep_freed

SKIP = 10  # steps that warm up


def recipe_of(x: np.ndarray, given: argparse.Namespace, encoder: str) -> tuple:
    source = open_source(x).train
    recipe = Recipe(source="array", encoder=encoder, batch=given.batch, steps=given.steps, precision=given.precision)
    return source, build.resolve(recipe, source)


def bare(x: np.ndarray, given: argparse.Namespace, encoder: str) -> float:
    source, recipe = recipe_of(x, given, encoder)
    method = fresh(source, recipe).train()
    o = recipe.optim
    optimizer = torch.optim.AdamW(method.parameters(), lr=o.lr, betas=(o.momentum, o.beta2), fused=True)
    views = build.image_views(recipe, build.Input(tuple(source.shape), 0.0, 255.0), 2)
    rng, order, start = np.random.default_rng(0), np.empty(0, np.int64), 0.0
    for step in range(given.steps):
        if step == SKIP:
            start = time.perf_counter()
        if len(order) < given.batch:
            order = rng.permutation(len(x))
        index, order = order[: given.batch], order[given.batch :]
        both = torch.cat(views(x[index], step_generator(0, step)))
        with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16-mixed"):
            z = method.projector(method.encoder(both))
            loss = nt_xent(z, torch.as_tensor(index).repeat(2), temperature=0.1)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = o.lr * 0.5 * (1 + math.cos(math.pi * step / given.steps))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (given.steps - SKIP) * given.batch / (time.perf_counter() - start)


def ours(x: np.ndarray, given: argparse.Namespace, encoder: str, **how: float) -> float:
    """By the rows' own clock; what a checkpoint takes while training goes on is in it."""
    folder = Path(tempfile.mkdtemp())
    try:
        run = nearfar.train(x, out=folder / "run", evaluate=False, show=False, encoder=encoder, batch=given.batch,
                            steps=given.steps, precision=given.precision, **how)  # fmt: skip
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        clock = json.loads((run.folder / "clock.json").read_text())
        before = next(row for row in rows if row["step"] == SKIP)
        if how:
            print(f"  {encoder}: waited {clock['checkpoints']:.3f} of {clock['total']:.1f} s for checkpoints")
        return (given.steps - SKIP) * given.batch / (clock["total"] - before["time"])
    finally:
        shutil.rmtree(folder)


def lightlys(x: np.ndarray, given: argparse.Namespace, encoder: str) -> float:
    import pytorch_lightning as pl
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    source, recipe = recipe_of(x, given, encoder)
    transform = SimCLRTransform(input_size=32)

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, i: int) -> list[torch.Tensor]:
            return transform(Image.fromarray(x[i]))

    class SimCLR(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            method = fresh(source, recipe)
            self.backbone, d = method.encoder, method.encoder.features
            self.projection_head: nn.Module = SimCLRProjectionHead(d, d, 128)
            self.criterion = NTXentLoss()
            self.at: list[float] = []

        def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
            self.at.append(time.perf_counter())
            z0, z1 = (self.projection_head(self.backbone(v)) for v in batch)
            return self.criterion(z0, z1)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.003, fused=True)

    model = SimCLR()
    loader = torch.utils.data.DataLoader(Pictures(), given.batch, shuffle=True, drop_last=True, num_workers=2,
                                         persistent_workers=True)  # fmt: skip
    trainer = pl.Trainer(max_steps=given.steps, max_epochs=-1, accelerator="cpu", devices=1, precision=given.precision,
                         logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False)  # fmt: skip
    trainer.fit(model, loader)
    return (given.steps - SKIP) * given.batch / (time.perf_counter() - model.at[SKIP])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", nargs="+", default=["cnn", "torchvision:resnet18"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="bf16-mixed" if build.has_fast_bf16() else "32-true")
    parser.add_argument("--without", nargs="*", default=[], help="sides to leave out")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    keep_freed()
    x = np.random.default_rng(0).integers(0, 256, (20 * given.batch, 32, 32, 3), dtype=np.uint8)
    sides = {"bare": bare, "nearfar": ours, "lightly": lightlys,
             "checkpoints": lambda *a: ours(*a, checkpoint_minutes=2 / 60)}  # fmt: skip
    sides = {k: v for k, v in sides.items() if k not in given.without}
    held = {}
    for encoder in given.encoder:
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(given.rounds):
            for name, side in sides.items():
                rates[name].append(side(x, given, encoder))
        for name, found in rates.items():
            ratios = [r / b for r, b in zip(found, rates["bare"])]
            print(f"{encoder:22} {name:12} {statistics.median(found):8,.0f} images/s   {statistics.median(ratios):.3f} "
                  f"of bare ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)  # fmt: skip
        held[encoder] = rates
    if given.out:
        given.out.write_text(json.dumps({"given": {k: str(v) for k, v in vars(given).items()}, "rates": held}))


if __name__ == "__main__":
    main()
