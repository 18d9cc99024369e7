"""The run's log: a JSON row a logged step, and TensorBoard events where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import warnings
from contextlib import suppress
from pathlib import Path


class MetricsFile:
    """Append rows to ``metrics.jsonl``, each at once, and scalars to ``tensorboard/``.

    On a full disk rows wait for room, and TensorBoard's events end.

    Args:
        folder: a run's.
        at: bytes of an earlier attempt's rows that stand; what it wrote after them is taken back.
    """

    def __init__(self, folder: Path, at: int = 0, tensorboard: bool = True) -> None:
        path = folder / "metrics.jsonl"
        path.touch()
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115
        self._file.truncate(at)
        self.rows = [_row(line) for line in self._file.read().splitlines()]  # of the earlier attempt
        self._waiting = b""
        self._events = None
        first = int(self.rows[-1]["step"]) + 1 if self.rows else 0
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own imports
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def write(self, row: dict[str, float]) -> None:
        # JSON has no NaN: a value that is none is null
        clean = {k: (v if math.isfinite(v) else None) for k, v in row.items()}
        self._waiting += json.dumps(clean).encode() + b"\n"
        try:
            self._flush()
            for key, value in clean.items() if self._events else ():
                if value is not None and key not in ("step", "time"):
                    self._events.add_scalar(key, value, int(row["step"]))
        except OSError:
            self._events = None

    def _flush(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def position(self) -> int:
        """Bytes so far, which are on the disk when this returns; raises ``OSError`` where it has no room for them."""
        self._flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Write what has waited, where there is room now."""
        with suppress(OSError):
            self._flush()
        self._file.close()
        with suppress(OSError):
            if self._events:
                self._events.close()


def _row(line: bytes) -> dict[str, float]:
    return {k: math.nan if v is None else v for k, v in json.loads(line).items()}
