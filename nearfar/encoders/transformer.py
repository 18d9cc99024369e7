"""A BERT-like Transformer on packed texts: padding is never computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.encoders.packing import Packed, attention, drop, pack
from nearfar.encoders.pooling import Pooling
from nearfar.errors import UserError

_EPS = 1e-12  # BERT's


class Block(nn.Module):
    """Attention, then a feed-forward net of four times the width, each added and then normalised. (T, d) -> (T, d)"""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, _EPS), nn.LayerNorm(width, _EPS)

    def forward(self, h: Tensor, packed: Packed, causal: bool) -> Tensor:
        p = self.dropout if self.training else 0.0
        z = self.out(attention(self.qkv(h), packed, self.heads, p, causal))  # (T, d)
        h = self.norm1(h + drop(z, p))
        return self.norm2(h + drop(self.down(F.gelu(self.up(h))), p))

    def padded(self, h: Tensor, mask: Tensor, causal: bool) -> Tensor:
        """(B, L, d), mask (B, 1, L, L) bool -> (B, L, d)"""
        b, n, d = h.shape
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, L, d/heads)
        h = self.norm1(h + self.out(z.transpose(1, 2).reshape(b, n, d)))
        return self.norm2(h + self.down(F.gelu(self.up(h))))


class Transformer(nn.Module):
    """BERT's encoder (Devlin et al. 2019, arXiv:1810.04805) with its weights one to one: see encoders/bert_names.py.

    Args:
        vocabulary: V tokens.
        width, layers, heads: d, its depth, and how many heads share d.
        dropout: on embeddings, attention and what each layer adds.
        pooling: see :class:`Pooling`.
        max_length: positions there are.
        causal: a token sees itself and what comes before it.

    All dense layers run on the T tokens of a batch, without padding; attention on groups of texts of about one length.
    (B, L), -1 beyond a text's end -> (B, d)
    """

    def __init__(
        self, vocabulary: int, width: int = 256, *, layers: int = 4, heads: int = 4, dropout: float = 0.1,
        pooling: str = "mean", max_length: int = 64, causal: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            near = -(-width // heads) * heads
            raise UserError(f"width {width} does not divide among {heads} heads: give --width {near}")
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(max_length, width)
        self.norm, self.dropout, self.causal = nn.LayerNorm(width, _EPS), dropout, causal
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.pooling = Pooling(pooling, width)
        self.features, self.vocabulary, self.max_length = width, vocabulary, max_length
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def _states(self, p: Packed) -> Tensor:
        """(T, d) of the packed tokens"""
        h = self.norm(self.embedding(p.ids) + self.position(p.position))  # (T, d)
        h = drop(h, self.dropout if self.training else 0.0)
        for block in self.blocks:
            h = block(h, p, self.causal)
        return h

    def tokens(self, x: Tensor) -> Tensor:
        """Each token's vector. -> (T, d)"""
        p = pack(x, self.max_length, self.vocabulary)
        return p.as_they_came(self._states(p))

    def forward(self, x: Tensor) -> Tensor:
        p = pack(x, self.max_length, self.vocabulary)
        return p.unsorted(self.pooling(self._states(p), p.row, p.lengths))

    def padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The same with padding, in plain operations, for export and as an oracle. ids (B, L), mask (B, L) -> (B, d)"""
        mask = mask.bool()
        seen = mask[:, None, None, :].expand(-1, 1, ids.shape[1], -1)  # (B, 1, L, L)
        if self.causal:
            seen = seen & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        h = self.norm(self.embedding(ids) + self.position.weight[: ids.shape[1]])  # (B, L, d)
        for block in self.blocks:
            h = block.padded(h, seen, self.causal)
        return self.pooling.padded(h, mask)
