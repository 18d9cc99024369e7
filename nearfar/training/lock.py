"""A run's folder is trained by one command at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nearfar.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which a process loses by ending in any way; on a disk without locks nothing is held.

    Raises ``UserError`` where another process holds it.
    """
    with open(folder / ".lock", "ab") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being trained by another process: wait for its end or stop it, or pass "
                            "another --out") from None  # fmt: skip
        except OSError:
            pass
        yield
