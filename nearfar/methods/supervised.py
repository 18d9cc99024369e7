"""Supervised: cross-entropy with a linear classifier on the features, the method to compare the others with.

Softmax regression on h = f(x̃), one augmented view an image, as ImageNet's classifiers have been trained since He,
Zhang, Ren, Sun 2016, *Deep Residual Learning for Image Recognition* (arXiv:1512.03385). The projector is the
classifier, so that the projections are the logits; features before it are what is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.losses.rows import reduced, widened
from nearfar.methods.parts import Progress, Step, several_classes, shares

SUPERVISED = True
PRESETS = {
    "small": {},
    # pytorch/examples, imagenet/main.py: crops and flips alone; the rate there falls to a tenth every 30 epochs
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 256, "epochs": 90.0, "policy": "simclr",
              "views": {"bicubic": False, "colour": 0.0, "grey": 0.0, "blur": 0.0},
              "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4, "nesterov": False, "warmup": 0.0}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    label_smoothing: float = 0.0
    """share of each label that is spread over all classes"""

    def __post_init__(self) -> None:
        shares(self, "label_smoothing")


class Method(nn.Module):
    views = 1

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        several_classes("supervised", classes)
        self.encoder, self.config, self.classes = encoder, config, classes
        self.projector = nn.Linear(encoder.features, classes)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, classes)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor, progress: Progress) -> Step:
        h = self.encoder(views[0])  # (B, features)
        logits = widened(self.project(h), unit=False)  # (B, classes)
        values = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.config.label_smoothing)  # (B,)
        loss = reduced(values, torch.ones_like(labels), "mean")  # of all processes' rows
        return Step(loss, h.detach(), logits.detach(), labels, {"chance": math.log(self.classes)})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
