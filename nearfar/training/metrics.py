"""The run's log: a JSON row a logged step, and TensorBoard events where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import warnings
from pathlib import Path
from types import TracebackType


class MetricsFile:
    """Append rows to ``metrics.jsonl``, each flushed whole, and scalars to ``tensorboard/``.

    Args:
        folder: a run's.
        at: bytes of an earlier attempt's rows that stand; what it wrote after them is taken back.
    """

    def __init__(self, folder: Path, at: int = 0, tensorboard: bool = True) -> None:
        path = folder / "metrics.jsonl"
        path.touch()
        self._file = open(path, "r+b")  # noqa: SIM115
        self._file.truncate(at)
        self._file.seek(0)
        self.rows = [_row(line) for line in self._file]  # of the earlier attempt
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
        self._file.write(json.dumps(clean).encode() + b"\n")
        self._file.flush()
        if self._events:
            for key, value in clean.items():
                if value is not None and key not in ("step", "time"):
                    self._events.add_scalar(key, value, int(row["step"]))

    def position(self) -> int:
        """Bytes so far, which are on the disk when this returns."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if self._events:
            self._events.close()


def _row(line: bytes) -> dict[str, float]:
    return {k: math.nan if v is None else v for k, v in json.loads(line).items()}
