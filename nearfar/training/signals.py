"""Signals that ask a training to stop: they are noted, and seen at the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

EXIT_CODE = 75  # of a training that a signal stopped and that can go on: EX_TEMPFAIL of sysexits.h
_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")


class Signals:
    """Within it SIGTERM, SIGUSR1 (SLURM's warning) and Ctrl-C set ``caught``; a second Ctrl-C interrupts as ever.

    Only a process's main thread may take signals: in another thread nothing is changed.
    """

    def __init__(self) -> None:
        self.caught = 0
        self._before: dict[int, object] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught:
            raise KeyboardInterrupt
        self.caught = number

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
