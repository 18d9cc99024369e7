"""The loop of every transfer: random batches of a few annotated pictures, one schedule, on Lightning Fabric."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.encoders.norm import measured
from nearfar.errors import UserError
from nearfar.methods.parts import Rate
from nearfar.training.memory import keep_freed
from nearfar.training.optim import build, set_rates
from nearfar.training.progress import Bar
from nearfar.transfer.settings import Settings


def fit(
    model: nn.Module, settings: Settings, rows: int, batch_of: Callable[[np.ndarray], Any],
    loss_of: Callable[[nn.Module, Any], Tensor], *, frozen: bool, seed: int, what: str = "", show: bool | None = None,
) -> list[float]:  # fmt: skip
    """Train a head, and its encoder where that is not frozen; returns the loss of every tenth step.

    Args:
        model: holds the encoder as ``model.encoder``; what is frozen stays in evaluation mode, BatchNorm's statistics
            too.
        rows: annotated pictures; each is drawn equally often, in an order that the seed decides.
        batch_of: rows (B,) -> a batch, which may draw from torch's global generator: it is seeded step by step.
        loss_of: the loss of a batch, ().

    Raises ``UserError`` where the loss is not finite.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for p in model.encoder.parameters():
        p.requires_grad_(not frozen)
    model.rates = {name: Rate(settings.encoder_rate) for name, part in model.named_modules() if part is model.encoder}
    fabric = Fabric(accelerator="auto", devices=1, precision="32-true")  # the models cast what gains from it
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed()
    optimizer = build(settings.optim, model)
    wrapped, optimizer = fabric.setup(model, optimizer)
    losses = []
    with Bar(what or "transfer", show) as bar, torch.random.fork_rng(devices=[]):
        for step, drawn in enumerate(_orders(rows, settings.batch, settings.steps, seed)):
            torch.manual_seed((seed * 1_000_003 + step) % 2**63)
            wrapped.train()
            if frozen:
                model.encoder.eval()
            set_rates(optimizer, settings.optim, step / settings.steps)
            loss = loss_of(wrapped, batch_of(drawn))
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            if settings.optim.clip:
                fabric.clip_gradients(wrapped, optimizer, max_norm=settings.optim.clip, error_if_nonfinite=False)
            optimizer.step()
            if step % 10 == 0 or step + 1 == settings.steps:
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    raise UserError(f"{what or 'transfer'}: the loss is {losses[-1]} at step {step + 1}: "
                                    f"lower the learning rate {settings.optim.lr}")  # fmt: skip
                bar.update((step + 1) / settings.steps, step=step + 1, loss=losses[-1])
    for p in model.encoder.parameters():
        p.requires_grad_(True)
    model.eval()
    return losses


@torch.no_grad()
def measure(
    model: nn.Module, pictures: Sized, settings: Settings, batch_of: Callable[[np.ndarray], Any],
    loss_of: Callable[[nn.Module, Any], Tensor], batches: int = 8,
) -> None:  # fmt: skip
    """Measure BatchNorm's statistics of a model with random weights, so that a frozen encoder is judged at its best."""
    with measured(model.encoder):
        model.train()
        for drawn in _orders(len(pictures), settings.batch, batches, 0):
            loss_of(model, batch_of(drawn))
    model.eval()


def _orders(rows: int, batch: int, steps: int, seed: int) -> Any:
    """``steps`` batches of ``batch`` rows: one shuffled pass after another, so that each row comes equally often."""
    rng = np.random.default_rng([seed, 0x7A])
    queue = np.empty(0, np.int64)
    for _ in range(steps):
        while len(queue) < batch:
            queue = np.concatenate([queue, rng.permutation(rows)])
        yield queue[:batch]
        queue = queue[batch:]
