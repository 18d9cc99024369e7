"""The training loop: batches in, steps out, on Lightning Fabric. Knows no method and no source by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from nearfar.errors import UserError
from nearfar.methods.parts import Progress
from nearfar.training.doctor import Doctor, Facts
from nearfar.training.optim import Optim, set_rates
from nearfar.training.schedule import Pace
from nearfar.training.watch import OnlineKNN, Watch

LOG_EVERY = 10


class Batches(Protocol):
    """What the loop needs of a loader."""

    steps_per_epoch: int

    def iterate(self, start: int, stop: int | None) -> Iterator[Any]: ...


@dataclass
class Clock:
    """Seconds spent in each part of the loop; what is in none of them is the loop itself."""

    data: float = 0.0
    views: float = 0.0
    encoder: float = 0.0  # the method's forward and the backward
    optimiser: float = 0.0
    logging: float = 0.0
    total: float = 0.0
    _since: float = field(default=0.0, repr=False)

    def lap(self, part: str | None = None) -> None:
        now = time.perf_counter()
        if part:
            setattr(self, part, getattr(self, part) + now - self._since)
        self._since = now


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's views: a function of the seed and the step alone, so any step can be redone."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)


def _diagnosed(error: UserError, row: dict, doctor: Doctor, log: Callable[[dict], None]) -> UserError:
    """A loss's complaint of NaN, with the doctor's words; any other error as it is."""
    if "NaN or infinite" not in str(error):
        return error
    row = row | {"loss": math.nan, "broken_at": row["step"]}
    log(row)
    doctor.see(row)
    return UserError(f"{doctor.findings[-1].text} ({error})")


def fit(
    fabric: Any, model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: Batches,
    views: Callable[..., list[Tensor]], pace: Pace, *, seed: int, optim: Optim,
    log: Callable[[dict[str, float]], None] = lambda row: None,
    show: Callable[..., None] = lambda share, **said: None,
    at_interval: Callable[[int, float], None] = lambda step, share: None, interval: float = 60.0,
    doctor: Doctor | None = None, online: OnlineKNN | None = None,
) -> Clock:  # fmt: skip
    """Train ``model`` until ``pace`` is done; returns where the seconds went.

    Args:
        fabric: a launched ``lightning_fabric.Fabric``; ``model`` and ``optimizer`` are set up by it.
        loader: gives batches with ``index``, ``content`` and ``label`` from any step on.
        views: ``views(content, generator, device)`` -> a list of (B, C, h, w); where the method ``wants_maps``,
            ``views.seen`` is asked in its place and gives each view with the map into its image.
        log: takes a row for metrics.jsonl; show: takes what the bar says; at_interval: is called about every
            ``interval`` seconds, between steps (checkpoints).
        doctor: sees the rows and says what is wrong; online: judges features on held-out images at a few points.

    Raises ``UserError`` where the loss stops being finite, naming the step and the likely cause.
    """
    method = getattr(model, "module", model)
    make = views.seen if getattr(method, "wants_maps", False) else views
    before_step = getattr(method, "before_step", lambda progress: None)
    clock, start = Clock(), time.perf_counter()
    watch, doctor = Watch(method), doctor or Doctor(Facts(optim=optim))
    clock.lap()
    model.train()
    saved = start
    for step, batch in enumerate(loader.iterate(0, None)):
        clock.lap("data")
        share = pace.share(step)
        rate_now, generator = set_rates(optimizer, optim, share), step_generator(seed, step)
        seen = make(batch.content, generator, fabric.device)
        index = torch.as_tensor(batch.index).to(fabric.device)
        labels = None if batch.label is None else torch.as_tensor(batch.label).to(fabric.device)
        clock.lap("views")
        progress = Progress(step, share, step / loader.steps_per_epoch, generator)
        try:
            out = model(seen, index, labels, progress)
        except UserError as error:  # a loss that refuses what is not finite
            row = {"step": step + 1, "time": round(time.perf_counter() - start, 3), "share": share, "lr": rate_now}
            raise _diagnosed(error, row | {"weight_growth": watch.growth}, doctor, log) from None
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(out.loss)
        clock.lap("encoder")
        before_step(progress)
        norm = None
        if optim.clip:
            norm = fabric.clip_gradients(model, optimizer, max_norm=optim.clip, error_if_nonfinite=False)
        optimizer.step()
        method.after_step(progress)
        clock.lap("optimiser")
        watch.glance(step + 1, out.loss)
        if online:
            online.keep(out.features, labels)
        elapsed = time.perf_counter() - start
        pace.observe(step + 1, elapsed)
        done = pace.done(step + 1)
        if step % LOG_EVERY == 0 or step < 10 or done:
            loss, rate = float(out.loss.detach()), (step + 1) * len(batch.index) / elapsed
            row = {"step": step + 1, "time": round(elapsed, 3), "loss": loss, "share": share,
                   "lr": rate_now, "images_per_second": rate}  # fmt: skip
            row |= watch.look(out, batch.content, norm) | (online.judge(share, done) if online else {})
            if watch.broken_at:
                row["broken_at"] = watch.broken_at
            log(row)
            doctor.see(row)
            if watch.broken_at:
                raise UserError(doctor.findings[-1].text)
            show(share, step=step + 1, loss=loss, rate=rate, left=pace.left(step + 1, elapsed))
        if time.perf_counter() - saved > interval and not done:
            at_interval(step + 1, share)
            saved = time.perf_counter()
        clock.lap("logging")
        if done:
            break
    clock.total = time.perf_counter() - start
    return clock
