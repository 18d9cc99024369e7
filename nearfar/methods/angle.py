"""AnglE: the order of the scores, in angles of the complex plane as well as in cosines, which saturate.

Li, Li 2023, *AnglE-optimized Text Embeddings* (arXiv:2309.12871; ACL 2024). The two halves of an embedding are the
real and imaginary parts of complex numbers; the angle between two texts is that of their quotient. The objective is
w₁·CoSENT + w₂·in-batch negatives + w₃·the angles' order, as CoSENT orders cosines. Anchors of the second term are those
whose pair has a score of at least ``positive_above``; their candidates are all second texts of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError, at_least
from nearfar.losses import info_nce
from nearfar.losses.scored import angle, cosent
from nearfar.methods.parts import Progress, Step, positive, shares
from nearfar.methods.words import order_chance

SUPERVISED = False
CONTENT = "text"
NEEDS = "scores"
PRESETS = {
    "small": {"batch": 64, "optim": {"lr": 0.001}},
    # SeanLee97/AnglE, README: STS-B at batch 32, five epochs, 2e-5, [CLS], all weights 1, all scales 20, texts of at
    # most 128 tokens; from a model that had been trained on NLI
    "paper": {"encoder": "transformers:bert-base-uncased", "batch": 32, "epochs": 5.0,
              "text": {"pooling": "cls", "max_length": 128},
              "optim": {"lr": 2e-5, "weight_decay": 0.0, "beta2": 0.999, "warmup": 0.0}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.05
    """τ of all three terms (the authors' README: 1/20)"""
    cosine_weight: float = 1.0
    """w₁ of CoSENT"""
    contrast_weight: float = 1.0
    """w₂ of InfoNCE among the batch's pairs that belong together"""
    angle_weight: float = 1.0
    """w₃ of the order of the angles"""
    positive_above: float = 0.5
    """the score from which on a pair belongs together"""

    def __post_init__(self) -> None:
        positive(self, "temperature")
        shares(self, "positive_above")
        at_least(self, cosine_weight=0, contrast_weight=0, angle_weight=0)
        if not (self.cosine_weight or self.contrast_weight or self.angle_weight):
            raise UserError("cosine_weight, contrast_weight and angle_weight are all 0: nothing is learnt")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config

    def project(self, features: Tensor) -> Tensor:
        return features  # (B, features): what is compared is what is used

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor, progress: Progress) -> Step:
        c, tau = self.config, self.config.temperature
        h = self.encoder(torch.cat(views[:2]))  # (2B, features)
        a, b = h.chunk(2)
        terms = {"cosine": cosent(a, b, labels, temperature=tau), "contrast": self._contrast(a, b, labels, index),
                 "angle": angle(a, b, labels, temperature=tau)}  # fmt: skip
        loss = sum(getattr(c, f"{name}_weight") * term for name, term in terms.items())
        chance = (c.cosine_weight + c.angle_weight) * order_chance(labels)
        chance = chance + c.contrast_weight * math.log(dist.world() * len(index))
        stats = {"chance": chance} | {name: term.detach() for name, term in terms.items()}
        return Step(loss, h.detach(), h.detach(), index.repeat(2), stats)

    def _contrast(self, a: Tensor, b: Tensor, scores: Tensor, index: Tensor) -> Tensor:
        """InfoNCE of anchors whose pair belongs together, among all second texts. (B, d), (B, d) -> ()"""
        same = scores >= self.config.positive_above
        anchors = torch.where(same, index, -1)  # no candidate has the id -1, so these anchors do not count
        return info_nce(a, anchors, b, index, temperature=self.config.temperature)

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
