"""W-MSE: each view is whitened over the batch, then the views of a picture are pulled together.

Ermolov, Siarohin, Sangineto, Sebe 2021, *Whitening for Self-Supervised Representation Learning* (arXiv:2007.06346).
z = g(f(x̃)); of each view a batch's rows get mean 0 and covariance 1 by the inverse of the covariance's Cholesky
factor, in random slices of the batch for stability, and the mean squared distance of the normalised views is taken.
Whitened rows cannot all be one point, so there are no negatives. Two views a picture, or four.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.errors import UserError
from nearfar.losses import w_mse
from nearfar.methods.parts import Progress, Step, positive, shares

SUPERVISED = False
_CIFAR = {"encoder": "resnet18", "image_size": 32, "epochs": 1000.0, "policy": "simclr-small", "views": {"grey": 0.1}}
_ADAM = {"name": "adamw", "lr": 0.003, "weight_decay": 1e-6, "beta2": 0.999}
PRESETS = {
    "small": {"settings": {"hidden": 1024, "dim": 64}},
    # htdt/self-supervised, README and cfg.py: CIFAR-10, 500 steps of warm-up; there Adam's decay is in the gradient
    # and the rate falls to a fifth 50 epochs before the end and again 25 before, here it falls along a cosine
    "paper": _CIFAR | {"batch": 512, "optim": _ADAM | {"warmup": 0.005}},
    "four": _CIFAR | {"batch": 256, "optim": _ADAM | {"warmup": 0.0026}, "settings": {"samples": 4}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    samples: int = 2
    """views a picture (the paper: W-MSE 2 and W-MSE 4)"""
    size: int = 128
    """rows that are whitened together, of all processes; a smaller batch is whitened as a whole"""
    iterations: int = 1
    """ways of slicing the batch that are averaged"""
    shrink: float = 0.0
    """ε in (1 - ε)Σ + ε, so that few rows can be whitened; 0: the paper's, wants more rows than dimensions"""
    depth: int = 2
    """linear layers of the projector"""
    hidden: int = 1024
    """width of the projector's hidden layers"""
    dim: int = 64
    """dimensions of the space that is whitened"""
    norm: str = "batch"
    """normalisation in the projector: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "size", "iterations", "depth", "hidden", "dim")
        shares(self, "shrink")
        if self.samples < 2:
            raise UserError(f"samples {self.samples}: views are compared, give at least 2")


class Method(nn.Module):
    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, self.views = encoder, config, config.samples
        self.projector = mlp(encoder.features, config.hidden, config.dim, depth=config.depth, norm=config.norm)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c = self.config
        # the encoder's BatchNorm takes each view's statistics, the projector's those of all, as in the authors' code
        h = torch.cat([self.encoder(x) for x in views])  # (V·B, features)
        z = self.project(h)  # (V·B, dim)
        batch = sum(n for (n,) in dist.exchange([len(index)], index.device))
        loss = w_mse(*z.chunk(len(views)), size=min(c.size, batch), iterations=c.iterations, shrink=c.shrink,
                     generator=progress.generator)  # fmt: skip
        # views that have nothing in common are at right angles once they are whitened: 2 - 2 · 0
        return Step(loss, h.detach(), z.detach(), index.repeat(len(views)), {"chance": 2.0})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
