"""A run is a folder: this file makes one, opens one, and uses one. It is the only file that knows everybody."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearfar import build, compare, dist, gallery, leaks, methods, robustness
from nearfar import recipe as recipes
from nearfar.build import Input
from nearfar.data import Loader, Source, Splits, to_stderr
from nearfar.encoders.norm import synchronise
from nearfar.environment import describe_environment
from nearfar.errors import UserError
from nearfar.evaluate import Evaluation
from nearfar.evaluate import evaluate as judge
from nearfar.evaluate import neighbours as nearest_rows
from nearfar.recipe import Recipe
from nearfar.training import checkpoint, loop, optim
from nearfar.training.checkpoint import write_bytes
from nearfar.training.doctor import Doctor, Facts, Finding
from nearfar.training.memory import keep_freed
from nearfar.training.metrics import MetricsFile
from nearfar.training.progress import Bar, bar_for_decoding
from nearfar.training.watch import OnlineKNN

_WATCHED = 500  # held-out images that are looked at while it trains
_BUDGETS = ("epochs", "steps", "minutes")


@dataclass
class Learnt:
    """A trained method with what is needed to use it, before it is a folder."""

    method: Any
    recipe: Recipe
    input: Input
    clock: loop.Clock
    pace: Any
    findings: list[Finding]


def fresh(train: Source, recipe: Recipe, say: Callable[[str], None] = lambda text: None) -> Any:
    """The untrained method for a source, by a resolved recipe."""
    mean, std = build.statistics(train)
    if float(std.max()) < 1e-4:
        say("all training images look the same: there is nothing to tell apart")
    return build.model(recipe, tuple(train.shape), mean, std, len(train.classes or ()), len(train))


def learn(
    train: Source, recipe: Recipe, method: Any, *, log: Callable[[dict], None] = lambda row: None,
    save: Callable[[Any, Recipe, Input, int], None] = lambda *a: None, show: bool | None = None,
    views: Callable[..., list[torch.Tensor]] | None = None, held_out: Source | None = None,
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Learnt:  # fmt: skip
    """Train on a source by a resolved recipe; everything random comes from the recipe's seed.

    ``views``, where given, takes the policy's place: ``views(content, generator, device)``, content (B, H, W, C), gives
    a list of (B, C, h, w) in [0, 1]. ``held_out``, where it and ``train`` have labels, is embedded at about ten points
    for an online kNN, by which nothing is chosen. ``tell`` takes what the doctor finds, at the step where it does.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision
    given = Input(tuple(train.shape), float(train.low), float(train.high))
    if dist.world() > 1 and getattr(method, "batch_norm", "whole") != "own":
        synchronise(method)
    optimizer = optim.build(recipe.optim, method)
    fabric = Fabric(accelerator="auto", devices=1, precision=recipe.precision)
    fabric.launch()
    model, optimizer = fabric.setup(method, optimizer)
    if fabric.device.type == "cpu":
        keep_freed()
    if views is None:
        views = build.image_views(recipe, given, method.views, small=getattr(method, "small_views", False),
                                  rank=dist.rank(), world=dist.world())  # fmt: skip
    doctor = Doctor(_facts(recipe, train), tell)
    pace = build.pace(recipe, len(train))
    loader = Loader(train, recipe.batch, recipe.seed, dist.rank(), dist.world(),
                    per_class=getattr(method, "per_class", 0))  # fmt: skip
    with Bar(f"{recipe.method} on {recipe.source}", show) as bar, torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        clock = loop.fit(
            fabric, model, optimizer, loader, views, pace, seed=recipe.seed, optim=recipe.optim, log=log,
            show=bar.update, at_interval=lambda step, share: save(method, recipe, given, step), doctor=doctor,
            online=_online_knn(method, train, held_out, given),
        )  # fmt: skip
    if recipe.minutes:
        recipe = recipe.changed(pace=tuple(pace.segments))
    method.eval()
    return Learnt(method, recipe, given, clock, pace, doctor.findings)


def _facts(recipe: Recipe, train: Source) -> Facts:
    supervised = methods.module(recipe.method).SUPERVISED
    return Facts(recipe.method, recipe.settings, recipe.optim, recipe.precision, recipe.batch,
                 len(train.classes or ()) if supervised else 0)  # fmt: skip


def _online_knn(method: Any, train: Source, held_out: Source | None, given: Input) -> OnlineKNN | None:
    """A judge on at most 500 held-out images, evenly taken, where there are labels."""
    if held_out is None or train.labels is None or held_out.labels is None:
        return None
    part = held_out.subset(np.unique(np.linspace(0, len(held_out) - 1, _WATCHED).astype(np.int64)))
    return OnlineKNN(lambda: build.embed(method, part, given.range_for(part)), part.labels)


def claim(out: Path, force: bool) -> None:
    """Make the run's folder; never write into one that holds anything, unless forced."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give --out a new folder")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise UserError(f"{out} is in use: pass another --out, or --force to replace it")
        if not (out / "recipe.toml").is_file():
            raise UserError(f"{out} holds other things than a run: --force will not delete it; pass another --out")
        shutil.rmtree(out)
    (out / "checkpoints").mkdir(parents=True)


def free_name(recipe: Recipe) -> Path:
    """``runs/SOURCE-METHOD``, with a number where that is taken."""
    stem = Path(str(recipe.source).rstrip("/")).name.replace(":", "-") or "run"
    base = Path("runs") / f"{stem.split('.')[0] or stem}-{recipe.method}"
    path, n = base, 2
    while path.exists():
        path, n = base.with_name(f"{base.name}-{n}"), n + 1
    return path


def train(
    source: Any = None, *, out: str | Path | None = None, force: bool = False,
    recipe: Recipe | str | Path | None = None, evaluate: bool = True, show: bool | None = None,
    say: Callable[[str], None] = lambda text: None, method: str = "", preset: str = "", **changes: Any,
) -> Run:  # fmt: skip
    """Train, judge and report; returns the run.

    Args:
        source: what the command line takes, or arrays ``(N, H, W[, C])``, or ``(images, labels)``.
        out: the run's folder; ``runs/SOURCE-METHOD`` where it is left out.
        recipe: a recipe, its file or a run's folder, to start from.
        evaluate: judge the features at the end, where there are labels.
        method, preset: which method, with which of its recipes: ``"small"``, for small machines, is taken where none
            is named; ``"paper"`` is the published one (``nearfar methods NAME`` prints them).
        changes: any field of :class:`nearfar.recipe.Recipe` (``method="simclr", minutes=5, batch=512``).

    Raises ``UserError`` (a ``ValueError``) in one line for whatever cannot be done as asked.
    """
    start = time.perf_counter()
    base = recipe if isinstance(recipe, Recipe) else recipes.read(recipe) if recipe else None
    base = recipes.of(method or "simclr", preset) if base is None else recipes.turned(base, method, preset)
    if any(name in changes for name in _BUDGETS):  # a new budget takes the old one's place
        changes = dict.fromkeys(_BUDGETS, 0) | {"pace": ()} | changes
    if source is not None:
        changes["source"] = str(source) if isinstance(source, str | os.PathLike) else "array"
    known = {f.name for f in dataclasses.fields(Recipe)}
    for key in changes:
        if key not in known:
            raise UserError(f"unknown setting {key!r}{recipes.nearest(key, known)}")
    base = base.changed(**changes)
    folder = Path(out) if out is not None else free_name(base)
    if folder.exists():  # before anything long
        _refuse_if_used(folder, force)
    with bar_for_decoding(show) as progress:
        splits = build.open_like(base.source if source is None else source, None, base, progress, say)
    for part in (splits.train, splits.test):
        _tell_skipped(part, say)
    data, test = build.split(splits, base)
    resolved = build.resolve(base, data)
    method = fresh(data, resolved, say)  # whatever cannot be built fails before anything is written
    claim(folder, force)
    write_bytes(folder / "recipe.toml", recipes.to_toml(resolved))
    write_bytes(folder / "environment.json", json.dumps(describe_environment(), indent=1))
    np.save(folder / "seen.npy", data.item_hashes)
    fingerprint = data.fingerprint()  # once, as it reads all of the images

    def save(method: Any, recipe: Recipe, given: Input, step: int) -> None:
        about = {"input": dataclasses.asdict(given), "classes": list(data.classes or ()), "step": step,
                 "fingerprint": fingerprint, "images": len(data)}  # fmt: skip
        checkpoint.save(folder / "checkpoints" / "last.safetensors", method.state_dict(), about)

    def tell(finding: Finding) -> None:
        with open(folder / "doctor.jsonl", "a", encoding="utf-8") as file:
            file.write(finding.to_json() + "\n")
        if finding.name != "not_finite":  # which ends the run, in the same words
            say(finding.text)

    (folder / "doctor.jsonl").touch()  # empty: watched, and nothing found
    with MetricsFile(folder) as metrics, _reported(folder):
        learnt = learn(data, resolved, method, log=metrics.write, save=save, show=show, held_out=test, tell=tell)
    save(learnt.method, learnt.recipe, learnt.input, learnt.pace.last_step)
    write_bytes(folder / "recipe.toml", recipes.to_toml(learnt.recipe))
    clock = {k: round(v, 3) for k, v in dataclasses.asdict(learnt.clock).items() if not k.startswith("_")}
    write_bytes(folder / "clock.json", json.dumps(clock | {"before": round(time.perf_counter() - start, 3)}))
    run = Run(folder)
    run.__dict__["method"] = learnt.method.cpu()
    if evaluate:
        run.evaluate((data, test), say=say)
    else:
        run.report()
    return run


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """A run that breaks off leaves a page that says why."""
    try:
        yield
    except UserError:
        Run(folder).report()
        raise


def load(folder: str | Path) -> Run:
    """Open a run's folder."""
    return Run(Path(folder))


def _refuse_if_used(folder: Path, force: bool) -> None:
    if not force and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in use: pass another --out, or --force to replace it")


def _tell_skipped(part: Source | None, say: Callable[[str], None]) -> None:
    if part is not None and part.skipped:
        first = part.skipped[0]
        say(f"skipped {len(part.skipped)} unreadable images, the first {first.name}: {first.reason}")


class Run:
    """A finished (or checkpointed) run: embed, evaluate, look."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "recipe.toml").is_file():
            what = "there is no such folder" if not folder.exists() else "it holds no recipe.toml"
            raise UserError(f"{folder} is no run: {what}")
        self.recipe = recipes.read(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def _checkpoint(self) -> tuple[dict, dict]:
        return checkpoint.load(self.folder / "checkpoints" / "last.safetensors")

    @cached_property
    def about(self) -> dict[str, Any]:
        return self._checkpoint[1]

    @cached_property
    def input(self) -> Input:
        held = self.about["input"]
        return Input(tuple(held["shape"]), held["low"], held["high"])

    def _fresh(self) -> Any:
        tensors = self._checkpoint[0]
        c = self.input.shape[2]
        mean = tensors.get("encoder.mean", torch.zeros(c)).view(-1)
        std = tensors.get("encoder.std", torch.ones(c)).view(-1)
        return build.model(self.recipe, self.input.shape, mean, std, len(self.about["classes"]), self.about["images"])

    @cached_property
    def method(self) -> Any:
        method = self._fresh()
        try:
            method.load_state_dict(self._checkpoint[0])
        except RuntimeError:
            raise UserError(f"{self.folder}: the checkpoint does not fit the recipe; was recipe.toml edited?") from None
        return method.eval()

    @property
    def encoder(self) -> torch.nn.Module:
        """The trained encoder: (B, C, H, W) in [0, 1] -> (B, features)."""
        return self.method.encoder

    def open(self, source: Any, say: Callable[[str], None] = to_stderr) -> Splits:
        with bar_for_decoding(None) as progress:
            return build.open_like(source, self.input, self.recipe, progress, say)

    def embed(self, source: Any, *, project: bool = False) -> np.ndarray:
        """Features before the projector (or after it), of images in their order. -> (N, d) float32

        Args:
            source: uint8 arrays (N, H, W) or (N, H, W, C), or anything ``train`` takes; of a source with
                splits, training images come first.
        """
        splits = self.open(source)
        parts = [p for p in (splits.train, splits.test) if p is not None]
        return np.concatenate([self.embed_part(p, project) for p in parts])

    def embed_part(self, part: Source, project: bool = False) -> np.ndarray:
        return build.embed(self.method, part, self.input.range_for(part), project=project)

    def evaluate(
        self, source: Any = None, *, draws: int = 10, labels_per_class: tuple[int | str, ...] = (1, 5, 10),
        more: bool = False, robust: bool = False, say: Callable[[str], None] = lambda text: None,
    ) -> Evaluation | None:  # fmt: skip
        """Judge features, projections, the untrained encoder and raw pixels; write results and the report.

        Probes are fitted on the source's training part and judged on its test part (its own, or the one held
        out by the recipe's seed, which is the one training did not see). None where there are no labels. With
        ``robust``, also on corrupted test images and on each augmentation alone, under ``robustness`` in results.json.
        """
        if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Source):
            data, test = source
        else:
            data, test = build.split(self.open(self.recipe.source if source is None else source, say), self.recipe)
        spaces = gallery.Spaces(self, data, test)
        if robust:
            robustness.check(spaces)  # before anything is judged or written
        result, notes = None, spaces.notes()
        if test is None or data.labels is None or test.labels is None:
            say("no labels and so no accuracies: the report shows neighbours, map and spectrum")
        elif len(set(data.labels.tolist())) < 2:
            say("one class only: accuracies need two; the report shows neighbours, map and spectrum")
        else:
            result = judge(
                spaces.features(), data.labels, test.labels, data.classes, labels_per_class=labels_per_class,
                draws=draws, seed=0, more=more,
            )  # fmt: skip
            result.protocol["items hash"] = data.fingerprint() + test.fingerprint()
            compare.write(self.folder / "predictions.npz", result, test.labels)
            notes = [*result.notes, *notes]
        duplicates, pictures, said = leaks.judged(data, test, result, more=more)
        notes += said
        held = {"evaluation": None if result is None else result.to_dict() | {"notes": notes},
                "geometry": spaces.geometry(), "source": str(data.spec), "duplicates": duplicates}  # fmt: skip
        if robust:
            if result is None:
                say("without labels robustness is the views' cosines alone")
            with Bar("robustness", None) as bar:
                held["robustness"], changed = robustness.measure(
                    spaces, result, progress=lambda share, text: bar.update(share, text=text))  # fmt: skip
            pictures["corrupted"] = gallery.thumbs(changed, 0.0, 1.0)
        write_bytes(self.folder / "results.json", json.dumps(held, indent=1))
        gallery.write(self.folder / "gallery.npz", spaces, pictures)
        self.report()
        for note in notes:
            say(note)
        return result

    def report(self) -> Path:
        """Write ``report.html`` from what lies in the folder; returns its path."""
        from nearfar import report

        return report.write(self.folder)

    def neighbours(self, source: Any, query: int | str | Path, k: int = 8) -> list[tuple[int, float]]:
        """The ``k`` images of a source nearest to one of them, or to an image file: (index, cosine)."""
        part = self.open(source).train
        bank = self.embed_part(part)
        itself = str(query).isdigit()
        if itself:
            if int(query) >= len(part):
                raise UserError(f"query {query}: {part.spec} has images 0 to {len(part) - 1}")
            z = bank[int(query)][None]
        else:
            z = self.embed(self._single(query))
        index, cosine = nearest_rows(z, bank, min(k + itself, len(part)))
        rows = [(int(i), float(c)) for i, c in zip(index[0], cosine[0])]
        return [r for r in rows if not (itself and r[0] == int(query))][:k]

    def _single(self, path: str | Path) -> Any:
        """One image file as a source of one."""
        from nearfar.data import open_image

        return open_image(path, self.input.shape)
