"""Masked language modelling: tokens are hidden, and what is around them must tell what they were.

Devlin, Chang, Lee, Toutanova 2018, *BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding*
(arXiv:1810.04805), section 3.1, task 1: 15 % of the tokens are chosen, of which 80 % become [MASK], 10 % any token
and 10 % stay; cross-entropy on the chosen ones, by a head whose last layer is the embedding. It learns what tokens
mean, and to compare texts only in passing: ``contrast`` adds SimCSE's InfoNCE between two views of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import at_least
from nearfar.losses import info_nce
from nearfar.methods import words
from nearfar.methods.parts import Progress, Step, positive, shares

SUPERVISED = False
CONTENT = "text"
CONTEXT = True
PRESETS = {
    "small": {"optim": {"lr": 0.001, "weight_decay": 0.01}},
    # appendix A.2: 256 sequences of at most 512 tokens, 10^6 steps, Adam at 1e-4, β₂ = 0.999, decay 0.01, 10,000 steps
    # of warm-up and a linear fall, for which a cosine stands here
    "paper": {"encoder": "transformers:bert-base-uncased@random", "batch": 256, "steps": 1_000_000,
              "text": {"max_length": 512},
              "optim": {"lr": 1e-4, "weight_decay": 0.01, "beta2": 0.999, "warmup": 0.01}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    share: float = 0.15
    """share of the tokens that are chosen"""
    contrast: float = 0.0
    """weight of SimCSE's InfoNCE beside it, between two views of each text; 0: none"""
    temperature: float = 0.05
    """τ of InfoNCE"""

    def __post_init__(self) -> None:
        positive(self, "share", "temperature")
        shares(self, "share")
        at_least(self, contrast=0)


class Method(nn.Module):
    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        words.check_masking("masked-lm", encoder)
        self.encoder, self.config = encoder, config
        self.views = 2 if config.contrast else 1
        self.head = words.token_head(encoder)

    def project(self, features: Tensor) -> Tensor:
        return features  # (B, features): texts are compared as they are

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c, encoder = self.config, self.encoder
        chance = words.chance(encoder.vocabulary)
        x = views[0] if c.contrast else torch.cat(views)  # (B, L)
        loss, tokens, x = words.masked_loss(encoder, self.head, x, c.share, progress.generator)
        if not c.contrast:
            h, loss = words.pooled(encoder, tokens, x, loss)  # (B, features)
            return Step(loss, h, h, index.repeat(len(views)), {"chance": chance})
        h = encoder(torch.cat(views[:2]))  # (2B, features)
        a, b = h.chunk(2)
        told, loss = loss, loss + c.contrast * info_nce(a, index, b, index, temperature=c.temperature)
        stats = {"chance": chance + c.contrast * math.log(dist.world() * len(index)), "masked": told.detach()}
        return Step(loss, h.detach(), h.detach(), index.repeat(2), stats)

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
