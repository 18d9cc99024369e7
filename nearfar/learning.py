"""From a source and a recipe to a trained method: the loop with everything it needs, from the start or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nearfar import build, dist, methods
from nearfar.build import Input
from nearfar.data import Loader, Source
from nearfar.encoders.norm import synchronise
from nearfar.recipe import Recipe
from nearfar.training import optim, state
from nearfar.training.chunks import Chunks
from nearfar.training.doctor import Doctor, Facts, Finding
from nearfar.training.engine import Engine, launch, shape
from nearfar.training.keeper import METHOD, TRAINING, Checkpoint
from nearfar.training.loop import Clock, Loop
from nearfar.training.memory import keep_freed
from nearfar.training.progress import Bar
from nearfar.training.watch import OnlineKNN
from nearfar.wording import Words

ALONE = Engine()  # one process
_WATCHED = 500  # held-out items that are looked at while it trains


@dataclass
class Learnt:
    """A trained method with what is needed to use it, before it is a folder."""

    method: Any
    recipe: Recipe
    input: Input | Words
    clock: Clock
    pace: Any
    findings: list[Finding]
    loop: Loop


@dataclass(frozen=True)
class Hooks:
    """Who is told what while it trains; each may be left out."""

    log: Callable[[dict], None] = lambda row: None  # a row of metrics
    show: bool | None = None  # the bar; None: where there is a terminal
    say: Callable[[str], None] = lambda text: None  # a line
    tell: Callable[[Finding], None] = lambda finding: None  # what the doctor finds, at the step where it does
    save: Callable[..., None] = lambda loop, **how: None  # see Loop
    stop: Callable[[], int] = lambda: 0
    study: Callable[[Any, int], str] = lambda batch, step: ""


def fresh(
    train: Source, recipe: Recipe, say: Callable[[str], None] = lambda text: None, given: Any = None,
    start: dict[str, torch.Tensor] | None = None,
) -> Any:  # fmt: skip
    """The untrained method for a source, by a resolved recipe."""
    statistics = () if recipe.is_text else build.statistics(train)
    if statistics and float(statistics[1].max()) < 1e-4:
        say("all training images look the same: there is nothing to tell apart")
    return build.model(recipe, given or build.input_of(train), len(train.classes or ()), len(train), *statistics,
                       start=start)  # fmt: skip


def loader_of(train: Source, recipe: Recipe, method: Any, engine: Engine = ALONE) -> Loader:
    """This process's batches; raises ``UserError`` where a batch does not divide among the processes."""
    pairs = len(train.shape) == 2 and train.shape[0] > 1  # which bring their positives with them
    return Loader(train, recipe.batch // recipe.accumulate, recipe.seed, dist.rank(), dist.world(),
                  per_class=0 if pairs else getattr(method, "per_class", 0), workers=engine.workers)  # fmt: skip


def learn(
    train: Source, recipe: Recipe, method: Any, hooks: Hooks = Hooks(), *, engine: Engine = ALONE,
    fabric: Any = None, views: Callable[..., list[torch.Tensor]] | None = None, held_out: Source | None = None,
    start: Checkpoint | None = None, rows: list[dict] | None = None, given: Input | Words | None = None,
) -> Learnt:  # fmt: skip
    """Train on a source by a resolved recipe; everything random comes from the recipe's seed.

    Args:
        views: where given, takes the policy's place: ``views(content, generator, device)``, content (B, H, W, C), gives
            a list of (B, C, h, w) in [0, 1].
        held_out: where it and ``train`` have labels, is embedded at about ten points for an online kNN, by which no
            weight moves.
        fabric: launched; left out, ``engine`` launches one.
        given: what the encoder takes, where the source does not say.
        start: a checkpoint to go on from, with the ``rows`` that had been logged until then.
    """
    fabric = fabric or launch(engine, recipe.precision)
    given = given or build.input_of(train)
    if dist.world() > 1 and getattr(method, "batch_norm", "whole") != "own":
        synchronise(method)
    shape(method, engine)
    chunks = Chunks(method.encoder, engine.chunk)
    model = fabric.setup_module(method)
    plain = optim.build(recipe.optim, method)
    optimizer = fabric.setup_optimizers(plain)
    if fabric.device.type == "cpu":
        keep_freed()
    if views is None:
        views = build.views(recipe, given, method, rank=dist.rank(), world=dist.world())
    loader = loader_of(train, recipe, method, engine)
    pace = build.pace(recipe, len(train))
    doctor = Doctor(_facts(recipe, train), hooks.tell)
    with Bar(f"{recipe.method} on {recipe.source}", hooks.show) as bar, torch.random.fork_rng(_gpus(fabric)):
        torch.manual_seed(recipe.seed + dist.rank())
        online = _online_knn(method, train, held_out, given)
        loop = Loop(
            fabric, method, model, optimizer, plain, loader, views, pace, recipe.seed, recipe.optim, chunks,
            accumulate=recipe.accumulate, skip_nan=engine.skip_nan, interval=60 * engine.checkpoint_minutes,
            log=hooks.log, show=bar.update, say=hooks.say, save=hooks.save, stop=hooks.stop, study=hooks.study,
            doctor=doctor, online=online,
        )  # fmt: skip
        if start is not None:
            tensors = start.tensors(TRAINING)
            state.to_method(method, start.tensors(METHOD))
            loop.restore(tensors, start.about["training"], rows or [])
        clock = loop.run()
    if recipe.minutes and pace.last_step is not None:
        recipe = recipe.changed(pace=tuple(pace.segments))
    method.encoder.__dict__.pop("forward", None)  # neither chunks nor compiled
    method.eval()
    return Learnt(method, recipe, given, clock, pace, doctor.findings, loop)


def _gpus(fabric: Any) -> list[int]:
    return [fabric.device.index] if fabric.device.type == "cuda" else []


def _facts(recipe: Recipe, train: Source) -> Facts:
    supervised = methods.module(recipe.method).SUPERVISED
    return Facts(recipe.method, recipe.settings, recipe.optim, recipe.precision, recipe.batch // recipe.accumulate,
                 len(train.classes or ()) if supervised else 0)  # fmt: skip


def _online_knn(method: Any, train: Source, held_out: Source | None, given: Input | Words) -> OnlineKNN | None:
    """A judge on at most 500 held-out items, evenly taken, where there are labels."""
    if held_out is None or train.labels is None or held_out.labels is None:
        return None
    part = held_out.subset(np.unique(np.linspace(0, len(held_out) - 1, _WATCHED).astype(np.int64)))

    def embed() -> np.ndarray:
        sharded = hasattr(method, "unshard")
        if sharded:
            method.unshard()
        features = build.embed(method, part, given)
        if sharded:
            method.reshard()
        return features

    return OnlineKNN(embed, part.labels)


def checkpoint_of(loop: Loop, about: dict[str, Any], final: bool) -> tuple[dict, dict]:
    """The files and the record of a checkpoint where ``loop`` stands. All processes call it."""
    files = {METHOD: state.plain(loop.method.state_dict())}
    record = about | {"step": loop.step, "score": loop.score, "training": None}
    if final:
        record["pace"] = loop.pace.segments
    else:
        tensors, rest = loop.state()
        files[TRAINING] = state.plain(tensors)
        record["training"] = rest
    return files, record
