"""The only file that calls torch.distributed's collectives. Every function is the identity in one process.

Each collective's backward is its true adjoint: a sum over processes for :func:`gather` and :func:`total`, a way
back for :func:`ring`. So there is one rule, and no factor to remember: *every process returns the loss of the whole
batch*. What autograd then leaves on a process is P times its share of the gradient, and DDP's mean over the P
processes is exactly the gradient that one process would have had. Each process must call a loss equally often;
how many rows it brings may differ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as td
from torch import Tensor


def world() -> int:
    """How many processes train together; 1 where no process group is up."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def rank() -> int:
    return td.get_rank() if world() > 1 else 0


def start(backend: str, seconds: float = 1800) -> None:
    """Join the process group that the environment describes (torchrun, SLURM, Fabric's launcher).

    Each restart of torchrun has its part of the store to itself: with keys of an earlier attempt in it, processes met
    others that were no longer there and waited for them.
    """
    store, rank, world = next(td.rendezvous("env://", timeout=timedelta(seconds=seconds)))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    td.init_process_group(backend, store=td.PrefixStore(f"nearfar/{attempt}", store), rank=rank, world_size=world,
                          timeout=timedelta(seconds=seconds))  # fmt: skip


def finish() -> None:
    """Leave the process group, when all have come so far; afterwards there is one process."""
    if world() > 1:
        td.barrier(_control())
        td.destroy_process_group()
    _control.cache_clear()


@cache
def _control() -> td.ProcessGroup | None:
    """The group for a few numbers between steps, over the network and not the GPU, which goes on meanwhile."""
    return None if td.get_backend() == "gloo" else td.new_group(backend="gloo")


def agree(*values: int) -> list[list[int]]:
    """What every process has to say, in rank order: whole numbers that are on no device."""
    if world() == 1:
        return [list(values)]
    return [part.tolist() for part in each(torch.tensor(values, dtype=torch.int64))]


def each(x: Tensor) -> list[Tensor]:
    """A CPU tensor of every process, of one shape, in rank order."""
    if world() == 1:
        return [x]
    parts = [torch.empty_like(x) for _ in range(world())]
    td.all_gather(parts, x, group=_control())
    return parts


def exchange(values: list[int], device: torch.device) -> list[list[int]]:
    """A few whole numbers of every process, in rank order."""
    if world() == 1:
        return [values]
    mine = torch.tensor(values, dtype=torch.int64, device=device)
    parts = [torch.empty_like(mine) for _ in range(world())]
    td.all_gather(parts, mine)
    return torch.stack(parts).tolist()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: list[int]) -> Tensor:
        ctx.start, ctx.rows = sum(rows[: rank()]), len(x)
        most = max(rows)
        mine = x.detach().contiguous()
        if len(x) < most:  # every process sends as many rows as the largest
            mine = torch.cat([mine, mine.new_zeros(most - len(x), *x.shape[1:])])
        parts = [torch.empty_like(mine) for _ in rows]
        td.all_gather(parts, mine)
        return torch.cat([part[:n] for part, n in zip(parts, rows)])  # (ΣB, …)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        td.all_reduce(grad)  # what every process's loss says of my rows
        return grad.narrow(0, ctx.start, ctx.rows), None


def gather(x: Tensor, rows: list[int] | None = None) -> Tensor:
    """Everybody's rows, in rank order, with gradient; the processes may hold different numbers. (B, …) -> (ΣB, …)

    ``rows`` is how many each process holds, where that is known already.
    """
    if world() == 1:
        return x
    rows = rows or [n for (n,) in exchange([len(x)], x.device)]
    return _Gather.apply(x, rows)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.detach().contiguous().clone()
        td.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        td.all_reduce(grad)
        return grad


def total(x: Tensor) -> Tensor:
    """The sum over processes, with gradient. Any shape."""
    return _Total.apply(x) if world() > 1 else x


def ring(block: Tensor, rows: list[int], carried: Tensor | None = None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Every process's block in turn, so that no process holds more than two at once; not differentiable.

    Args:
        block: (B, …) this process's rows. rows: how many each process holds.
        carried: (B, …) travels along with its block and may be written to by every process that holds it;
            what came home stands in ``carried`` when the iterator has ended.

    Yields ``(rank of the owner, block, carried)``, its own first.
    """
    p, me, most = world(), rank(), max(rows)
    held, along = _padded(block, most), None if carried is None else _padded(carried, most)
    for step in range(p):
        owner = (me + step) % p
        yield owner, held[: rows[owner]], None if along is None else along[: rows[owner]]
        if along is not None:
            along = _shift(along)
        if step < p - 1:
            held = _shift(held)
    if along is not None:
        carried.copy_(along[: rows[me]])


def _padded(x: Tensor, rows: int) -> Tensor:
    x = x.detach()
    x = torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])]) if len(x) < rows else x
    return x.clone(memory_format=torch.contiguous_format)  # what is sent and received has no strides of its own


def _shift(x: Tensor) -> Tensor:
    """My block to the process before me, the next one's to me."""
    p, me = world(), rank()
    fresh = torch.empty_like(x)
    for work in td.batch_isend_irecv([td.P2POp(td.isend, x.contiguous(), (me - 1) % p),
                                      td.P2POp(td.irecv, fresh, (me + 1) % p)]):  # fmt: skip
        work.wait()
    return fresh


def same_everywhere(*tensors: Tensor) -> bool:
    """Whether all processes hold the same bits: a queue, a vocabulary or prototypes, and not rows of a batch."""
    if world() == 1:
        return True
    said: list[int] = []
    for t in tensors:
        flat = t.detach().contiguous().view(len(t), math.prod(t.shape[1:]))  # (B, …) -> (B, values a row)
        if flat.is_floating_point():
            flat = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        column = _scattered(flat.shape[1], t.device)  # rows that hold the same values at other places differ
        few = max(1, 2**17 // max(1, flat.shape[1]))  # rows at a time, in a CPU's caches
        sums = torch.cat([(part.long() * column).sum(1) for part in flat.split(few)])  # (B,), exact in any order
        said += [len(t), int(sums.sum()), int((sums * _scattered(len(t), t.device)).sum())]
    first, *others = exchange(said, tensors[0].device)
    return all(o == first for o in others)


def _scattered(n: int, device: torch.device) -> Tensor:
    """A whole number for each place, unlike its neighbours': a multiplicative hash, its high bits folded down. (n,)"""
    place = torch.arange(1, n + 1, device=device) * 0x9E3779B97F4A7C1  # wraps around, the same everywhere
    return (place ^ (place >> 29)) * 0x2545F4914F6CDD1D
