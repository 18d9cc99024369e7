"""The only file that calls torch.distributed's collectives. Every function is the identity in one process."""

from __future__ import annotations

import torch
import torch.distributed as td
from torch import Tensor


def world() -> int:
    """How many processes train together; 1 where no process group is up."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def rank() -> int:
    return td.get_rank() if world() > 1 else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(td.get_world_size())]
        td.all_gather(parts, x.contiguous())
        return torch.cat(parts)  # (P·B, …)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        td.all_reduce(grad)  # what every process's loss says of my rows
        return grad.narrow(0, td.get_rank() * ctx.rows, ctx.rows)


def gather(x: Tensor) -> Tensor:
    """Everybody's rows, in rank order, with gradient. (B, …) -> (P·B, …)

    The gradient is the sum over processes of theirs with respect to my rows; with each process's loss a mean
    over its own anchors, DDP's mean over processes then gives exactly the one-process gradient.
    """
    return _Gather.apply(x) if world() > 1 else x
