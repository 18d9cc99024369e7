"""A bag of embeddings: a text is the mean of its tokens' vectors, whatever their order."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.encoders.packing import Packed, pack


class Bag(nn.Module):
    """h = 1/n Σ E[x_i]: the mean of learnt vectors, as fastText (Joulin et al. 2016, arXiv:1607.01759) has it.

    Args:
        vocabulary: V tokens.
        width: d, features.
        dropout: share of a text's tokens' values that are zero while it trains, each token's by themselves.
        max_length: tokens of a text, at most.

    Vectors begin normal with deviation 0.2/√d: cosines do not see their length, and it sets how far a step of Adam
    turns them; at a rate of 0.001 this was the best of three (STS-B's dev part, docs/text.md).
    (B, L), -1 beyond a text's end -> (B, d)
    """

    def __init__(self, vocabulary: int, width: int = 256, *, dropout: float = 0.1, max_length: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.2 / math.sqrt(width))
        self.dropout = dropout
        self.features, self.vocabulary, self.max_length = width, vocabulary, max_length

    def forward(self, x: Tensor) -> Tensor:
        p = pack(x, self.max_length, self.vocabulary)
        if self.training and self.dropout:
            h = self._dropped(p)  # (T, d)
            mean = h.new_zeros(len(x), self.features).index_add(0, p.row, h) / p.lengths[:, None]
            return p.unsorted(mean)
        starts = p.lengths.cumsum(0) - p.lengths  # (B,)
        return p.unsorted(F.embedding_bag(p.ids, self.embedding.weight, starts, mode="mean"))

    def _dropped(self, p: Packed) -> Tensor:
        return F.dropout(self.embedding(p.ids), self.dropout)

    def tokens(self, x: Tensor) -> Tensor:
        """Each token's vector. -> (T, d)"""
        p = pack(x, self.max_length, self.vocabulary)
        return p.as_they_came(self._dropped(p) if self.training and self.dropout else self.embedding(p.ids))

    def padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The same in plain operations, for export. ids (B, L), mask (B, L) -> (B, d)"""
        held = mask[..., None].to(self.embedding.weight.dtype)  # (B, L, 1)
        return (self.embedding(ids) * held).sum(1) / held.sum(1)

