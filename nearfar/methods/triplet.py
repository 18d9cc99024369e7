"""Triplet: each image nearer to its class than to any other, by a margin, the hardest of the batch deciding.

Hermans, Beyer, Leibe 2017, *In Defense of the Triplet Loss for Person Re-Identification* (arXiv:1703.07737). Batches
of P classes with K images each; for every image its farthest positive and its nearest negative (batch-hard,
equation 5), by Euclidean distance of embeddings as they are, with the soft margin log(1 + exp ·) or a hinge. Other
minings: all triplets (equation 6), FaceNet's semi-hard (arXiv:1503.03832), distance-weighted (arXiv:1706.07567).
Given pairs or triplets of texts take the labels' place: a pair is a class, and each explicit negative one of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar.errors import UserError, nearest
from nearfar.losses import triplet
from nearfar.methods.parts import Progress, Step, head, ids_of, pairs_of_a_class, positive

SUPERVISED = True
PAIRS = True
NEGATIVES = True
_MINING = ("hard", "all", "semi-hard", "distance-weighted")
_METRICS = ("euclidean", "squared", "cosine-distance")
PRESETS = {
    # all triplets, as the hardest of 25 images a class teach little at first (trials on CIFAR-10's training images)
    "small": {"settings": {"mining": "all", "depth": 1}},
    # VisualComputingInstitute/triplet-reid, market1501_train.sh (TriNet): P = 18, K = 4, Adam, 25,000 steps, the last
    # 40 % of them with an exponential decay to a thousandth; crops of 256 × 128 from 288 × 144, ImageNet's weights
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 72, "steps": 25000, "policy": "simclr",
              "views": {"crop_min": 0.79, "crop_max": 0.79, "crop_ratio": 1.0, "colour": 0.0, "grey": 0.0, "blur": 0.0},
              "optim": {"lr": 3e-4, "weight_decay": 0.0, "beta2": 0.999, "schedule": "step", "warmup": 0.0}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    soft: bool = True
    """the soft margin, log(1 + exp(d(a,p) - d(a,n))), in place of a hinge"""
    margin: float = 0.2
    """margin of the hinge, in the metric's units, where it is not soft"""
    mining: str = "hard"
    """which triplets count: hard, all, semi-hard or distance-weighted"""
    metric: str = "euclidean"
    """euclidean, squared or cosine-distance"""
    unit: bool = False
    """bring embeddings to length one first"""
    per_class: int = 4
    """K, images of each class in a batch"""
    depth: int = 2
    """linear layers of the embedding head (0: none)"""
    hidden: int = 1024
    """width of the head's hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the embedding"""
    norm: str = "batch"
    """normalisation in the head: batch, layer or none"""
    last_norm: bool = False
    """normalise the embedding too, which then has no common part"""

    def __post_init__(self) -> None:
        positive(self, "margin", "dim")
        if self.mining not in _MINING:
            raise UserError(f"unknown mining {self.mining!r}{nearest(self.mining, _MINING)}")
        if self.metric not in _METRICS:
            raise UserError(f"unknown metric {self.metric!r}{nearest(self.metric, _METRICS)}")
        pairs_of_a_class(self)


class Method(nn.Module):
    views = 1

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, self.per_class = encoder, config, config.per_class
        self.projector = head(encoder.features, config)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c = self.config
        groups = ids_of("triplet", views, index, labels)  # (V·B,)
        h = self.encoder(torch.cat(views))  # (V·B, features)
        z = self.project(h)  # (V·B, dim)
        loss = triplet(z, groups, margin=None if c.soft else c.margin, mining=c.mining, metric=c.metric, unit=c.unit,
                       generator=progress.generator)  # fmt: skip
        chance = math.log(2) if c.soft else c.margin  # where all distances are alike
        return Step(loss, h.detach(), z.detach(), groups, {"chance": chance})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
