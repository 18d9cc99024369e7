"""VICReg: two views' features agree, each feature varies over the batch, and no two of them covary.

Bardes, Ponce, LeCun 2021, *VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning*
(arXiv:2105.04906). z = g(f(x̃)) of each view; variance (equations 1 and 2) and covariance (equations 3 and 4) of each
view by itself, their distance (equation 5), and the weighted sum (equation 6). No negatives, no twin, no prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar.encoders.project import mlp
from nearfar.losses import vicreg
from nearfar.methods.parts import Progress, Step, positive

SUPERVISED = False
POLICY = ("vicreg", "simclr-small")
PRESETS = {
    "small": {"optim": {"lr": 0.002, "clip": 1.0}, "settings": {"hidden": 1024, "dim": 512}},
    # facebookresearch/vicreg, README: 1000 epochs, batch 2048, base-lr 0.2; LARS, ten of warm-up, down to a thousandth
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 2048, "epochs": 1000.0, "policy": "vicreg",
              "optim": {"name": "lars", "lr": 1.6, "weight_decay": 1e-6, "warmup": 0.01, "lr_end": 0.001}},
    # the same, single-node: 100 epochs, batch 512, base-lr 0.3
    "100": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 512, "epochs": 100.0, "policy": "vicreg",
            "optim": {"name": "lars", "lr": 0.6, "weight_decay": 1e-6, "warmup": 0.1, "lr_end": 0.001}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    similarity: float = 25.0
    """λ: the weight of the views' distance, a mean over features as in the authors' code"""
    variance: float = 25.0
    """μ: the weight of the features' deviations"""
    covariance: float = 1.0
    """ν: the weight of the features' covariances"""
    depth: int = 3
    """linear layers of the expander"""
    hidden: int = 8192
    """width of the expander's hidden layers"""
    dim: int = 8192
    """dimensions of the space in which the loss is taken"""
    norm: str = "batch"
    """normalisation in the expander: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "similarity", "variance", "covariance", "depth", "hidden", "dim")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.projector = mlp(encoder.features, config.hidden, config.dim, depth=config.depth, norm=config.norm)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c = self.config
        # one view after the other, as the authors' code does: BatchNorm takes each view's own statistics
        h = [self.encoder(x) for x in views]  # 2 of (B, features)
        z = [self.project(h_v) for h_v in h]  # 2 of (B, dim)
        loss = vicreg(*z, similarity=c.similarity, variance=c.variance, covariance=c.covariance)
        # where all pictures are one point the views agree, nothing covaries, and each deviation is √10⁻⁴ in place of 1
        stats = {"chance": c.variance * 0.99}
        return Step(loss, torch.cat(h).detach(), torch.cat(z).detach(), index.repeat(2), stats)

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
