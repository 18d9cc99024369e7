"""Memory that is freed in a training step is kept for the next one, where the C library can be told so."""

from __future__ import annotations

import ctypes
import gc
import platform
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's numbers (malloc.h)


def keep_freed() -> bool:
    """Ask glibc to keep freed blocks instead of giving them back to the kernel; returns whether it was asked.

    A step on a CPU frees what the next one asks for. Above 32 MB glibc returns each block at once, and a page fault
    for every 4 KB comes with the next: with the small CNN at batch 256 that is a tenth of a step (docs/views.md). The
    process stays as large as it has been, and what is kept lies less dense: its peak was 2 to 6 % higher. Elsewhere
    nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)))


def give_back() -> None:
    """What is freed goes to the system at once, for whoever asks it for pages of his own: oneDNN's compiler does."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
