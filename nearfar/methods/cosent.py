"""CoSENT: of two pairs of texts, the one with the higher score must have the higher cosine.

Su 2022, *CoSENT: a more effective sentence embedding scheme than Sentence-BERT* (kexue.fm/archives/8847; code:
bojone/CoSENT): log(1 + Σ exp((cos_k - cos_l)/τ)) over all pairs of pairs k, l of the batch whose scores say that l is
the nearer one. Only the order of the scores counts, as in Spearman's correlation, by which such models are judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar.losses.scored import cosent
from nearfar.methods.parts import Progress, Step, positive
from nearfar.methods.words import order_chance

SUPERVISED = False
CONTENT = "text"
NEEDS = "scores"
PRESETS = {
    "small": {"batch": 64, "optim": {"lr": 0.001}},
    # bojone/CoSENT, cosent.py: batch 32, five epochs, Adam at 2e-5 that stays, [CLS], texts of at most 64 tokens; on
    # Chinese data with a Chinese BERT
    "paper": {"encoder": "transformers:bert-base-chinese", "batch": 32, "epochs": 5.0, "text": {"pooling": "cls"},
              "optim": {"lr": 2e-5, "weight_decay": 0.0, "beta2": 0.999, "schedule": "constant", "warmup": 0.0}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.05
    """τ of the differences of cosines (the author's code: 1/20)"""

    def __post_init__(self) -> None:
        positive(self, "temperature")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config

    def project(self, features: Tensor) -> Tensor:
        return features  # (B, features): what is compared is what is used

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor, progress: Progress) -> Step:
        h = self.encoder(torch.cat(views[:2]))  # (2B, features)
        loss = cosent(*h.chunk(2), labels, temperature=self.config.temperature)
        return Step(loss, h.detach(), h.detach(), index.repeat(2), {"chance": order_chance(labels)})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
