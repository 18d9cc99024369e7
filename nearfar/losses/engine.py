"""The autograd functions over the tiles: softmax losses that never hold an N×N matrix.

A softmax loss over groups is, for each anchor, a log-sum-exp over its candidates less a mean of logits over its
positives. The second needs no tile at all: the sum over an anchor's positives of ``u_i·u_p`` is ``u_i`` times its
group's sum. So tiles are only summed, and groups of any size cost O(N·d). The gradient of the scale comes with the
others: a logit is the scale times a product, so ``scale · d/dscale = ⟨d/dq, q⟩``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearfar.losses import tiles
from nearfar.losses.rows import lengths

Rows = Tensor | tiles.Unit
_CHUNK = 8192  # rows whose group sums are looked up at a time


class Tally(NamedTuple):
    """Groups as whole numbers 0..K-1, and how many positives each anchor has."""

    anchors: Tensor  # (n,) in 0..K; K: a group that no candidate has
    keys: Tensor  # (M,) in 0..K-1
    kinds: int  # K
    positives: Tensor  # (n,)


def tally(groups: Tensor, key_groups: Tensor, first: int | None) -> Tally:
    """Number the groups; an anchor that is a candidate itself (``first``) is not its own positive."""
    ids, keys, counts = torch.unique(key_groups, return_inverse=True, return_counts=True)
    if first is not None:
        anchors = keys[first : first + len(groups)]
        return Tally(anchors, keys, len(ids), counts[anchors] - 1)
    at = torch.searchsorted(ids, groups.to(ids.dtype).contiguous())
    known = at < len(ids)
    known = known & (ids[at.clamp(max=max(len(ids) - 1, 0))] == groups) if len(ids) else known
    anchors = torch.where(known, at, len(ids))
    positives = torch.cat([counts, counts.new_zeros(1)])[anchors]
    return Tally(anchors, keys, len(ids), positives)


def group_sums(x: Rows, groups: Tensor, kinds: int, weight: Tensor | None = None) -> Tensor:
    """Σ of rows by group, a row of zeros last; in float64 where groups are large. (M, d) -> (K + 1, d)"""
    kind = torch.float64 if kinds * 16 <= len(x) else x.dtype
    out = torch.zeros(kinds + 1, x.shape[1], dtype=kind, device=x.device)
    for at in range(0, len(x), _CHUNK):
        part = x[at : at + _CHUNK].to(kind)
        if weight is not None:
            part = part * weight[at : at + _CHUNK, None].to(kind)
        out.index_add_(0, groups[at : at + _CHUNK], part)
    return out


def pull(q: Rows, k: Rows, t: Tally, first: int | None) -> Tensor:
    """Σ over an anchor's positives of q_i·k_p. -> (n,) float64"""
    sums = group_sums(k, t.keys, t.kinds)
    out = torch.empty(len(q), dtype=torch.float64, device=q.device)
    for at in range(0, len(q), _CHUNK):
        part = slice(at, at + _CHUNK)
        other = sums[t.anchors[part]]  # (c, d)
        if first is not None:
            other = other.sub_(q[part])
        out[part] = (other * q[part]).sum(1, dtype=torch.float64)
    return out


def push_gradients(
    q: Rows, k: Rows, t: Tally, first: int | None, weight: Tensor, dq: Tensor | None, dk: Tensor | None
) -> None:
    """Add the gradients of Σ_i weight_i · pull_i, in place. Where ``dk`` is ``dq`` anchors are the candidates."""
    weight = weight.to(q.dtype)
    if dq is not None:
        sums = group_sums(k, t.keys, t.kinds)
        for at in range(0, len(q), _CHUNK):
            part = slice(at, at + _CHUNK)
            other = sums[t.anchors[part]].to(q.dtype)
            if first is not None:
                other -= q[part]
            dq[part].addcmul_(other, weight[part, None])
        del sums
    if dk is not None:
        sums = group_sums(q, t.anchors, t.kinds, weight)  # anchors of no known group fall into the last row
        for at in range(0, len(k), _CHUNK):
            dk[at : at + _CHUNK] += sums[t.keys[at : at + _CHUNK]].to(k.dtype)
        if first is not None:
            mine = dk[first : first + len(q)]
            for at in range(0, len(q), _CHUNK):
                part = slice(at, at + _CHUNK)
                mine[part].addcmul_(q[part], weight[part, None], value=-1)


def everyone(n: int, m: int, first: int | None, device: torch.device) -> Tally:
    """All candidates as one group: for label smoothing."""
    zeros = torch.zeros(max(n, m), dtype=torch.int64, device=device)
    return Tally(zeros[:n], zeros[:m], 1, torch.full((n,), m - (first is not None), device=device))


def pulls(t: Tally, n: int, m: int, first: int | None, smoothing: float) -> list[tuple[Tally, Tensor]]:
    """The groupings whose mean logits are subtracted, with each anchor's weight for one of its products. float64"""
    mean = lambda tally: torch.where(tally.positives > 0, 1 / tally.positives.clamp(min=1).double(), 0.0)  # noqa: E731
    out = [(t, (1 - smoothing) * mean(t))]
    if smoothing:
        all_of_them = everyone(n, m, first, t.keys.device)
        out.append((all_of_them, smoothing * mean(all_of_them)))
    return out


def inner(a: Rows, b: Rows) -> Tensor:
    """⟨a, b⟩ in float64, a few rows at a time."""
    out = torch.zeros((), dtype=torch.float64, device=a.device)
    for at in range(0, len(a), _CHUNK):
        out += (a[at : at + _CHUNK].double() * b[at : at + _CHUNK]).sum()
    return out


class _Self(torch.autograd.Function):
    """Rows against each other: (N, d) as given, normalised tile by tile, so that memory is twice the input's."""

    @staticmethod
    def forward(ctx, z: Tensor, scale: Tensor, t: Tally, unit: bool, smoothing: float) -> Tensor:
        inverse = 1 / lengths(z) if unit else None  # (N, 1)
        u = tiles.Unit(z, inverse) if unit else z
        factor = scale.item()
        with torch.autocast(z.device.type, enabled=False):
            lse = tiles.self_lse(u, factor)
            parts = pulls(t, len(u), len(u), 0, smoothing)
            value = lse - factor * sum(w * pull(u, u, s, 0) for s, w in parts)
        ctx.save_for_backward(z, inverse, lse, scale)
        ctx.tally, ctx.smoothing = t, smoothing
        return value.to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        z, inverse, lse, scale = ctx.saved_tensors
        u = z if inverse is None else tiles.Unit(z, inverse)
        factor = scale.item()
        with torch.autocast(z.device.type, enabled=False):
            du = tiles.self_grad(u, factor, lse, g)
            for tally, w in pulls(ctx.tally, len(u), len(u), 0, ctx.smoothing):
                push_gradients(u, u, tally, 0, -factor * w * g.double(), du, du)
            dscale = None
            if ctx.needs_input_grad[1]:  # every product appears in the gradients of both of its rows
                dscale = (inner(du, u) / (2 * factor)).to(scale.dtype)
            if inverse is not None:
                for at in range(0, len(z), _CHUNK):
                    part = slice(at, at + _CHUNK)
                    rows = u[part]
                    radial = (du[part] * rows).sum(1, keepdim=True)
                    du[part].addcmul_(rows, radial, value=-1).mul_(inverse[part])
        return du, dscale, None, None, None


class _Keys(torch.autograd.Function):
    """Anchors against candidates, one way or both; rows come normalised."""

    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, scale: Tensor, t: Tally, back: Tally | None, first: int | None, smoothing: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        factor = scale.item()
        with torch.autocast(q.device.type, enabled=False):
            lse, lse_back = tiles.lse(q, k, factor, first, back is not None)
            parts = pulls(t, len(q), len(k), first, smoothing)
            value = lse - factor * sum(w * pull(q, k, s, first) for s, w in parts)
            value_back = q.new_zeros(0)
            if back is not None:
                parts = pulls(back, len(k), len(q), None, smoothing)
                value_back = lse_back - factor * sum(w * pull(k, q, s, None) for s, w in parts)
        ctx.save_for_backward(q, k, lse, lse_back, scale)
        ctx.extra = (t, back, first, smoothing)
        return value.to(q.dtype), value_back.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor, h: Tensor):
        q, k, lse, lse_back, scale = ctx.saved_tensors
        t, back, first, smoothing = ctx.extra
        factor, wanted = scale.item(), ctx.needs_input_grad
        with torch.autocast(q.device.type, enabled=False):
            by_column = None if back is None else (lse_back, h)
            dq, dk = tiles.grad(q, k, factor, first, (lse, g), by_column, (wanted[0] or wanted[2], wanted[1]))
            for s, w in pulls(t, len(q), len(k), first, smoothing):
                push_gradients(q, k, s, first, -factor * w * g.double(), dq, dk)
            if back is not None:
                for s, w in pulls(back, len(k), len(q), None, smoothing):
                    push_gradients(k, q, s, None, -factor * w * h.double(), dk, dq)
        dscale = (inner(dq, q) / factor).to(scale.dtype) if wanted[2] else None
        return dq if wanted[0] else None, dk, dscale, None, None, None, None


class _Pairs(torch.autograd.Function):
    """Σ over my anchors and all candidates of -log σ(±(scale q·k + bias)); gradients taken in the forward pass."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, scale: Tensor, bias: Tensor, t: Tally, first: int | None) -> Tensor:
        factor, needed = scale.item(), any(ctx.needs_input_grad)
        with torch.autocast(q.device.type, enabled=False):
            value, dq, dk, slope = tiles.softplus_sums(q, k, factor, bias.item(), first, needed)
            # softplus(-x) = softplus(x) - x: the positives' part is linear
            value = value - (factor * pull(q, k, t, first) + bias.item() * t.positives.double()).sum()
            if needed:
                weight = torch.full((len(q),), -factor, dtype=q.dtype, device=q.device)
                push_gradients(q, k, t, first, weight, dq, dq if dk is None else dk)
                mirrored = 2 if dk is None else 1
                dscale = (inner(dq, q) / (mirrored * factor)).to(scale.dtype)
                ctx.save_for_backward(dq, dk, dscale, (slope - t.positives.sum()).to(bias.dtype))
        return value.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        return *(None if x is None else x * g for x in ctx.saved_tensors), None, None


def eager(fn: Callable) -> Callable:
    """Left as it is by ``torch.compile``, whose graphs know no ``q is k`` and no tiles; what is around is compiled."""

    @functools.wraps(fn)
    def call(*args):
        # as a decorator torch.compiler.disable would import all of the compiler, for seconds
        return torch.compiler.disable(fn)(*args) if torch.compiler.is_compiling() else fn(*args)

    return call


@eager
def contrast_self(z: Tensor, groups: Tensor, scale: Tensor, unit: bool, smoothing: float) -> tuple[Tensor, Tensor]:
    """Each row's loss against all others of one process, and how many positives it has. (N,), (N,)"""
    t = tally(groups, groups, 0)
    return _Self.apply(z, scale, t, unit, smoothing), t.positives


@eager
def contrast(
    q: Tensor, groups: Tensor, k: Tensor, key_groups: Tensor, first: int | None, scale: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each anchor's loss against the candidates, and how many positives it has. (n,), (n,)"""
    t = tally(groups, key_groups, first)
    return _Keys.apply(q, k, scale, t, None, first, smoothing)[0], t.positives


@eager
def contrast_both(
    q: Tensor, groups: Tensor, k: Tensor, key_groups: Tensor, scale: Tensor, smoothing: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:  # fmt: skip
    """Both towers' losses against each other from the same tiles: ((n,), (n,)), ((M,), (M,))"""
    there, back = tally(groups, key_groups, None), tally(key_groups, groups, None)
    a, b = _Keys.apply(q, k, scale, there, back, None, smoothing)
    return (a, there.positives), (b, back.positives)


@eager
def pair_logistic(
    q: Tensor, groups: Tensor, k: Tensor, key_groups: Tensor, first: int | None, scale: Tensor, bias: Tensor
) -> Tensor:  # fmt: skip
    """Σ_ij -log σ(y_ij (scale q_i·k_j + bias)), y = ±1; ``q is k`` with ``first`` 0 does half of the work. ()"""
    return _Pairs.apply(q, k, scale, bias, tally(groups, key_groups, first), first)
