"""Any loss that is a sum over anchors, flat in memory: a few anchors at a time against all candidates.

A loss is written down as its paper has it, on a *panel*: the (b, M) similarities or distances of some anchors to
all candidates, beside masks of which are positive and which negative. Panels are computed forward, forgotten, and
computed again backward (8 N·M·d operations in all), so memory is O(N·d) and one panel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearfar.errors import UserError, nearest
from nearfar.losses.rows import Rows

VALUES = 2**21  # (anchor, candidate) pairs held at a time: 8 MiB in float32
_TINY = 1e-12


class Panel(NamedTuple):
    """Some anchors against all candidates."""

    s: Tensor  # (b, M) cosine, dot product or distance
    positive: Tensor  # (b, M) bool: of the anchor's group, and not itself
    negative: Tensor  # (b, M) bool: of another group
    rows: slice  # which anchors these are

    @property
    def candidates(self) -> Tensor:
        """(b, M) bool: all but the anchor itself."""
        return self.positive | self.negative


def by_panels(
    fn: Callable[..., Tensor], given: Rows, *parameters: Tensor, metric: str = "dot", width: int = 1
) -> Tensor:  # fmt: skip
    """``fn(panel, *parameters)`` for every anchor, flat in memory. -> (n,) or (n, c), in the anchors' order

    Args:
        fn: takes a :class:`Panel`, gives (b,) or (b, c). Must draw nothing: it is called twice.
        parameters: tensors that ``fn`` needs and that want a gradient (a learnt temperature); what needs none
            may be closed over.
        metric: ``"dot"`` (the cosine, where rows have length one), ``"cosine-distance"`` (1 - dot),
            ``"euclidean"`` or ``"squared"`` distance.
        width: how many (b, M) tensors' worth of memory ``fn`` takes a value, so that panels are cut smaller.
    """
    z, groups, keys, key_groups, first = given
    measure = _METRICS[metric] if metric in _METRICS else _unknown(metric)
    n, m = len(z), len(keys)
    height = max(1, min(n, VALUES // max(1, m * width)))

    def panel(part: slice, z: Tensor, keys: Tensor, *parameters: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            same = groups[part, None] == key_groups[None, :]  # (b, M)
            positive = same
            if first is not None:
                positive = same.clone()
                mine = torch.arange(part.start, part.stop, device=z.device)
                positive[mine - part.start, first + mine] = False
            return fn(Panel(measure(z, keys), positive, ~same, part), *parameters)

    parts = [slice(at, min(at + height, n)) for at in range(0, n, height)] or [slice(0, 0)]
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([panel(part, z[part], keys, *parameters) for part in parts])
    return _Recomputed.apply(panel, parts, z, keys, *parameters)


class _Recomputed(torch.autograd.Function):
    """Panels whose insides are forgotten, and computed again for their gradients."""

    @staticmethod
    def forward(ctx, panel: Callable[..., Tensor], parts: list[slice], *tensors: Tensor) -> Tensor:
        ctx.panel, ctx.parts = panel, parts
        ctx.save_for_backward(*tensors)
        z, *rest = tensors
        return torch.cat([panel(part, z[part], *rest) for part in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        needed = ctx.needs_input_grad[2:]
        tensors = ctx.saved_tensors
        grads = [torch.zeros_like(t) if want else None for t, want in zip(tensors, needed)]
        leaves = [t.detach().requires_grad_(want) for t, want in zip(tensors, needed)]
        for part in ctx.parts:
            z = tensors[0][part].detach().requires_grad_(needed[0])
            with torch.enable_grad():
                out = ctx.panel(part, z, *leaves[1:])
            if not out.requires_grad:
                continue
            wanted = [(i, leaf) for i, leaf in enumerate([z, *leaves[1:]]) if needed[i]]
            found = torch.autograd.grad(out, [leaf for _, leaf in wanted], g[part], allow_unused=True)
            for (i, _), new in zip(wanted, found):
                if new is not None:
                    grads[i][part if i == 0 else slice(None) if grads[i].ndim else ...] += new
        return None, None, *grads


def masked_lse(x: Tensor, mask: Tensor) -> Tensor:
    """log Σ exp over the masked values of each row; -inf, with a gradient of zero, where there are none. (b,)"""
    some = mask.any(1)
    filled = torch.where(mask | ~some[:, None], x, float("-inf"))
    return torch.where(some, filled.logsumexp(1), float("-inf"))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked values of each row; 0 where there are none. (b, M), (b, M) -> (b,)"""
    return torch.where(mask, x, 0).sum(1) / mask.sum(1).clamp(min=1)


class _Dot(torch.autograd.Function):
    """q kᵀ, whose gradient too is taken in full precision where ``backward`` is called under autocast."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return q @ k.T

    @staticmethod
    def backward(ctx, g: Tensor):
        q, k = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            return g @ k if ctx.needs_input_grad[0] else None, g.T @ q if ctx.needs_input_grad[1] else None


def _dot(q: Tensor, k: Tensor) -> Tensor:
    return _Dot.apply(q, k)


def _squared(q: Tensor, k: Tensor) -> Tensor:
    """‖q‖² + ‖k‖² - 2 q·k, in float64: near duplicates would drown in float32's rounding."""
    a, b = q.double(), k.double()
    d = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T  # (b, M)
    return d.clamp(min=0).to(q.dtype)


def _euclidean(q: Tensor, k: Tensor) -> Tensor:
    d = _squared(q, k)
    near = d <= _TINY  # the root has no slope at 0: its gradient is taken as 0 there
    return torch.where(near, 0, torch.where(near, 1, d).sqrt())


_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dot": _dot, "cosine-distance": lambda q, k: 1 - _dot(q, k), "euclidean": _euclidean, "squared": _squared,
}  # fmt: skip


def _unknown(metric: str) -> Callable:
    raise UserError(f"unknown metric {metric!r}{nearest(metric, _METRICS)}")
