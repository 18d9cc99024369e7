"""DCL: SimCLR whose positives are not among the negatives, so that small batches learn as well as large ones.

Yeh, Hong, Hsu, Liu, Chen, LeCun 2022, *Decoupled Contrastive Learning* (arXiv:2110.06848). SimCLR's two views, encoder
and projector; in the loss the positive pair is left out of the denominator (equation 6), which takes away a factor of
NT-Xent's gradient that is small where the pair is easy. DCLW weighs positive pairs by how far apart they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.errors import UserError
from nearfar.losses import dcl, dclw
from nearfar.methods.parts import Progress, Step, positive

SUPERVISED = False
_PAPER = {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 256, "epochs": 200.0, "policy": "simclr",
          # the paper's abstract has batch and epochs; its optimiser could not be checked: this is that of
          # lightly's benchmark (resnet50/dcl.py), SimCLR's 0.075 · √batch, ten epochs of warm-up
          "optim": {"name": "lars", "lr": 1.2, "weight_decay": 1e-6, "warmup": 0.05}}  # fmt: skip
PRESETS = {
    "small": {},
    "paper": _PAPER | {"settings": {"hidden": 2048}},
    "dclw": _PAPER | {"settings": {"hidden": 2048, "weighted": True}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.1
    """τ of the loss"""
    weighted: bool = False
    """DCLW: weigh positive pairs by how far apart they are"""
    sigma: float = 0.5
    """σ of these weights: the smaller, the more they differ"""
    depth: int = 2
    """linear layers of the projector"""
    hidden: int = 0
    """width of the projector's hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the space in which the loss is taken"""
    norm: str = "batch"
    """normalisation in the projector: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "sigma", "depth", "dim")
        if self.hidden < 0:
            raise UserError(f"hidden {self.hidden} must not be negative")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        d = encoder.features
        self.projector = mlp(d, config.hidden or d, config.dim, depth=config.depth, norm=config.norm)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c = self.config
        h = self.encoder(torch.cat(views))  # (2B, features)
        z = self.project(h)  # (2B, dim)
        groups = index.repeat(len(views))
        if c.weighted:
            loss = dclw(z, groups, temperature=c.temperature, sigma=c.sigma)
        else:
            loss = dcl(z, groups, temperature=c.temperature)
        # where all similarities are alike each of the others counts, but for the positive; the loss goes on below 0
        chance = math.log(max(1, dist.world() * len(z) - 2))
        return Step(loss, h.detach(), z.detach(), groups, {"chance": chance})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
