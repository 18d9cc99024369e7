"""Recurrent encoders: GRU and LSTM over a text's tokens, both ways or one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nearfar.encoders.packing import pack
from nearfar.encoders.pooling import Pooling
from nearfar.errors import UserError

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """A GRU (Cho et al. 2014, arXiv:1406.1078) or LSTM (Hochreiter & Schmidhuber 1997), read by :class:`Pooling`.

    Args:
        cell: ``"gru"`` or ``"lstm"``.
        vocabulary: V tokens.
        width: d, features: of two directions each half.
        layers: one upon the other.
        dropout: on embeddings, between layers and on what comes out.
        pooling: see :class:`Pooling`.
        causal: one direction alone.

    Padding is not computed: the sequences are packed. (B, L), -1 beyond a text's end -> (B, d)
    """

    def __init__(
        self, cell: str, vocabulary: int, width: int = 256, *, layers: int = 1, dropout: float = 0.1,
        pooling: str = "mean", max_length: int = 64, causal: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % 2 and not causal:
            raise UserError(f"width {width} does not divide among two directions: give --width {width + 1}")
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(width))
        self.cell = CELLS[cell](width, width if causal else width // 2, layers, batch_first=True,
                                dropout=dropout if layers > 1 else 0.0, bidirectional=not causal)  # fmt: skip
        self.pooling, self.dropout = Pooling(pooling, width), dropout
        self.features, self.vocabulary, self.max_length = width, vocabulary, max_length

    def _states(self, x: Tensor) -> Tensor:
        """(B, L) -> (T, d) in the order of ``x[x >= 0]``"""
        pack(x, self.max_length, self.vocabulary)  # what is wrong with it is said
        kept = x >= 0
        h = F.dropout(self.embedding(x.clamp(min=0)), self.dropout, self.training)  # (B, L, d)
        packed = pack_padded_sequence(h, kept.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.cell(packed)[0], batch_first=True, total_length=x.shape[1])  # (B, L, d)
        return F.dropout(out[kept], self.dropout, self.training)

    def tokens(self, x: Tensor) -> Tensor:
        """Each token's state. -> (T, d)"""
        return self._states(x)

    def forward(self, x: Tensor) -> Tensor:
        kept = x >= 0
        return self.pooling(self._states(x), kept.nonzero()[:, 0], kept.sum(1))

    def padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The same row by row, for export and as an oracle. ids (B, L), mask (B, L) -> (B, d)"""
        states = [self.cell(self.embedding(i[m.bool()])[None])[0][0] for i, m in zip(ids, mask)]  # B of (n, d)
        lengths = torch.tensor([len(s) for s in states], device=ids.device)
        return self.pooling(torch.cat(states), torch.repeat_interleave(lengths), lengths)
