"""What a person sees while it trains: a bar where there is a terminal, nothing where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


class Bar:
    """Step, loss, images a second and time left on stderr; quiet when stderr is not a terminal."""

    def __init__(self, what: str, show: bool | None = None) -> None:
        self.on = sys.stderr.isatty() if show is None else show
        self._bar = None
        if self.on:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[said]}"),
                console=Console(stderr=True),
                expand=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(what, total=1.0, said="starting")

    def __enter__(self) -> Bar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, share: float, **said: float | int | str | None) -> None:
        if self._bar:
            self._bar.update(self._task, completed=share, said=describe(**said))


@contextmanager
def bar_for_decoding(show: bool | None) -> Iterator[Callable[[int, int], None]]:
    """Progress of decoding as a bar, which is not there while nothing is decoded."""
    bars: list[Bar] = []

    def progress(done: int, total: int) -> None:
        if not bars:
            bars.append(Bar("decoding", show).__enter__())
        bars[0].update(done / max(total, 1), text=f"{done:,} of {total:,}")
        if done >= total:
            bars.pop().__exit__(None, None, None)

    try:
        yield progress
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)


def describe(
    step: int | None = None, loss: float | None = None, rate: float | None = None, left: float | None = None,
    text: str = "", unit: str = "img",
) -> str:  # fmt: skip
    """The words beside the bar.

    >>> describe(step=120, loss=3.14159, rate=812.4, left=75)
    'step 120 · loss 3.142 · 812 img/s · 1:15 left'
    """
    parts = [f"step {step}"] if step is not None else []
    if loss is not None:
        parts.append(f"loss {loss:.3f}")
    if rate is not None:
        parts.append(f"{rate:,.0f} {unit}/s")
    if left is not None:
        hours, rest = divmod(round(left), 3600)
        clock = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
        parts.append(f"{clock} left")
    return " · ".join(([text] if text else []) + parts)
