"""SimCLR: two views of an image attract, everything else in the batch repels.

Chen, Kornblith, Norouzi, Hinton 2020, *A Simple Framework for Contrastive Learning of Visual Representations*
(arXiv:2002.05709). For each image two augmented views x̃_i, x̃_j; h = f(x̃), z = g(h); NT-Xent (equation 1) over
the 2N rows of z. The features h are what is used afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.errors import UserError
from nearfar.losses import nt_xent
from nearfar.methods.parts import Progress, Step, positive

SUPERVISED = False
PRESETS = {
    # AdamW, τ and batch chosen on CIFAR-10's training images (docs/methods.md)
    "small": {},
    # google-research/simclr: 100 epochs at batch 4096, LARS, 0.3 · 4096/256, ten epochs of warm-up
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 4096, "epochs": 100.0, "policy": "simclr",
              "optim": {"name": "lars", "lr": 4.8, "weight_decay": 1e-6, "warmup": 0.1},
              "settings": {"hidden": 2048, "dim": 128, "temperature": 0.1}},
    # Chen 2020b (arXiv:2006.10029): a projector of three layers, 800 epochs, the learning rate by √batch
    "v2": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 4096, "epochs": 800.0, "policy": "simclr",
           "optim": {"name": "lars", "lr": 6.4, "weight_decay": 1e-4, "warmup": 0.05},
           "settings": {"depth": 3, "hidden": 2048, "dim": 128, "temperature": 0.1}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.1
    """τ of NT-Xent (the paper: 0.1 for ImageNet, 0.5 for CIFAR-10)"""
    depth: int = 2
    """linear layers of the projector (v1: 2, v2: 3; 0: none)"""
    hidden: int = 0
    """width of the projector's hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the space in which the loss is taken"""
    norm: str = "batch"
    """normalisation in the projector: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "temperature")
        if self.dim < 1 or self.hidden < 0 or self.depth < 0:
            raise UserError(f"projector of depth {self.depth}, hidden {self.hidden}, dim {self.dim}: too small")


class Method(nn.Module):
    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, self.views = encoder, config, 2
        d = encoder.features
        out = config.dim if config.depth else d
        self.projector = mlp(d, config.hidden or d, out, depth=config.depth, norm=config.norm)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, out)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        h = self.encoder(torch.cat(views))  # (2B, features): BatchNorm sees both views
        z = self.project(h)  # (2B, out)
        groups = index.repeat(len(views))  # the picture's index: its two views belong together
        loss = nt_xent(z, groups, temperature=self.config.temperature)
        chance = math.log(dist.world() * len(z) - 1)  # of guessing among all others
        return Step(loss, h.detach(), z.detach(), groups, {"chance": chance})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
