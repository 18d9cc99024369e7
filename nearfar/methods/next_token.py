"""Next token: each token's vector must find the token that follows among the whole vocabulary.

Bengio, Ducharme, Vincent, Jauvin 2003, *A Neural Probabilistic Language Model* (JMLR 3); Radford, Narasimhan, Salimans,
Sutskever 2018, *Improving Language Understanding by Generative Pre-Training*, equation 1: the mean of -log p(u_i | u_1
… u_{i-1}), p by a softmax over dot products with the embedding. So the cross-entropy of language models is InfoNCE:
z is the context, the keys are the vocabulary's embeddings, the id is the token. It is computed as that, and no logits
are held. The encoder is causal: a token's vector has not seen what follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar.losses import info_nce
from nearfar.methods import words
from nearfar.methods.parts import Progress, Step, positive

SUPERVISED = False
CONTENT = "text"
CONTEXT = True
CAUSAL = True
PRESETS = {
    "small": {"optim": {"lr": 0.001, "weight_decay": 0.01}},
    # Radford et al., section 4.1: 12 layers of width 768 with 12 heads, 64 sequences of 512 tokens, 100 epochs, Adam
    # at 2.5e-4, decay 0.01, 2,000 steps of warm-up, a cosine; byte-pair encoding with 40,000 merges
    "paper": {"encoder": "transformer", "width": 768, "batch": 64, "epochs": 100.0,
              "text": {"layers": 12, "heads": 12, "max_length": 512, "tokenizer": "bpe", "vocabulary": 40_000},
              "optim": {"lr": 2.5e-4, "weight_decay": 0.01, "beta2": 0.999, "warmup": 0.001}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 1.0
    """τ of the softmax over the vocabulary"""

    def __post_init__(self) -> None:
        positive(self, "temperature")


class Method(nn.Module):
    views = 1

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        width = encoder.embedding.weight.shape[1]
        self.projector = nn.Identity() if width == encoder.features else nn.Linear(encoder.features, width)

    def project(self, features: Tensor) -> Tensor:
        return features  # (B, features): texts are compared as they are

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        x, weight = torch.cat(views), self.encoder.embedding.weight  # (B, L)
        h = self.encoder.tokens(x)  # (T, features)
        follows = torch.cat([x[:, 1:], x.new_full((len(x), 1), -1)], 1)[x >= 0]  # (T,), -1 at the end of a text
        z, tokens = self.projector(h[follows >= 0]), follows[follows >= 0]  # (n, width), (n,)
        loss = info_nce(z, tokens, weight, torch.arange(len(weight), device=x.device), similarity="dot",
                        temperature=self.config.temperature)  # fmt: skip
        features, loss = words.pooled(self.encoder, h, x, loss)  # (B, features)
        return Step(loss, features, features, index.repeat(len(views)), {"chance": words.chance(len(weight))})

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
