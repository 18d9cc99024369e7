"""An encoder that is given a batch in chunks, so that memory holds one chunk's activations at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nearfar.losses.caching import in_chunks

_CPU = ("can't allocate memory", "annot allocate memory", "std::bad_alloc", "out of memory",
        "could not create a primitive", "could not create a memory object")  # the last two are oneDNN's  # fmt: skip


class Chunks:
    """Puts :func:`~nearfar.losses.caching.in_chunks` between a method and its encoder where ``rows`` is above 0.

    The loss stays that of the whole batch, and so do its gradients; BatchNorm in the encoder normalises by a chunk.
    """

    def __init__(self, encoder: nn.Module, rows: int = 0) -> None:
        self._encoder, self._whole = encoder, encoder.forward
        self.rows = 0
        self.seen = 0  # most rows that were given at once
        encoder.forward = self._forward  # names of weights stay
        self.rows = rows

    def _forward(self, x: Tensor) -> Tensor:
        self.seen = max(self.seen, len(x))
        if not self.rows or len(x) <= self.rows or not self._encoder.training or not torch.is_grad_enabled():
            return self._whole(x)
        return in_chunks(self._whole, x, self.rows)

    def halve(self) -> bool:
        """Half as many rows at a time; False where there is nothing left to halve."""
        now = self.rows or self.seen
        self.rows = now // 2
        return self.rows > 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU)
