"""Barlow Twins: two views' features correlate one with one, and each with no other.

Zbontar, Jing, Misra, LeCun, Deny 2021, *Barlow Twins: Self-Supervised Learning via Redundancy Reduction*
(arXiv:2103.03230). z = g(f(x̃)) of each view, normalised over the batch feature by feature; the loss (equations 1
and 2) draws their cross-correlation towards the identity. No negatives, no twin, no prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar.encoders.project import mlp
from nearfar.losses import barlow_twins
from nearfar.methods.parts import Progress, Step, positive

SUPERVISED = False
POLICY = ("barlow-twins", "simclr-small")
PRESETS = {
    # a narrow projector, where λ must weigh more (there are d² - d redundancies to d agreements)
    "small": {"optim": {"lr": 0.002}, "settings": {"hidden": 512, "dim": 256, "off_diagonal": 0.02}},
    # facebookresearch/barlowtwins: LARS, weights 0.2 and vectors 0.0048 at batch 256, by the batch; to a thousandth
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 2048, "epochs": 1000.0,
              "policy": "barlow-twins",
              "optim": {"name": "lars", "lr": 1.6, "bias_lr": 0.024, "weight_decay": 1e-6, "warmup": 0.01,
                        "lr_end": 0.001}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    off_diagonal: float = 0.0051
    """λ of equation 1: the weight of redundancy"""
    depth: int = 3
    """linear layers of the projector"""
    hidden: int = 8192
    """width of the projector's hidden layers"""
    dim: int = 8192
    """dimensions of the space in which the loss is taken"""
    norm: str = "batch"
    """normalisation in the projector: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "off_diagonal", "depth", "hidden", "dim")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.projector = mlp(encoder.features, config.hidden, config.dim, depth=config.depth, norm=config.norm)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        # section 4: one view after the other, so that BatchNorm takes each view's own statistics
        h = [self.encoder(x) for x in views]  # 2 of (B, features)
        z = [self.project(h_v) for h_v in h]  # 2 of (B, dim)
        loss = barlow_twins(*z, off_diagonal=self.config.off_diagonal)
        both, out = torch.cat(h).detach(), torch.cat(z).detach()
        # an encoder that tells nothing apart correlates nowhere: 1 a feature
        return Step(loss, both, out, index.repeat(2), {"chance": self.config.dim})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
