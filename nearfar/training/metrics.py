"""The run's log: a JSON row a logged step, and TensorBoard events where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from pathlib import Path
from types import TracebackType


class MetricsFile:
    """Append rows to ``metrics.jsonl``, each flushed whole, and scalars to ``tensorboard/``."""

    def __init__(self, folder: Path, tensorboard: bool = True) -> None:
        self._file = open(folder / "metrics.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        self._events = None
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own imports
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(str(folder / "tensorboard"))

    def write(self, row: dict[str, float]) -> None:
        # JSON has no NaN: a value that is none is null
        clean = {k: (v if math.isfinite(v) else None) for k, v in row.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        if self._events:
            for key, value in clean.items():
                if value is not None and key not in ("step", "time"):
                    self._events.add_scalar(key, value, int(row["step"]))

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if self._events:
            self._events.close()
