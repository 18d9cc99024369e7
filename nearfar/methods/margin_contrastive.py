"""Margin contrastive: images of a class are pulled together, others pushed until they are a margin apart.

Hadsell, Chopra, LeCun 2006, *Dimensionality Reduction by Learning an Invariant Mapping* (CVPR 2006): ½D² for a
similar pair, ½ max(0, m - D)² for a dissimilar one, D the Euclidean distance of the embeddings. Here over all pairs
of a batch of P classes with K images each, positives and negatives weighing half each. Musgrave, Belongie, Lim 2020,
*A Metric Learning Reality Check* (arXiv:2003.08505), found it level with what came after; they take D on the sphere.
Given pairs or triplets of texts take the labels' place, with all others of the batch as dissimilar ones; given pairs
with scores are taken one by one, as the paper has it, each similar or dissimilar by its score.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import margin_contrastive
from nearfar.losses.rows import widened
from nearfar.losses.scored import pair_margin
from nearfar.methods.parts import Progress, Step, head, ids_of, pairs_of_a_class, positive, shares

SUPERVISED = True
PAIRS = SCORES = True
NEGATIVES = True
PRESETS = {
    # a margin beyond all distances of a normalised embedding, so that every pair counts (trials on CIFAR-10's
    # training images)
    "small": {"settings": {"margin": 32.0, "last_norm": True}},
    # Musgrave et al. (KevinMusgrave/powerful-benchmarker, docs/papers/mlrc.md and src/…/configs): CUB-200 at batch
    # 256, 4 images a class, margin 0.7694 on the sphere, and no pull below 0.2227, which is left out here. RMSprop
    # at 1e-6 from ImageNet's weights, BatchNorm frozen, stopped early: AdamW from scratch stands in for it
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 256, "epochs": 100.0, "policy": "simclr",
              "views": {"crop_min": 0.16, "bicubic": False, "colour": 0.0, "grey": 0.0, "blur": 0.0},
              "optim": {"lr": 1e-3, "weight_decay": 1e-4},
              "settings": {"unit": True, "margin": 0.7694}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    margin: float = 1.0
    """m, how far apart images of different classes are to be"""
    unit: bool = False
    """bring embeddings to length one first (the paper does not), so that distances are from 0 to 2"""
    positive_above: float = 0.5
    """of pairs with scores: the score from which on a pair is similar"""
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
        positive(self, "margin", "dim")
        shares(self, "positive_above")
        if self.unit and self.margin > 2:
            raise UserError(f"margin {self.margin}: embeddings of length one are at most 2 apart")
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
        h = self.encoder(torch.cat(views))  # (V·B, features)
        z = widened(self.project(h), unit=c.unit)  # (V·B, dim)
        if len(views) > 1 and labels is not None and labels.is_floating_point():
            same = labels >= c.positive_above  # (B,)
            loss = pair_margin(*z.split(len(index))[:2], same, margin=c.margin)
            share = dist.gather(same).double().mean()
            stats = {"chance": c.margin**2 / 2 * share * (1 - share)}  # all distances (1 - share)·m
            return Step(loss, h.detach(), z.detach(), index.repeat(len(views)), stats)
        groups = ids_of("margin-contrastive", views, index, labels)  # (V·B,)
        loss = margin_contrastive(z, groups, margin=c.margin)
        chance = c.margin**2 / 4  # all distances m/2, the best of those that are all alike
        return Step(loss, h.detach(), z.detach(), groups, {"chance": chance})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
