"""`nearfar train`: a run's folder from a source and a recipe, begun or gone on with, on one process or many."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nearfar import build, dist
from nearfar import recipe as recipes
from nearfar.data import Source
from nearfar.errors import Elsewhere, Preempted, UserError, one_line
from nearfar.learning import Hooks, Learnt, checkpoint_of, fresh, learn, loader_of
from nearfar.places import free_name, make, refuse_if_used, restarted, restarted_in
from nearfar.recipe import Recipe
from nearfar.run import CHECKPOINTS, Run, tell_skipped
from nearfar.text import looks_like_text
from nearfar.training import keeper
from nearfar.training.checkpoint import write_bytes
from nearfar.training.chunks import out_of_memory
from nearfar.training.doctor import Finding
from nearfar.training.engine import Engine, launch
from nearfar.training.lock import alone
from nearfar.training.metrics import MetricsFile
from nearfar.training.progress import bar_for_decoding
from nearfar.training.signals import Signals

T = TypeVar("T")
Say = Callable[[str], None]
_BUDGETS = ("epochs", "steps", "minutes")
_ENGINE = {f.name for f in dataclasses.fields(Engine)}


def train(
    source: Any = None, *, out: str | Path | None = None, force: bool = False, resume: str | Path | None = None,
    recipe: Recipe | str | Path | None = None, evaluate: bool = True, show: bool | None = None,
    say: Say = lambda text: None, method: str = "", preset: str = "", **changes: Any,
) -> Run:  # fmt: skip
    """Train, judge and report; returns the run.

    Args:
        source: what the command line takes, or arrays ``(N, H, W[, C])``, or ``(images, labels)``; or a list of texts,
            of pairs or triplets of texts, or ``(texts, labels)`` or ``(pairs, scores)``.
        out: the run's folder; ``runs/SOURCE-METHOD`` where it is left out.
        resume: a run's folder to go on with, to the bit, from its last good checkpoint, by its own recipe; ``source``
            is wanted only where it lies elsewhere now or was an array.
        recipe: a recipe, its file or a run's folder, to start from.
        evaluate: judge the features at the end, where there are labels.
        method, preset: which method, with which of its recipes: ``"small"``, for small machines, is taken where none
            is named; ``"paper"`` is the published one (``nearfar methods NAME`` prints them).
        changes: any field of :class:`nearfar.recipe.Recipe` (``method="simclr", minutes=5, batch=512``; ``settings``
            changes those it names) or of
            :class:`nearfar.training.engine.Engine` (``devices=2, compile=True``).

    With several devices the script is started once for each, and this returns on all of them: on the first when the
    run has been judged, on the others before.

    Raises ``UserError`` (a ``ValueError``) in one line for whatever cannot be done as asked; ``Preempted`` where
    SIGTERM, SIGUSR1 or Ctrl-C asked it to stop: a checkpoint has been written by then.
    """
    begun = time.perf_counter()
    wanted = {k: changes.pop(k) for k in list(changes) if k in _ENGINE}
    if resume is not None:
        other = [*changes, *(n for n, v in (("recipe", recipe), ("method", method), ("preset", preset)) if v)]
        if other:
            raise UserError(f"a run is resumed by its own recipe: leave out {', '.join(other)}, or start a new run "
                            f"from it with recipe={str(resume)!r}")  # fmt: skip
        base, engine = Run(Path(resume)).recipe, _engine_of(Path(resume), wanted)
    else:
        base, engine = _recipe(source, recipe, method, preset, changes), Engine(**wanted)
    base = base.changed(precision=build.precision(base.precision))
    fabric = launch(engine, base.precision)
    if dist.rank():
        say, show = lambda text: None, False
    folder = _together(lambda: _folder(base, out, resume, force))
    folder = Path(fabric.broadcast(str(folder)))
    going = Started(folder, base, engine, fabric, say, show, begun)
    if resume is not None or restarted_in(folder):
        with _held(folder):
            return going.go_on(source, evaluate)
    data, test, method = going.begin(source, force)
    with _held(folder):
        return going.train(data, test, method, None, evaluate)


def _recipe(source: Any, recipe: Any, method: str, preset: str, changes: dict[str, Any]) -> Recipe:
    base = recipe if isinstance(recipe, Recipe) else recipes.read(recipe) if recipe else None
    if base is None:
        base = recipes.of(method or ("simcse" if looks_like_text(source) else "simclr"), preset)
    else:
        base = recipes.turned(base, method, preset)
    if any(name in changes for name in _BUDGETS):  # a new budget takes the old one's place
        changes = dict.fromkeys(_BUDGETS, 0) | {"pace": ()} | changes
    if source is not None:
        changes["source"] = str(source) if isinstance(source, str | os.PathLike) else "array"
    spec = changes.get("source") if source is None else source
    known = {f.name for f in dataclasses.fields(Recipe)}
    for key in changes:
        if key not in known:
            raise UserError(f"unknown setting {key!r}{recipes.nearest(key, known | _ENGINE)}")
    if isinstance(changes.get("settings"), dict):  # the others stay as the method's preset or the recipe has them
        changes["settings"] = base.settings | changes["settings"]
    base = base.changed(**changes)
    return build.with_encoder(base, base.source if spec is None else spec)


def _engine_of(folder: Path, wanted: dict[str, Any]) -> Engine:
    """The one that a run was begun on, but for what is asked for now."""
    try:
        held = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        return Engine(**{k: v for k, v in held.items() if k in _ENGINE} | wanted)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError):  # absent, or edited
        return Engine(**wanted)


def _folder(recipe: Recipe, out: str | Path | None, resume: str | Path | None, force: bool) -> Path:
    if resume is not None:
        return Path(resume)
    folder = Path(out) if out is not None else free_name(recipe, restarted())
    if folder.exists() and not restarted_in(folder):  # before anything long
        refuse_if_used(folder, force)
    return folder


def _together(job: Callable[[], T]) -> T:
    """Do the same on all processes, so that where one fails none is left waiting; the first that failed says why."""
    try:
        got, error = job(), None
    except UserError as found:
        got, error = None, found
    failed = [r for r, (bad,) in enumerate(dist.agree(error is not None)) if bad]
    if failed:
        raise error if error and dist.rank() == failed[0] else Elsewhere(f"process {failed[0]} has failed")
    return got


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder's lock, for all processes of this command."""
    with ExitStack() as held:
        _together(lambda: None if dist.rank() else held.enter_context(alone(folder)))
        yield


@dataclass
class Started:
    """A command under way: where, by what, on what."""

    folder: Path
    recipe: Recipe
    engine: Engine
    fabric: Any
    say: Say
    show: bool | None
    begun: float
    given: Any = None  # what the encoder takes, once it is known
    material: Any = None  # what is trained on: the source, or pairs made of it

    def begin(self, source: Any, force: bool) -> tuple[Source, Source | None, Any]:
        """A new run's folder; what it is to be trained with."""
        data, test, method = _together(lambda: self._opened(self.recipe.source if source is None else source))
        _together(lambda: None if dist.rank() else make(self.folder, force, self.recipe, self.engine, data, test))
        return data, test, method

    def go_on(self, source: Any, evaluate: bool) -> Run:
        """A run from its last good checkpoint, or from its beginning where it has none yet."""
        self.recipe = recipes.read(self.folder)
        if source is None and self.recipe.source == "array":
            raise UserError(f"{self.folder} was trained on an array: give it again, train(array, resume=…)")
        checkpoints = self.folder / CHECKPOINTS
        at = None
        if keeper.listed(checkpoints):
            at = _together(lambda: keeper.newest(checkpoints, self.say))
        if at is not None and at.about["training"] is None:
            return self._finished(at, source, evaluate)
        if at is not None and self.recipe.is_text:
            self.given = Run(self.folder).input  # its tokeniser
        source = self.recipe.source if source is None else source
        data, test, method = _together(lambda: self._opened(source, begun=at is not None))
        if at is not None and at.about["fingerprint"] != data.fingerprint():
            raise UserError(f"{data.spec} is not what {self.folder} was trained on until now (its fingerprint is "
                            f"{data.fingerprint()}, not {at.about['fingerprint']}): give the same data, or start anew")
        self.say(f"resuming {self.folder} from step {at.step if at else 0}")
        return self.train(data, test, method, at, evaluate)

    def _finished(self, at: keeper.Checkpoint, source: Any, evaluate: bool) -> Run:
        """Training had ended; what comes after it may not have."""
        dist.finish()
        if self.fabric.global_rank:
            return Run(self.folder, self.fabric.global_rank)
        self._write_recipe(at.about["pace"])
        run = Run(self.folder)
        self.say(f"{self.folder} has been trained to its end, {at.step} steps")
        if evaluate and not (self.folder / "results.json").is_file():
            run.evaluate(source, say=self.say)
        else:
            run.report()
        return run

    def _opened(self, source: Any, begun: bool = False) -> tuple[Source, Source | None, Any]:
        """Data to train on and to judge by, and the untrained method: whatever cannot be built fails here."""
        first = Run(Path(self.recipe.init)) if self.recipe.init and not begun else None
        if first is not None and first.recipe.is_text != self.recipe.is_text:
            raise UserError(f"init = {self.recipe.init!r} is a run of {'texts' if first.recipe.is_text else 'images'}")
        if first is not None and self.recipe.is_text:
            self.given = first.input  # its tokeniser
        with bar_for_decoding(self.show) as progress:
            splits = build.open_like(source, self.given, self.recipe, progress, self.say)
        for part in (splits.train, splits.test):
            tell_skipped(part, self.say)
        data, test = build.split(splits, self.recipe)
        self.material, self.given = build.material(data, self.recipe), build.input_of(data)
        self.recipe = build.resolve(self.recipe, self.material)
        method = fresh(self.material, self.recipe, self.say, self.given,
                       None if first is None else first.encoder.state_dict())  # fmt: skip
        loader_of(self.material, self.recipe, method)
        return data, test, method

    def train(
        self, data: Source, test: Source | None, method: Any, at: keeper.Checkpoint | None, evaluate: bool
    ) -> Run:
        """Train, write the last checkpoint, judge."""
        first, folder = not dist.rank(), self.folder
        keep = keeper.Keeper(folder / CHECKPOINTS, self.engine.keep, self.say) if first else None
        about = {"input": self.given.described(), "classes": list(data.classes or ()), "images": len(self.material),
                 "fingerprint": data.fingerprint()}  # fmt: skip
        metrics = MetricsFile(folder, at.about["metrics"] if at else 0) if first else None

        def save(loop: Any, final: bool = False, wait: bool = False) -> None:
            urgent = final or wait
            if not urgent and any(busy for (busy,) in dist.agree(keep is not None and keep.busy)):
                return
            files, record = checkpoint_of(loop, about, final)
            if keep is None:
                return
            try:
                keep.write(loop.step, files, record | {"metrics": metrics.position()})
            except OSError as error:  # of the rows
                keep.wait()
                keep.failed(loop.step, error)
            if urgent and not keep.wait() and final:
                raise UserError(f"{folder} is trained, but its checkpoint could not be written: make room, and go on "
                                f"with nearfar train --resume {folder}")  # fmt: skip

        with Signals() as signals, _reported(folder, first):
            hooks = Hooks(metrics.write if first else lambda row: None, self.show, self.say, self._tell(at, metrics),
                          save, lambda: signals.caught, self._study)  # fmt: skip
            try:
                learnt = learn(self.material, self.recipe, method, hooks, engine=self.engine, fabric=self.fabric,
                               held_out=test, start=at, rows=metrics.rows if first else None,
                               given=self.given)  # fmt: skip
                if learnt.pace.done(learnt.loop.step):
                    save(learnt.loop, final=True)
            finally:
                if first:
                    keep.wait()
                    metrics.close()
        dist.finish()
        with _reported(folder, False):
            return self._ended(learnt, data, test, evaluate)

    def _ended(self, learnt: Learnt, data: Source, test: Source | None, evaluate: bool) -> Run:
        if learnt.loop.stopped:
            name = signal.Signals(learnt.loop.stopped).name
            raise Preempted(f"stopped by {name} after step {learnt.loop.step}: go on with "
                            f"nearfar train --resume {self.folder}")  # fmt: skip
        if self.fabric.global_rank:
            return Run(self.folder, self.fabric.global_rank)
        self._write_recipe(learnt.pace.segments)
        run = Run(self.folder)
        clock = {k: round(v, 3) for k, v in dataclasses.asdict(learnt.clock).items() if not k.startswith("_")}
        write_bytes(self.folder / "clock.json", json.dumps(
            clock | {"before": round(time.perf_counter() - self.begun - clock["total"], 3)}))  # fmt: skip
        if evaluate:
            run.evaluate((data, test), say=self.say)
        else:
            run.report()
        return run

    def _write_recipe(self, segments: list) -> None:
        """With the pace that a timed run has kept, so that it can be repeated."""
        if self.recipe.minutes and not self.recipe.pace:
            self.recipe = self.recipe.changed(pace=tuple(map(tuple, segments)))
        write_bytes(self.folder / "recipe.toml", recipes.to_toml(self.recipe))

    def _tell(self, at: keeper.Checkpoint | None, metrics: MetricsFile | None) -> Callable[[Finding], None]:
        """What the doctor finds goes to doctor.jsonl; what it found after the checkpoint is taken back."""
        path = self.folder / "doctor.jsonl"
        if metrics is not None:
            step = at.step if at else 0
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            write_bytes(path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))

        def tell(finding: Finding) -> None:
            if metrics is None:
                return
            with open(path, "a", encoding="utf-8") as file:
                file.write(finding.to_json() + "\n")
            if finding.name != "not_finite":  # which ends the run, in the same words
                self.say(finding.text)

        return tell

    def _study(self, batch: Any, step: int) -> str:
        """Keep the batch whose loss is not finite, this process's part of it."""
        path = self.folder / f"not-finite-{step}{f'-{dist.rank()}' if dist.world() > 1 else ''}.npz"
        held = {"index": batch.index, "content": batch.content}
        np.savez_compressed(path, **held | ({} if batch.label is None else {"label": batch.label}))
        return str(path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that was cut short


@contextmanager
def _reported(folder: Path, first: bool) -> Iterator[None]:
    """A run that breaks off leaves a page that says why; one that finds no room on disk or in memory, how to go on."""
    try:
        yield
    except UserError:
        if first:
            with suppress(OSError):
                Run(folder).report()
        raise
    except (OSError, RuntimeError, MemoryError) as error:
        if not isinstance(error, OSError) and not out_of_memory(error):
            raise
        raise UserError(f"{folder}: {one_line(error)}: mend that, and go on with nearfar train --resume {folder}") \
            from None  # fmt: skip
