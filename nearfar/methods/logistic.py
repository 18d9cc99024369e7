"""Logistic: for every pair of a batch, are the two of one class? A probability for each, by cross-entropy.

The pairs' probability is σ(cos/τ + b), with τ and b learnt or given. SigLIP (Zhai, Mustafa, Kolesnikov, Beyer 2023,
*Sigmoid Loss for Language Image Pre-Training*, arXiv:2303.15343) has this loss for images and texts, with one
positive a row; here it is on images by their labels, the mean over all pairs of P classes with K images each. Given
pairs or triplets of texts take the labels' place; of given pairs with scores each score is the probability to be told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import LearntTemperature, logistic
from nearfar.losses.scored import pair_logistic
from nearfar.methods.parts import Progress, Step, head, ids_of, pairs_of_a_class, positive

SUPERVISED = True
PAIRS = SCORES = True
NEGATIVES = True
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

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c = self.config
        h = self.encoder(torch.cat(views))  # (V·B, features)
        z = self.project(h)  # (V·B, dim)
        tau, bias = (self.temperature(), self.temperature.bias) if c.learn else (c.temperature, c.bias)
        if len(views) > 1 and labels is not None and labels.is_floating_point():
            groups = index.repeat(len(views))  # (V·B,)
            loss = pair_logistic(*z.split(len(index))[:2], labels, temperature=tau, bias=bias)
            stats = {"chance": uncertainty(dist.gather(labels).mean())}
        else:
            groups = ids_of("logistic", views, index, labels)  # (V·B,)
            loss = logistic(z, groups, temperature=tau, bias=bias, positive_weight=c.positive_weight)
            stats = {"chance": entropy(dist.gather(groups), c.positive_weight)}
        if c.learn:
            stats |= {"temperature": tau.detach(), "bias": bias.detach()}
        return Step(loss, h.detach(), z.detach(), groups, stats)

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""


def entropy(labels: Tensor, weight: float) -> Tensor:
    """The least loss of one probability for all pairs. labels (N,), those of the batch -> ()"""
    counts, n = labels.unique(return_counts=True)[1], len(labels)
    share = (counts * (counts - 1)).sum() / max(1, n * (n - 1))  # of pairs that are of one class
    return uncertainty(share, weight)


def uncertainty(share: Tensor, weight: float = 1.0) -> Tensor:
    """The least cross-entropy of one probability for all, a share of which, weighted so, is true. () -> ()"""
    a, b = weight * share, 1 - share
    p = a / (a + b)
    return -torch.special.xlogy(a, p) - torch.special.xlogy(b, 1 - p)
