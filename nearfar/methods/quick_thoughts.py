"""Quick thoughts: a sentence must find the one that follows it among those that follow the batch's others.

Logeswaran, Lee 2018, *An efficient framework for learning sentence representations* (arXiv:1803.02893). Encoders f and
g; p(s_next | s) is a softmax over the dot products f(s)·g(s') of the batch's candidates (equation 1), here both ways,
as the context has what comes before, too. The paper's two encoders share nothing and its sentences are represented by
both, end to end; here one encoder does for both unless ``two_towers`` are asked for, and f's features are what is used.
A ``predictor`` is contrastive predictive coding's W_k (van den Oord, Li, Vinyals 2018, arXiv:1807.03748, equation 3):
a linear map of the one that looks, each way its own.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import info_nce
from nearfar.methods.parts import Progress, Step, positive

SUPERVISED = False
CONTENT = "text"
NEEDS = "neighbours"
PRESETS = {
    # cosines, as dot products of a long encoder's features are large from the start
    "small": {"optim": {"lr": 0.001}, "settings": {"similarity": "cosine", "temperature": 0.05}},
    # lajanugen/S2V, scripts/run.sh and src/train.py: batch 400, at most 30 words, Adam at 5e-4 that stays, the
    # gradient's norm at most 5, one epoch; a GRU that reads both ways, 1,200 features from words of 620 (here 1,200)
    "paper": {"encoder": "gru", "width": 1200, "batch": 400, "epochs": 1.0,
              "text": {"max_length": 30, "vocabulary": 50_001},
              "optim": {"lr": 5e-4, "weight_decay": 0.0, "beta2": 0.999, "schedule": "constant", "warmup": 0.0,
                        "clip": 5.0},
              "settings": {"two_towers": True}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 1.0
    """τ of the softmax (the paper: 1)"""
    similarity: str = "dot"
    """dot (the paper) or cosine"""
    two_towers: bool = False
    """an encoder of its own, g, for the sentences that are sought (the paper)"""
    predictor: bool = False
    """a linear map of the sentence that looks, each way its own (CPC)"""
    reach: int = 1
    """how many sentences ahead are sought, each a pair of its own"""
    symmetric: bool = True
    """let each sentence seek the one before it, too"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "reach")
        if self.similarity not in ("dot", "cosine"):
            raise UserError(f"similarity {self.similarity!r}: give 'dot' or 'cosine'")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, d = encoder, config, encoder.features
        self.other = copy.deepcopy(encoder) if config.two_towers else None  # g, which starts as f and parts from it
        ways = (1 + config.symmetric) * config.predictor
        self.predictors = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(ways))  # W_1, W_-1

    def project(self, features: Tensor) -> Tensor:
        return features  # (B, features): what is contrasted is what is used

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c = self.config
        x = torch.cat(views[:2])  # (2B, L)
        h = self.encoder(x)  # (2B, features)
        sought = h if self.other is None else self.other(x)  # (2B, features)
        first, following = h.chunk(2)
        before, after = sought.chunk(2)
        ways = [(first, after), (following, before)][: 1 + c.symmetric]
        if self.predictors:
            ways = [(w(z), keys) for w, (z, keys) in zip(self.predictors, ways)]
        losses = [info_nce(z, index, keys, index, temperature=c.temperature, similarity=c.similarity)
                  for z, keys in ways]  # fmt: skip
        return Step(torch.stack(losses).mean(), h.detach(), h.detach(), index.repeat(2),
                    {"chance": math.log(dist.world() * len(index))})  # fmt: skip

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
