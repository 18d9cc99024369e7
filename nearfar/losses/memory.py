"""Embeddings of past batches, held as further keys for any loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nearfar.errors import UserError
from nearfar.losses.rows import agree, rows


class CrossBatchMemory(nn.Module):
    r"""The last ``size`` embeddings of past batches with their ids: first in, first out.

    Cross-batch memory (XBM: Wang et al. 2020, arXiv:1912.06798) holds rows of the encoder that is trained, whose
    embeddings drift slowly after a while; MoCo's queue (He et al. 2020, arXiv:1911.05722, section 3.2) holds those of
    a momentum encoder. The memory is the same, only who fills it differs.

    ``memory()`` is what is held, the oldest row first, detached. ``memory(z, groups)`` puts this batch's rows before
    it, those of all processes, with their gradient: the positives that a queue of past pictures cannot have. Both
    are copies, so a push between forward and backward is harmless, and the same to the bit on all processes, so a
    loss takes them as shared keys. ``memory.push(z, groups)`` enqueues the rows of all processes in rank order;
    every process must call it, though with as many rows as it has, or none.

    A key with an anchor's id is its positive, whenever it was pushed. So ids must mean the same in every batch (a
    label, a picture's index; not the place in the batch), and an anchor must not be among the keys itself: give
    another view's or tower's rows as ``z``, and push after the loss.

    Any number of rows may be pushed: they wrap around, and of more than ``size`` the last ``size`` stay. All of the
    state is in persistent buffers and survives ``state_dict`` to the bit. Rows are float32, also in a model that is
    cast to float16 or bfloat16, and are kept as they come, not normalised.

    Args:
        size: how many rows are held at most.
        width: d, of a row.

    Shapes: z (n, width) floats, groups (n,) whole numbers, n free -> keys (m, width), key_groups (m,). Before the
    first push ``memory()`` gives no rows, and a loss on them is 0, for want of positives.

    Raises ``UserError`` on all processes where it is wrong on one: a width that is not the memory's, NaN, ids that
    do not match.

    In training, with the keys of a momentum encoder (MoCo)::

        keys = momentum_encoder(second_view)
        loss = info_nce(encoder(first_view), groups, *memory(keys, groups), temperature=0.2)
        loss.backward()
        optimiser.step()
        memory.push(keys, groups)

    or, labels as ids, beside the batch's own loss (XBM; begin when the embeddings drift slowly)::

        loss = nt_xent(z, labels) + info_nce(z, labels, *memory())
        ...
        memory.push(z, labels)

    >>> from nearfar.losses import info_nce
    >>> memory = CrossBatchMemory(3, 2)
    >>> memory.push(torch.eye(2), torch.tensor([0, 1]))
    >>> memory.push(-torch.eye(2), torch.tensor([2, 3]))
    >>> len(memory), memory.full, memory()[1].tolist()
    (3, True, [1, 2, 3])
    >>> z = torch.tensor([[1.0, 1.0]], requires_grad=True)
    >>> keys, key_groups = memory(torch.tensor([[1.0, 0.5]]), torch.tensor([7]))
    >>> round(info_nce(z, torch.tensor([7]), keys, key_groups, temperature=0.5).item(), 4)
    0.5246
    """

    def __init__(self, size: int, width: int):
        super().__init__()
        for name, value in (("size", size), ("width", width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be a whole number above 0, got {value!r}")
        self.register_buffer("rows", torch.zeros(size, width, dtype=torch.float32))
        self.register_buffer("groups", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))  # where the next row goes
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # rows held

    def __len__(self) -> int:
        """How many rows are held."""
        return int(self.count)

    def __bool__(self) -> bool:
        return True  # a memory without rows is still a module

    @property
    def full(self) -> bool:
        return len(self) == len(self.rows)

    def forward(self, z: Tensor | None = None, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-> keys (m, width), key_groups (m,): this batch's rows where they are given, then what is held."""
        if (z is None) != (groups is None):
            raise UserError("z and groups go together: give both, or neither for what is held alone")
        order = torch.arange(len(self), device=self.rows.device)
        if self.full:
            order = (order + self.pointer) % len(self.rows)
        held, ids = self.rows[order], self.groups[order]  # (count, d), (count,) copies, the oldest first
        if z is None:
            return held, ids
        now = self._everyones(z, groups)
        return torch.cat([now.keys, held.to(now.keys.dtype)]), torch.cat([now.key_groups.to(ids.dtype), ids])

    @torch.no_grad()
    def push(self, z: Tensor, groups: Tensor) -> None:
        """Enqueue the rows (n, width) and ids (n,) of all processes in rank order, over the oldest."""
        now = self._everyones(z.detach() if isinstance(z, Tensor) else z, groups)
        size, new = len(self.rows), len(now.keys)
        last = slice(max(0, new - size), new)  # of more than fit, the last
        at = (self.pointer + torch.arange(last.start, last.stop, device=self.rows.device)) % size
        self.rows[at] = now.keys[last].to(self.rows.dtype)
        self.groups[at] = now.key_groups[last].to(self.groups.dtype)
        self.pointer.copy_((self.pointer + new) % size)
        self.count.copy_((self.count + new).clamp(max=size))

    def _everyones(self, z: Tensor, groups: Tensor):
        """All processes' rows, checked; float32 or better."""
        error = None
        if isinstance(z, Tensor) and z.ndim == 2:
            if z.shape[1] != self.rows.shape[1]:
                error = f"z is {tuple(z.shape)} and the memory holds rows of {self.rows.shape[1]}: give that width"
            elif z.device != self.rows.device:
                error = f"z is on {z.device} and the memory on {self.rows.device}: move one of them"
        agree(error, z)
        return rows(z, groups, unit=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CrossBatchMemory:
        def kept_float32(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        return super()._apply(kept_float32, recurse)

    def extra_repr(self) -> str:
        return f"{len(self.rows)}, {self.rows.shape[1]}"
