"""The softmax loss with the candidates travelling round the processes: memory stays flat in their number.

Gathering takes (P·B, d) on every process. Here each process's block of candidates is passed on P - 1 times, and no
process holds more than its own rows and two blocks; backward, a block travels once more with its gradient beside it,
to which every process adds, until both are home.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearfar import dist
from nearfar.losses import engine, tiles
from nearfar.losses.rows import Mine

ABOVE = 2**28  # bytes of gathered candidates from which on they travel


def wanted(mine: Mine, counts: list[int] | None) -> bool:
    """Whether the candidates are so many that they travel; ``counts`` of each process's, None where all hold them."""
    if dist.world() == 1 or counts is None:
        return False
    local = mine.z if mine.keys is None else mine.keys
    return sum(counts) * local.shape[1] * local.element_size() > ABOVE


def contrast(mine: Mine, counts: list[int], scale: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Each of my anchors' loss against everybody's candidates, and how many positives it has. (n,), (n,)"""
    own = mine.keys is None
    local, ids = (mine.z, mine.groups) if own else (mine.keys, mine.key_groups)
    everyone = dist.gather(ids, counts)  # ids are small: (M,)
    first = sum(counts[: dist.rank()]) if own else None
    positives = engine.tally(mine.groups, everyone, first).positives
    values = _Ring.apply(mine.z, local, scale, mine.groups, everyone, positives, counts, own, smoothing)
    return values, positives


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, scale: Tensor, groups: Tensor, ids: Tensor, positives: Tensor, counts: list[int],
        own: bool, smoothing: float,
    ) -> Tensor:  # fmt: skip
        factor = scale.item()
        ctx.extra = (groups, ids, positives, counts, own, smoothing)
        ctx.set_materialize_grads(True)
        with torch.autocast(q.device.type, enabled=False):
            sums = tiles.LogSums(len(q), q, bounded=False)
            pulled = torch.zeros(len(q), dtype=torch.float64, device=q.device)
            for owner, block, _ in dist.ring(k, counts):
                first = 0 if own and owner == dist.rank() else None
                tiles.add_lse(q, block, factor, first, sums)
                for tally, weight in _parts(ctx, owner, len(block), first):
                    pulled += weight * engine.pull(q, block, tally, first)
            lse = sums.value()
        ctx.save_for_backward(q, k, lse, scale)
        return (lse - factor * pulled).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        q, k, lse, scale = ctx.saved_tensors
        counts, own = ctx.extra[3], ctx.extra[4]
        factor = scale.item()
        dq, dk = torch.zeros_like(q), torch.zeros_like(k)
        with torch.autocast(q.device.type, enabled=False):
            for owner, block, gradient in dist.ring(k, counts, dk):
                first = 0 if own and owner == dist.rank() else None
                a, b = tiles.grad(q, block, factor, first, (lse, g), None, (True, True))
                for tally, weight in _parts(ctx, owner, len(block), first):
                    engine.push_gradients(q, block, tally, first, -factor * weight * g.double(), a, b)
                dq += a
                gradient += b
        dscale = (engine.inner(dq, q) / factor).to(scale.dtype) if ctx.needs_input_grad[2] else None
        return dq, dk, dscale, None, None, None, None, None, None


def _parts(ctx, owner: int, rows: int, first: int | None) -> list[tuple[engine.Tally, Tensor]]:
    """A block's groupings, with the weights that all blocks' candidates together give one product. float64"""
    groups, ids, positives, counts, own, smoothing = ctx.extra
    start = sum(counts[:owner])
    tally = engine.tally(groups, ids[start : start + rows], first)
    share = torch.where(positives > 0, (1 - smoothing) / positives.clamp(min=1).double(), 0.0)
    out = [(tally, share)]
    if smoothing:
        everyone = engine.everyone(len(groups), rows, first, groups.device)
        out.append((everyone, torch.full_like(share, smoothing / max(1, sum(counts) - int(own)))))
    return out
