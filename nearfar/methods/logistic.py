"""Logistic: for every pair of a batch, are the two of one class? A probability for each, by cross-entropy.

The pairs' probability is σ(cos/τ + b), with τ and b learnt or given. SigLIP (Zhai, Mustafa, Kolesnikov, Beyer 2023,
*Sigmoid Loss for Language Image Pre-Training*, arXiv:2303.15343) has this loss for images and texts, with one
positive a row; here it is on images by their labels, the mean over all pairs of P classes with K images each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import LearntTemperature, logistic
from nearfar.methods.parts import Progress, Step, head, pairs_of_a_class, positive

SUPERVISED = True
_LEAST = 0.01  # τ that is learnt stays above it
PRESETS = {
    # a soft start at the odds of ten classes (trials on CIFAR-10's training images)
    "small": {"settings": {"temperature": 0.5, "bias": -2.2, "last_norm": True}},
    # google-research/big_vision, siglip_lit_coco.py: batch 512, 1/τ from 10 and b from -2.71, learnt; AdamW's step
    # there is 1e-3, the gradient's norm at most 1. No paper trains on images and labels alone: 100 epochs are ours
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 512, "epochs": 100.0, "policy": "simclr",
              "optim": {"lr": 1e-3, "weight_decay": 0.01, "beta2": 0.999, "warmup": 0.03, "clip": 1.0},
              "settings": {"bias": -2.71}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.1
    """τ, at the start where it is learnt (SigLIP: 0.1)"""
    bias: float = -10.0
    """b, at the start where it is learnt: about the log of the odds that a pair is of one class (SigLIP: -10)"""
    learn: bool = True
    """let τ and b be learnt"""
    positive_weight: float = 1.0
    """weight of pairs of one class, of which there are fewer"""
    per_class: int = 4
    """K, images of each class in a batch"""
    depth: int = 1
    """linear layers of the embedding head (0: none)"""
    hidden: int = 0
    """width of the head's hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the embedding"""
    norm: str = "batch"
    """normalisation in the head: batch, layer or none"""
    last_norm: bool = False
    """normalise the embedding too, which then has no common part"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "positive_weight", "dim")
        if self.learn and self.temperature < _LEAST:
            raise UserError(f"temperature {self.temperature} is under {_LEAST}, the least that is learnt")
        if not math.isfinite(self.bias):
            raise UserError(f"bias {self.bias} must be a number")
        pairs_of_a_class(self)


class Method(nn.Module):
    views = 1

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, self.per_class = encoder, config, config.per_class
        self.projector = head(encoder.features, config)
        self.temperature = None
        if config.learn:
            self.temperature = LearntTemperature(config.temperature, least=_LEAST, bias=config.bias)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor, progress: Progress) -> Step:
        c = self.config
        h = self.encoder(views[0])  # (B, features)
        z = self.project(h)  # (B, dim)
        tau, bias = (self.temperature(), self.temperature.bias) if c.learn else (c.temperature, c.bias)
        loss = logistic(z, labels, temperature=tau, bias=bias, positive_weight=c.positive_weight)
        stats = {"chance": entropy(dist.gather(labels), c.positive_weight)}
        if c.learn:
            stats |= {"temperature": tau.detach(), "bias": bias.detach()}
        return Step(loss, h.detach(), z.detach(), labels, stats)

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""


def entropy(labels: Tensor, weight: float) -> Tensor:
    """The least loss of one probability for all pairs. labels (N,), those of the batch -> ()"""
    counts, n = labels.unique(return_counts=True)[1], len(labels)
    share = (counts * (counts - 1)).sum() / max(1, n * (n - 1))  # of pairs that are of one class
    a, b = weight * share, 1 - share
    p = a / (a + b)
    return -torch.special.xlogy(a, p) - torch.special.xlogy(b, 1 - p)
