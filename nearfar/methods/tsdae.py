"""TSDAE: most of a text's tokens are left out, and one vector of what is left must do to write the text again.

Wang, Reimers, Gurevych 2021, *TSDAE: Using Transformer-based Sequential Denoising Auto-Encoder for Unsupervised
Sentence Embedding Learning* (arXiv:2104.06979). 60 % of the tokens are deleted (the paper: of the words); s = f(x̃). A
causal decoder gets the tokens before each one and s, by cross-attention on s alone (its equation for H⁽ᵏ⁾). Attention
over a single vector gives that vector whatever is asked, so this cross-attention is a linear map of s, the same at
every place. The decoder has one layer here and shares the embedding with the encoder; theirs shares all weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.errors import UserError
from nearfar.methods import words
from nearfar.methods.parts import Progress, Step, positive, shares

SUPERVISED = False
CONTENT = "text"
CONTEXT = True
PRESETS = {
    "small": {"optim": {"lr": 0.001, "weight_decay": 0.01}},
    # sentence-transformers' examples for TSDAE, by its authors: batch 8, AdamW at 3e-5 that stays, no decay, [CLS]
    "paper": {"encoder": "transformers:bert-base-uncased", "batch": 8, "epochs": 1.0, "text": {"pooling": "cls"},
              "optim": {"lr": 3e-5, "weight_decay": 0.0, "beta2": 0.999, "schedule": "constant", "warmup": 0.0},
              "settings": {"heads": 12}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    delete: float = 0.6
    """share of the tokens that are left out of what is encoded; one always stays"""
    heads: int = 4
    """heads of the decoder's self-attention; they divide the embedding's width"""
    dropout: float = 0.1
    """of the decoder"""

    def __post_init__(self) -> None:
        positive(self, "heads")
        shares(self, "delete", "dropout")


class Decoder(nn.Module):
    """One causal layer after the normalisation of its input. (B, L, d), s (B, d) -> (B, L, d)"""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, y: Tensor, s: Tensor) -> Tensor:
        qkv = self.qkv(self.norms[0](y)).unflatten(2, (3, self.heads, -1))  # (B, L, 3, heads, d/heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 of (B, heads, L, d/heads)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # padding is at the end, so it is never seen
        y = y + self.dropout(self.out(a.transpose(1, 2).flatten(2)))
        y = y + s[:, None]  # cross-attention on one vector
        return y + self.dropout(self.mlp(self.norms[1](y)))


class Method(nn.Module):
    views = 1

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        vocabulary, width = encoder.embedding.weight.shape
        if width % config.heads:
            raise UserError(f"heads {config.heads} do not divide the embedding's width {width}: give another number")
        self.start = nn.Parameter(torch.zeros(width))  # what stands before the first token
        self.places = nn.Embedding(_PLACES, width)
        self.sentence = nn.Linear(encoder.features, width)  # values and output of the cross-attention
        self.decoder = Decoder(width, config.heads, config.dropout)
        self.head = words.TokenHead(width, vocabulary, width)
        nn.init.normal_(self.places.weight, std=0.02)

    def project(self, features: Tensor) -> Tensor:
        return features  # (B, features): texts are compared as they are

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        x, weight = torch.cat(views), self.encoder.embedding.weight  # (B, L)
        left = words.delete(x, self.encoder.specials, self.config.delete, progress.generator)  # (B, L')
        h = self.encoder(left)  # (B, features)
        before = F.embedding(x[:, :-1].clamp(min=0), weight)  # (B, L - 1, width)
        y = torch.cat([self.start.expand(len(x), 1, -1), before], 1)  # (B, L, width)
        y = y + self.places.weight[torch.arange(x.shape[1], device=x.device).clamp(max=_PLACES - 1)]
        y = self.decoder(y, self.sentence(h))  # (B, L, width)
        told = (x >= 0) & (x != self.encoder.specials.cls)  # [CLS] says nothing
        loss = self.head(y[told], x[told], weight)
        return Step(loss, h.detach(), h.detach(), index.repeat(len(views)), {"chance": words.chance(len(weight))})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""


_PLACES = 512  # tokens from the start whose place is told; those beyond share the last
