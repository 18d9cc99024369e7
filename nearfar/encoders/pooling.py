"""From the vectors of a text's tokens to one: mean, first, last, largest, or by attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nearfar.errors import UserError, nearest

KINDS = ("mean", "cls", "last", "attention", "max")


class Pooling(nn.Module):
    """Token vectors of packed texts to one a text. h (T, d), row (T,) sorted, lengths (B,) -> (B, d)

    ``mean`` over all tokens, ``cls`` the first, ``last`` the last, ``max`` the largest of each dimension, ``attention``
    Σ softmax(h·q / √d) h with a learnt query q (Lin et al. 2017, arXiv:1703.03130, with one hop).
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"unknown pooling {kind!r}{nearest(kind, KINDS)}")
        self.kind = kind
        self.query = nn.Parameter(torch.randn(width) / math.sqrt(width)) if kind == "attention" else None

    def forward(self, h: Tensor, row: Tensor, lengths: Tensor) -> Tensor:
        ends = lengths.cumsum(0)  # (B,)
        if self.kind == "cls":
            return h[ends - lengths]
        if self.kind == "last":
            return h[ends - 1]
        if self.kind == "max":
            low = h.new_full((len(lengths), h.shape[1]), -torch.inf)
            return low.scatter_reduce(0, row[:, None].expand_as(h), h, "amax")
        if self.kind == "mean":
            return h.new_zeros(len(lengths), h.shape[1]).index_add(0, row, h) / lengths[:, None].to(h.dtype)
        score = h @ self.query.to(h.dtype) / math.sqrt(h.shape[1])  # (T,)
        score = score.to(torch.promote_types(h.dtype, torch.float32))
        top = score.new_full((len(lengths),), -torch.inf).scatter_reduce(0, row, score.detach(), "amax")  # (B,)
        weight = (score - top[row]).exp()  # (T,)
        total = weight.new_zeros(len(lengths)).index_add(0, row, weight)  # (B,)
        share = (weight / total[row]).to(h.dtype)  # (T,)
        return h.new_zeros(len(lengths), h.shape[1]).index_add(0, row, share[:, None] * h)

    def padded(self, h: Tensor, mask: Tensor) -> Tensor:
        """The same of a padded batch, in plain operations: h (B, L, d), mask (B, L) bool -> (B, d)"""
        held = mask[..., None].to(h.dtype)  # (B, L, 1)
        if self.kind == "cls":
            return h[:, 0]
        if self.kind == "last":
            at = mask.to(torch.int64).sum(1) - 1  # (B,)
            return h.gather(1, at[:, None, None].expand(-1, 1, h.shape[2]))[:, 0]
        if self.kind == "max":
            return torch.where(mask[..., None], h, torch.finfo(h.dtype).min).amax(1)
        if self.kind == "mean":
            return (h * held).sum(1) / held.sum(1)
        score = torch.where(mask, h @ self.query / math.sqrt(h.shape[2]), torch.finfo(h.dtype).min)  # (B, L)
        return (score.softmax(1)[..., None] * h).sum(1)
