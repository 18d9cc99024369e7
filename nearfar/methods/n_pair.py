"""N-pair: each image must find one of its own class among one image of every other class, all at once.

Sohn 2016, *Improved Deep Metric Learning with Multi-class N-pair Loss Objective* (NeurIPS 2016). Batches of N classes
with two images each; a softmax over dot products of embeddings as they are, the positive against all negatives, and
a penalty on the embeddings' squared length. Both images of a pair are anchors here, and the other classes' images
all negatives; with more than two images of a class every positive is a problem of its own. Given pairs or triplets of
texts take the labels' place: a pair is a class, and each explicit negative one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import n_pair
from nearfar.methods.parts import Progress, Step, head, ids_of, pairs_of_a_class, positive

SUPERVISED = True
PAIRS = True
NEGATIVES = True
PRESETS = {
    # few dimensions of a normalised embedding, so that the softmax of dot products is soft (trials on CIFAR-10's
    # training images)
    "small": {"settings": {"dim": 16, "last_norm": True}},
    # Batches of 120 images and Adam at 1e-4 as ronekko/deep_metric_learning has them (main_n_pair_mc.py; 224-pixel
    # crops, flips, GoogLeNet with ImageNet's weights); the paper's own schedule
    # could not be checked, and 20,000 steps are ours
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 120, "steps": 20000, "policy": "simclr",
              "views": {"colour": 0.0, "grey": 0.0, "blur": 0.0},
              "optim": {"lr": 1e-4, "weight_decay": 0.0, "beta2": 0.999, "schedule": "constant", "warmup": 0.0}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    l2: float = 0.001
    """λ of the embeddings' squared length (TensorFlow's npairs_loss: 0.002 of half of it)"""
    per_class: int = 2
    """K, images of each class in a batch (the paper: pairs)"""
    depth: int = 1
    """linear layers of the embedding head (0: none)"""
    hidden: int = 0
    """width of the head's hidden layers; 0: as wide as the features"""
    dim: int = 512
    """dimensions of the embedding"""
    norm: str = "batch"
    """normalisation in the head: batch, layer or none"""
    last_norm: bool = False
    """normalise the embedding too, which then has no common part"""

    def __post_init__(self) -> None:
        positive(self, "dim")
        if not self.l2 >= 0:
            raise UserError(f"l2 {self.l2} must not be negative")
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
        groups = ids_of("n-pair", views, index, labels)  # (V·B,)
        h = self.encoder(torch.cat(views))  # (V·B, features)
        z = self.project(h)  # (V·B, dim)
        loss = n_pair(z, groups, l2=self.config.l2)
        counts = dist.gather(groups).unique(return_counts=True)[1]  # items of each class in the batch
        anchors = counts * (counts > 1)  # those that have a positive
        others = (counts.sum() - counts).log1p()  # the loss of embeddings of length 0
        chance = (anchors * others).sum() / anchors.sum().clamp(min=1)
        return Step(loss, h.detach(), z.detach(), groups, {"chance": chance})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
