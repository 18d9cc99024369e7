"""Texts of a batch end to end, so that no padding is computed: where each stands, attention by groups of a length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.errors import UserError

_WIDER = 1.5  # longest over shortest text of a group, at most


@dataclass(frozen=True)
class Group:
    """Texts that attend together: ``rows`` of the sorted batch, their tokens ``start`` to ``stop``."""

    start: int
    stop: int
    rows: int
    longest: int
    places: Tensor | None  # (tokens,) of each in (rows · longest); None where all are of one length
    mask: Tensor | None  # (rows, 1, 1, longest): which places hold a token


@dataclass(frozen=True)
class Packed:
    """The tokens of a batch, row after row, the shortest row first; padding is left out."""

    ids: Tensor  # (T,)
    position: Tensor  # (T,) of a token in its text
    row: Tensor  # (T,) of the sorted batch
    lengths: Tensor  # (B,) sorted
    order: Tensor  # (B,) which row of the batch each was
    groups: tuple[Group, ...]
    kept: Tensor  # (B, L) of the batch as it came: which places hold a token

    def unsorted(self, z: Tensor) -> Tensor:
        """Rows in the batch's own order. (B, d) -> (B, d)"""
        return z[self.order.argsort()]

    def as_they_came(self, h: Tensor) -> Tensor:
        """Token vectors in the order of ``x[x >= 0]``. (T, d) -> (T, d)"""
        ends = self.lengths.cumsum(0)  # (B,)
        begin = self.unsorted((ends - self.lengths)[:, None])[:, 0]  # (B,) where each row's tokens begin
        rows, across = self.kept.nonzero(as_tuple=True)
        return h[begin[rows] + across]


def pack(x: Tensor, max_length: int, vocabulary: int) -> Packed:
    """Leave the padding of a batch out. x (B, L), -1 beyond a text's end. Raises ``UserError``."""
    kept = x >= 0  # (B, L)
    lengths = kept.sum(1)  # (B,)
    _check(x, lengths, max_length, vocabulary)
    order = lengths.argsort(stable=True)  # (B,)
    inside = kept[order]  # (B, L)
    row, position = inside.nonzero(as_tuple=True)  # (T,), (T,)
    lengths = lengths[order]
    return Packed(x[order][inside], position, row, lengths, order, _groups(lengths), kept)


def _check(x: Tensor, lengths: Tensor, max_length: int, vocabulary: int) -> None:
    if x.ndim != 2 or x.is_floating_point():
        raise UserError(f"tokens are {tuple(x.shape)} {x.dtype}: give whole numbers (B, L), -1 beyond a text's end")
    if not len(x):
        return
    least, most, largest = (int(v) for v in torch.stack([lengths.min(), lengths.max(), x.max()]))
    if least < 1:
        raise UserError(f"row {int(lengths.argmin())} has no token: give each text one at least")
    if most > max_length:
        raise UserError(f"a text has {most} tokens and the encoder takes {max_length}: pass a larger --text.max-length")
    if largest >= vocabulary:
        raise UserError(f"token {largest} is none of the encoder's {vocabulary}: it is another tokeniser's")


def _groups(lengths: Tensor) -> tuple[Group, ...]:
    """Rows sorted by length, cut where one would be half as long again as the group's first. (B,)"""
    held, out, first, start = lengths.tolist(), [], 0, 0
    while first < len(held):
        last = first
        while last < len(held) and held[last] <= max(_WIDER * held[first], held[first] + 3):
            last += 1
        part = lengths[first:last]  # (b,)
        b, longest, tokens = last - first, held[last - 1], int(part.sum())
        places = mask = None
        if tokens < b * longest:
            mask = torch.arange(longest, device=lengths.device) < part[:, None]  # (b, longest)
            places = mask.flatten().nonzero()[:, 0]  # (tokens,)
            mask = mask[:, None, None, :]
        out.append(Group(start, start + tokens, b, longest, places, mask))
        first, start = last, start + tokens
    return tuple(out)


def attention(qkv: Tensor, packed: Packed, heads: int, dropout: float, causal: bool) -> Tensor:
    """Multi-head attention of each text's tokens to its own. (T, 3·d) -> (T, d)"""
    out = []
    parts = qkv.split([g.stop - g.start for g in packed.groups])  # of slices, backward would fill (T, 3·d) for each
    for g, part in zip(packed.groups, parts):  # (t, 3·d)
        if g.places is not None:
            part = Spread.apply(part, g.places, g.rows * g.longest)  # (b·l, 3·d)
        q, k, v = part.view(g.rows, g.longest, 3, heads, -1).permute(2, 0, 3, 1, 4)  # 3 of (b, heads, l, d/heads)
        mask = None if causal else g.mask  # what follows a text's end is hidden from it by causality
        z = _attended(q, k, v, mask, dropout, causal)
        z = z.transpose(1, 2).reshape(g.rows * g.longest, -1)  # (b·l, d)
        out.append(z if g.places is None else Gathered.apply(z, g.places))
    return torch.cat(out) if len(out) > 1 else out[0]


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool) -> Tensor:
    """Softmax of scaled products, in float32 at least on a CPU. thrice (b, heads, l, d/heads) -> (b, heads, l, d/heads)

    PyTorch's own kernel is slower there for so few tokens, in bfloat16 most of all.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        scores = (q.to(wide) * q.shape[-1] ** -0.5) @ k.to(wide).transpose(2, 3)  # (b, heads, l, l)
        if causal:
            mask = torch.ones(scores.shape[2:], dtype=torch.bool).tril()  # (l, l)
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        return (drop(scores.softmax(-1), dropout) @ v.to(wide)).to(q.dtype)


class _Kept(torch.autograd.Function):
    """x · kept · scale; a byte a value is held for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return (grad * ctx.saved_tensors[0]).mul_(ctx.scale), None, None


def drop(x: Tensor, p: float) -> Tensor:
    """Dropout of a share p in 0 to 1; on a CPU to 1/65,536: a draw of PyTorch's generator serves four values."""
    if not p or x.device.type != "cpu":
        return F.dropout(x, p) if p else x
    n, low = x.numel(), min(65535, round(p * 65536))
    drawn = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[:n].view(x.shape) >= low - 32768
    return _Kept.apply(x, kept, 65536 / (65536 - low))


class Spread(torch.autograd.Function):
    """Rows to their places among zeros; backward picks them again. (t, d), (t,) -> (n, d)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_zeros(n, x.shape[1]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class Gathered(torch.autograd.Function):
    """Rows from places that differ; backward puts them back, which needs no sum. (n, d), (t,) -> (t, d)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.n = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad.new_zeros(ctx.n, grad.shape[1]).index_copy_(0, ctx.saved_tensors[0], grad), None
