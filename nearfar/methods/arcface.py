"""ArcFace: cross-entropy on cosines with a learnt centre for each class, the own class's angle led by a margin.

Deng, Guo, Xue, Zafeiriou 2019, *ArcFace: Additive Angular Margin Loss for Deep Face Recognition* (arXiv:1801.07698),
equation 3: embeddings and centres on the sphere, the logit of the own class s·cos(θ + m), of the others s·cos θ. The
embedding is normalised by BatchNorm before it is brought to length one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from nearfar.encoders.project import mlp
from nearfar.errors import UserError
from nearfar.losses import ArcFace
from nearfar.methods.parts import Progress, Step, positive, several_classes

SUPERVISED = True
PRESETS = {
    # a softer softmax and a smaller margin (trials on CIFAR-10's training images)
    "small": {"settings": {"scale": 16.0, "margin": 0.2, "dim": 128}},
    # deepinsight/insightface, recognition/ArcFace/sample_config.py (MS1MV2, 5.8 million faces of 112 × 112, mirrored):
    # SGD, batch 512, a tenth after 100,000, 160,000 and 220,000 steps, 20 epochs in all (arcface_torch)
    "paper": {"encoder": "torchvision:resnet50", "image_size": 112, "batch": 512, "epochs": 20.0, "policy": "none",
              "views": {"flip": 0.5},
              "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4, "nesterov": False, "schedule": "step",
                        "warmup": 0.0}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    scale: float = 64.0
    """s, the inverse of a temperature"""
    margin: float = 0.5
    """m, in radians"""
    depth: int = 1
    """linear layers of the embedding head (0: none)"""
    hidden: int = 0
    """width of the head's hidden layers; 0: as wide as the features"""
    dim: int = 512
    """dimensions of the embedding"""
    norm: str = "batch"
    """normalisation in the head and of the embedding: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "scale", "dim")
        if not 0 <= self.margin < math.pi:
            raise UserError(f"margin {self.margin} is in radians, from 0 to below {math.pi:.4g}: 28.6 degrees are 0.5")


class Method(nn.Module):
    views = 1

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        several_classes("arcface", classes)
        self.encoder, self.config = encoder, config
        d = encoder.features
        out = config.dim if config.depth else d
        self.projector = mlp(d, config.hidden or d, out, depth=config.depth, norm=config.norm, last_norm=True)
        self.proxies = ArcFace(classes, out, scale=config.scale, margin=config.margin)
        # the least loss of embeddings that are all alike, the centres there or opposite: by how much the others lead
        lead = config.scale * min(1 - math.cos(config.margin), config.margin * math.sin(config.margin))
        self.chance = lead + math.log(classes - 1 + math.exp(-lead))

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor, progress: Progress) -> Step:
        h = self.encoder(views[0])  # (B, features)
        z = self.project(h)  # (B, dim)
        return Step(self.proxies(z, labels), h.detach(), z.detach(), labels, {"chance": self.chance})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
