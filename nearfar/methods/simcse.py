"""SimCSE: a text must find itself, encoded with another dropout mask, or its pair, among the others of the batch.

Gao, Yao, Chen 2021, *SimCSE: Simple Contrastive Learning of Sentence Embeddings* (arXiv:2104.08821). Unsupervised: the
same text goes through the encoder twice, and dropout is all that makes the two views differ (equation 4). Supervised:
an anchor and a positive, and where there are three texts a row, the third is a hard negative, a candidate for every
anchor of the batch (equation 5), which may weigh more for its own (appendix). The MLP over the features serves in
training only. Masked-language modelling may be added, with weight λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError, at_least
from nearfar.losses import info_nce
from nearfar.losses.rows import reduced, widened
from nearfar.losses.scored import matryoshka
from nearfar.methods import words
from nearfar.methods.parts import Progress, Step, pair_ids, positive, shares

SUPERVISED = False
CONTENT = "text"
NEGATIVES = True
_BERT = {"encoder": "transformers:bert-base-uncased", "text": {"max_length": 32, "pooling": "cls"}}
_ADAMW = {"weight_decay": 0.0, "beta2": 0.999, "warmup": 0.0}  # the rate falls along a line there, a cosine here
PRESETS = {
    # at 0.05 a small encoder soon has nothing left to tell apart (trials on STS-B's training sentences, seen on dev)
    "small": {"optim": {"lr": 0.001}, "settings": {"head": 0, "temperature": 0.1}},
    # princeton-nlp/SimCSE, README: one epoch over 10^6 sentences of Wikipedia
    "paper": _BERT | {"batch": 64, "epochs": 1.0, "optim": _ADAMW | {"lr": 3e-5}},
    # the same: triplets of SNLI and MNLI; the MLP is kept afterwards there
    "supervised": _BERT | {"batch": 512, "epochs": 3.0, "optim": _ADAMW | {"lr": 5e-5}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.05
    """τ of InfoNCE"""
    hard_negative_weight: float = 0.0
    """log of the weight of a row's own hard negative among its candidates; 0: as heavy as any other"""
    symmetric: bool = False
    """let positives seek their anchors too; the paper takes anchors alone"""
    exclude_above: float = 1.0
    """negatives more similar to the anchor than this are left out, as likely positives; 1: none"""
    head: int = 1
    """layers, linear and tanh, between the features and the loss (the paper: 1)"""
    matryoshka: str = ""
    """widths, with commas between, at which features cut short must do as well; needs head 0"""
    mlm: float = 0.0
    """λ, weight of masked-language modelling of the anchors (the paper's option: 0.1); 0: none"""
    mlm_share: float = 0.15
    """share of the tokens that it hides"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "mlm_share")
        shares(self, "mlm_share")
        at_least(self, head=0, mlm=0)
        if not math.isfinite(self.hard_negative_weight):
            raise UserError(f"hard_negative_weight {self.hard_negative_weight} must be a number")
        if not -1 <= self.exclude_above <= 1:
            raise UserError(f"exclude_above {self.exclude_above} is a cosine: give -1 to 1")
        if self.widths() and self.head:
            raise UserError(f"matryoshka {self.matryoshka!r} cuts the features themselves: give head 0 with it")

    def widths(self) -> list[int]:
        try:
            held = [int(part) for part in self.matryoshka.split(",")] if self.matryoshka.strip() else []
        except ValueError:
            held = [0]
        if any(w < 1 for w in held):
            raise UserError(f"matryoshka {self.matryoshka!r}: give widths with commas between, such as '32,64,128'")
        return held


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, d = encoder, config, encoder.features
        self.widths = config.widths()
        if max(self.widths, default=0) > d:
            raise UserError(f"matryoshka {config.matryoshka!r}: the encoder has {d} features, give no more")
        self.projector = nn.Sequential(*(part for _ in range(config.head) for part in (nn.Linear(d, d), nn.Tanh())))
        self.head = None
        if config.mlm:
            words.check_masking("simcse with mlm", encoder)
            self.head = words.token_head(encoder)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, features)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c = self.config
        h = self.encoder(torch.cat(views))  # (V·B, features)
        z = self.project(h)  # (V·B, features)
        groups = pair_ids(index, len(views))  # (V·B,)
        loss = self._wide(lambda z: self.contrast(z, groups, len(index)), z)
        stats = {"chance": math.log(dist.world() * (len(z) - len(index)))}
        if self.head is not None:
            told, *_ = words.masked_loss(self.encoder, self.head, views[0], c.mlm_share, progress.generator)
            loss = loss + c.mlm * told
            stats = {"chance": stats["chance"] + c.mlm * words.chance(self.encoder.vocabulary), "masked": told.detach()}
        return Step(loss, h.detach(), z.detach(), groups, stats)

    def _wide(self, loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """The loss of all features, or its mean over features cut short."""
        return matryoshka(loss, self.widths, z) if self.widths else loss(z)

    def contrast(self, z: Tensor, groups: Tensor, rows: int) -> Tensor:
        """Equation 5, and equation 4 where there are no hard negatives. z (V·B, d), groups (V·B,) -> ()"""
        c = self.config
        above = c.exclude_above if c.exclude_above < 1 else None
        (a, keys), (ids, key_ids) = ((x[:rows], x[rows:]) for x in (z, groups))  # (B, d), ((V - 1)·B, d)
        weighted = c.hard_negative_weight != 0 and len(keys) > rows
        loss = info_nce(a, ids, keys, key_ids, temperature=c.temperature, exclude_above=above,
                        reduction="none" if weighted else "mean")  # fmt: skip
        if weighted:
            loss = self._weighted(loss, *(widened(x, unit=True) for x in z.split(rows)[:3]))
        if not c.symmetric:
            return loss
        return (loss + info_nce(keys[:rows], ids, a, ids, temperature=c.temperature, exclude_above=above)) / 2

    def _weighted(self, loss: Tensor, a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        """Each row's own hard negative once more, e^w - 1 times. losses (B,), unit rows 3 of (B, d) -> ()"""
        c = self.config
        near, far = ((a * x).sum(1) for x in (p, n))  # (B,) cosines
        share = ((far - near) / c.temperature - loss).exp()  # (B,) of the denominator that is the hard negative's
        more = torch.where(far <= c.exclude_above, share * math.expm1(c.hard_negative_weight), 0)
        return reduced(loss + more.log1p(), torch.ones_like(loss), "mean")

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
