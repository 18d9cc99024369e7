"""Memory that is used again: what an allocator gives back to the kernel costs a page fault for each 4 KB next time.

Filling 48 MB of fresh memory takes ten times as long as filling 48 MB that were filled before (docs/views.md).
On other devices PyTorch's caching allocator does this already.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_HELD = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor; on a CPU, where it is large enough, the one of this name that this thread had last time.

    Two of one name must not be in use at once, and none may leave the function that took it.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    count = math.prod(shape)
    held = _HELD.__dict__.get((name, dtype))
    if held is None or len(held) < count:
        with torch.inference_mode(False):  # what is made inside it could not be written to outside
            held = _HELD.__dict__[name, dtype] = torch.empty(count, dtype=dtype)
    return held[:count].view(shape)
