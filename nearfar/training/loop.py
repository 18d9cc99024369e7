"""The training loop: batches in, steps out, on Lightning Fabric. Knows no method and no source by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import NotFinite, UserError
from nearfar.methods.parts import Progress, Step
from nearfar.training import state
from nearfar.training.chunks import Chunks, out_of_memory
from nearfar.training.doctor import Doctor, Facts
from nearfar.training.memory import give_back
from nearfar.training.optim import Optim, set_rates
from nearfar.training.schedule import Pace
from nearfar.training.watch import OnlineKNN, Watch, total_norm

LOG_EVERY = 10
_SKIPPED = 100  # steps in a row without a finite loss: then leaving them out helps no more
_SMALL = 2**16  # values of a buffer that is put back after a step which came to nothing


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
    checkpoints: float = 0.0  # that training waited for
    total: float = 0.0
    _since: float = field(default=0.0, repr=False)

    def lap(self, part: str | None = None) -> None:
        now = time.perf_counter()
        if part:
            setattr(self, part, getattr(self, part) + now - self._since)
        self._since = now


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one pass's views: a function of the seed and its number alone, so any can be redone."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)


@dataclass
class Loop:
    """A training, from any step on: :meth:`run` goes on until ``pace`` is done.

    Args:
        fabric: a launched ``lightning_fabric.Fabric``; ``model`` and ``optimizer`` are set up by it, ``method`` and
            ``plain_optimizer`` are what they were before.
        loader: gives batches with ``index``, ``content`` and ``label`` from any number on.
        views: ``views(content, generator, device)`` -> a list of (B, C, h, w); where the method ``wants_maps``,
            ``views.seen`` is asked in its place and gives each view with the map into its image.
        accumulate: batches that are contrasted each within itself before the optimiser's step; twins, queues and
            prototypes move after each, so a momentum's reach in images stays (Busbridge et al. 2023, arXiv:2307.13813).
        chunks: what stands between the method and its encoder; where memory runs out, fewer images pass at a time.
        skip_nan: leave out a step whose loss or gradient is not finite; else it ends the training.
        log: takes a row for metrics.jsonl; show: takes what the bar says; say: takes a line.
        save: ``save(loop, final=…)`` is called about every ``interval`` seconds, between steps, on all processes.
        stop: the number of a signal that asks to stop, or 0; ``study`` takes the batch whose loss is not finite.
        doctor: sees the rows and says what is wrong; online: judges features on held-out images at a few points.
    """

    fabric: Any
    method: nn.Module
    model: nn.Module
    optimizer: Any
    plain_optimizer: torch.optim.Optimizer
    loader: Batches
    views: Callable[..., list[Tensor]]
    pace: Pace
    seed: int
    optim: Optim
    chunks: Chunks
    accumulate: int = 1
    skip_nan: bool = False
    log: Callable[[dict[str, float]], None] = lambda row: None
    show: Callable[..., None] = lambda share, **said: None
    say: Callable[[str], None] = lambda text: None
    save: Callable[..., None] = lambda loop, **how: None
    interval: float = 60.0
    stop: Callable[[], int] = lambda: 0
    study: Callable[[Any, int], str] = lambda batch, step: ""
    doctor: Doctor = field(default_factory=lambda: Doctor(Facts()))
    online: OnlineKNN | None = None

    def __post_init__(self) -> None:
        self.step = 0  # optimiser steps that are done, those left out among them
        self.skipped = self._in_a_row = 0  # left out, as their loss was not finite
        self.elapsed = 0.0  # seconds of training
        self.stopped = 0  # by which signal
        self.score: float | None = None  # the online kNN's at this step
        self.clock = Clock()
        self.watch = Watch(self.method)
        self._wants_maps = getattr(self.method, "wants_maps", False)
        self._make = self.views.seen if self._wants_maps else self.views
        self._before_step = getattr(self.method, "before_step", lambda progress: None)
        self._small = [b for b in self.method.buffers() if b.numel() <= _SMALL]
        self._parameters = [p for p in self.method.parameters() if p.requires_grad]

    def run(self) -> Clock:
        """Train until the pace is done, or a signal asks to stop: then ``stopped`` says which.

        Raises ``UserError`` where the loss stops being finite, naming the step and the likely cause.
        """
        self._began = time.perf_counter() - self.elapsed
        self._saved = self.elapsed
        self.model.train()
        self.clock.lap()
        with closing(self.loader.iterate(self.step * self.accumulate, None)) as batches:
            while not self.pace.done(self.step) and not self.stopped:
                self._one(batches)
        self.clock.total = time.perf_counter() - self._began
        return self.clock

    def _one(self, batches: Iterator[Any]) -> None:
        """One step of the optimiser, and what follows it."""
        share = self.pace.share(self.step)
        rate = set_rates(self.optimizer, self.optim, share)
        self.optimizer.zero_grad(set_to_none=True)
        before = [b.clone() for b in self._small]
        held = [next(batches) for _ in range(self.accumulate)]
        self.clock.lap("data")
        for part, batch in enumerate(held):
            last, gradient, error = part + 1 == self.accumulate, None, None
            try:
                out, progress = self._pass(batch, part, share, before)
                finite = bool(torch.isfinite(out.loss))
            except NotFinite as found:  # a loss that refuses what is not finite
                finite, error = False, found
            if finite and last:
                self._before_step(progress)
                gradient = self._norm()
                finite = gradient is None or bool(torch.isfinite(gradient))
            if not self._agreed(finite):
                self._broken(batch, error, before, share, rate)
                return
            if not last:
                self.method.after_step(progress)
        if self.optim.clip:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.optim.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.method.after_step(progress)
        self.clock.lap("optimiser")
        self._in_a_row = 0
        self._after(out, batch, share, rate, gradient)

    def _pass(self, batch: Any, part: int, share: float, before: list[Tensor]) -> tuple[Step, Progress]:
        """Views, forward and backward of one batch; where memory runs out, the encoder is given less at a time."""
        number = self.step * self.accumulate + part
        at, random = self.chunks.rows, torch.get_rng_state()
        while True:
            generator = step_generator(self.seed, number)
            progress = Progress(self.step, share, number / self.loader.steps_per_epoch, generator)
            try:
                out = self._forward(batch, progress, last=part + 1 == self.accumulate)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._halve(part)
            torch._foreach_copy_(self._small, before)
            torch.set_rng_state(random)
            self.optimizer.zero_grad(set_to_none=True)
            give_back()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if self.chunks.rows != at:
            self.say(f"step {self.step + 1}: out of memory: from now on the encoder is given {self.chunks.rows} images "
                     "at a time (gradient caching: the contrast stays that of the whole batch; BatchNorm in the "
                     f"encoder normalises by {self.chunks.rows}); --chunk {self.chunks.rows} says so from the start")
        return out, progress

    def _halve(self, part: int) -> None:
        if dist.world() > 1 or part:
            fewer = max(1, (self.chunks.rows or self.chunks.seen) // 2)
            raise UserError(f"step {self.step + 1}: out of memory: pass --chunk {fewer} or a smaller --batch") from None
        if not self.chunks.halve():
            raise UserError(f"step {self.step + 1}: out of memory, even with one image at a time in the encoder: pass "
                            "a smaller --batch, --width or --image-size") from None  # fmt: skip

    def _forward(self, batch: Any, progress: Progress, last: bool) -> Step:
        device = self.fabric.device
        seen = self._make(batch.content, progress.generator, device)
        if self._wants_maps:  # their maps stay as exact as they are; tensors are converted by Fabric
            seen = [view.changed(view.pixels.to(self._parameters[0].dtype)) for view in seen]
        index = torch.as_tensor(batch.index).to(device)
        labels = None if batch.label is None else torch.as_tensor(batch.label).to(device)
        self.clock.lap("views")
        with self.fabric.no_backward_sync(self.model, enabled=not last):
            out = self.model(seen, index, labels, progress)
            self.fabric.backward(out.loss / self.accumulate if self.accumulate > 1 else out.loss)
        self.clock.lap("encoder")
        if self.online:
            self.online.keep(out.features, labels)
        return out

    def _norm(self) -> Tensor | None:
        """The gradient's norm; None where it is scaled, and the scaler looks for what is not finite."""
        if getattr(self.fabric.strategy.precision, "scaler", None) is not None:
            return None
        return total_norm([p.grad for p in self._parameters if p.grad is not None])

    def _agreed(self, finite: bool) -> bool:
        """Whether the step counts; and what the processes must know of each other: the time, and whether to stop."""
        now = time.perf_counter() - self._began
        said = dist.agree(not finite, self.stop(), int(now * 1e6))
        self.elapsed = now if len(said) == 1 else said[0][2] / 1e6
        self.stopped = max(signal for _, signal, _ in said)
        return not any(broken for broken, _, _ in said)

    def _broken(self, batch: Any, error: NotFinite | None, before: list[Tensor], share: float, rate: float) -> None:
        """A step that came to nothing: no weight has moved, and what the forward had written to is put back."""
        torch._foreach_copy_(self._small, before)
        self.optimizer.zero_grad(set_to_none=True)
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None:
            scaler.update(new_scale=scaler.get_scale() / 2)
        self._in_a_row += 1
        if self.skip_nan and self._in_a_row < _SKIPPED:
            if not self.skipped:
                self.say(f"step {self.step + 1}: the loss or the gradient is not finite: the step is left out")
            self.skipped += 1
            self.step += 1
            self.pace.observe(self.step, self.elapsed)
            return
        self.save(self, final=False, wait=True)
        row = {"step": self.step + 1, "time": round(self.elapsed, 3), "loss": math.nan, "share": share, "lr": rate,
               "weight_growth": self.watch.growth, "broken_at": self.step + 1}  # fmt: skip
        where = self.study(batch, self.step + 1)
        self.log(row)
        self.doctor.see(row)
        said = [str(error)] if error else []
        said += [f"{self._in_a_row} steps in a row"] if self.skip_nan else []
        said += [f"the batch is in {where}"] if where else []
        raise UserError(" ".join([self.doctor.findings[-1].text, f"({'; '.join(said)})" if said else ""]).strip())

    def _after(self, out: Step, batch: Any, share: float, rate: float, gradient: Tensor | None) -> None:
        """Rows, the bar and checkpoints, between steps."""
        self.step += 1
        step, elapsed = self.step, self.elapsed
        self.pace.observe(step, elapsed)
        done = self.pace.done(step)
        logged = (step - 1) % LOG_EVERY == 0 or step <= 10 or done
        judged = self.online.judge(share, done) if self.online and logged else {}
        self.score = judged.get("knn_online")
        if logged:  # on all processes, as weights may lie in shards
            loss = float(out.loss.detach())
            images = step * len(batch.index) * self.accumulate * dist.world() / max(elapsed, 1e-9)
            row = {"step": step, "time": round(elapsed, 3), "loss": loss, "share": share, "lr": rate,
                   "images_per_second": images}  # fmt: skip
            row |= self.watch.look(out, batch.content, gradient) | judged
            row |= {"skipped": self.skipped} if self.skipped else {}
            self.log(row)
            self.doctor.see(row)
            self.show(share, step=step, loss=loss, rate=images, left=self.pace.left(step, elapsed))
        self.clock.lap("logging")
        if done:
            return
        if self.stopped:
            self.save(self, final=False, wait=True)
        elif elapsed - self._saved > self.interval or self.score is not None:
            self._saved = elapsed
            self.save(self, final=False)
        self.clock.lap("checkpoints")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What going on needs beside the method's own state: tensors, and JSON. All processes call it."""
        tensors, rest = state.of_optimizer(self.plain_optimizer)
        online, judged = self.online.state() if self.online else ({}, None)
        about = {"step": self.step, "elapsed": self.elapsed, "skipped": self.skipped, "chunk": self.chunks.rows,
                 "world": dist.world(), "weights": self.watch.first, "pace": self.pace.state(), "online": judged,
                 "clock": {k: v for k, v in asdict(self.clock).items() if k[0] != "_"},
                 "precision": self.fabric.strategy.precision.state_dict(), "optimizer": rest}  # fmt: skip
        return tensors | online | state.of_generators(), about

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any], rows: list[dict[str, float]]) -> None:
        """Stand where ``state`` was taken; ``rows`` are those that had been logged, which the doctor is shown again."""
        state.to_optimizer(self.plain_optimizer, tensors, about["optimizer"])
        self.step, self.elapsed, self.skipped = about["step"], about["elapsed"], about["skipped"]
        self.chunks.rows, self.watch.first = about["chunk"], about["weights"]
        self.pace.restore(about["pace"])
        self.clock = Clock(**about["clock"])
        self.fabric.strategy.precision.load_state_dict(about["precision"])
        if self.online and about["online"]:
            self.online.restore(tensors, about["online"], self.fabric.device)
        tell, self.doctor.tell = self.doctor.tell, lambda finding: None
        for row in rows:
            self.doctor.see(row)
        self.doctor.tell = tell
        if not state.to_generators(tensors):
            self.say(f"resumed on {dist.world()} processes after {about['world']}: not to the bit where dropout draws")
