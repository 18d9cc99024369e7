"""A run's encoder on a downstream task, beside the same encoder with random weights: trained, judged, written down."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from nearfar import build, transferred
from nearfar.data.annotations import looks_annotated, open_scenes
from nearfar.data.scenes import Scenes, picture
from nearfar.data.source import Source, shown
from nearfar.environment import describe_environment
from nearfar.errors import UserError, nearest, require
from nearfar.evaluate.probes import amount, draw_labels
from nearfar.report.load import arrays
from nearfar.run import Run
from nearfar.training import checkpoint
from nearfar.training.checkpoint import write_bytes
from nearfar.transfer import tables
from nearfar.transfer.classification import Labelled
from nearfar.transfer.drawing import legend
from nearfar.transfer.fitting import fit, measure
from nearfar.transfer.pictures import Pictures, draw
from nearfar.transfer.settings import MODES, Settings
from nearfar.transferred import TASKS

STARTS = ("random", "pre-trained")
_SHOWN = 4  # test pictures that are drawn


@dataclass(frozen=True)
class Data:
    """A downstream data set as a transfer sees it."""

    task: ModuleType
    name: str
    spec: str
    classes: tuple[str, ...]
    channels: int
    pool: int  # training pictures
    drawn: Callable[[int | str, int], Any]  # (labels, seed) -> the labelled part
    test: Any
    digest: str  # of what is judged: names, truth
    notes: tuple[str, ...] = ()


def transfer(
    runs: Run | Sequence[Run], source: Any, *, task: str = "", labels: Sequence[int | str] = (10,), seeds: int = 3,
    modes: Sequence[str] = MODES, settings: Settings | None = None, out: str | Path | None = None,
    max_bad: float = 0.05, show: bool | None = None, say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Train heads on an encoder at few labels, from random and from pre-trained weights, and judge them.

    Every row has the same labelled pictures, order and augmentation for a seed, and the same test part, by which
    nothing is chosen. What is done is kept as it is done: run again with the same settings, it goes on from there.

    Args:
        runs: a run, or runs of several seeds, which the seeds take in turn.
        source: a folder in VOC's or COCO's layout, or of images/ beside masks/; or labelled images, as for ``train``.
        task: classification, detection or segmentation; by the source's layout where it is left out.
        labels: how many labelled training pictures; for classification, a class; "10%" is a share, 0 all.
        seeds: how many; each draws labelled pictures, random weights, order.
        modes: frozen (the encoder stays, BatchNorm's statistics too) and fine-tuned.
        max_bad: largest share of annotated pictures that may be missing or broken.
        out: the folder; TASK-HEAD in the run's ``transfer/`` where it is left out.

    Returns what is written to ``results.json``; ``model.safetensors`` beside it is the pre-trained encoder with its
    head, of the first seed and the last of ``labels`` and ``modes``: :class:`nearfar.Transferred` opens it. Raises
    ``UserError`` for what cannot be trained or judged.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    settings = _resolved(settings or Settings(), modes, seeds)
    labels = [amount(n) if n not in (0, "0", "all") else 0 for n in labels]
    data = _open(runs[0], source, task, settings, max_bad, say)
    settings = dataclasses.replace(settings, head=_head(data.task, settings.head))
    for note in data.notes:
        say(note)
    folder = Path(out) if out else runs[0].folder / "transfer" / f"{data.name}-{settings.head}"
    folder.mkdir(parents=True, exist_ok=True)
    protocol = _protocol(runs[0], data, settings)
    weights = [checkpoint.digest(r.encoder.state_dict())[:16] for r in runs]
    cells = tables.Cells(folder / "cells.jsonl", protocol)
    pictures: dict[str, np.ndarray] = {}
    asked: list[dict[str, Any]] = []
    for n in labels:
        for seed in range(seeds):
            part = data.drawn(n, seed)
            for start in STARTS:
                for mode in modes:
                    own = weights[seed % len(runs)] if start == "pre-trained" else ""
                    key = {"labels": n, "seed": seed, "start": start, "mode": mode, "weights": own}
                    asked.append(key)
                    if cells.has(key):
                        continue
                    model, found, cell = _one(runs[seed % len(runs)], data, part, settings, key, show)
                    if key["start"] == "pre-trained" and (seed, n, mode) == (0, labels[-1], modes[-1]):
                        transferred.save(folder, model, _about(runs[0], data) | key, settings)
                    cells.add(key | cell)
                    if seed == 0:
                        _keep(pictures, data, found, f"{n or 'all'} labels, {start}, {mode}")
    _write_pictures(folder / "pictures.npz", pictures, cells.protocol)
    result = tables.summary(cells.rows(asked), data.task.COLUMNS, data.classes) | {
        "task": data.name, "source": data.spec, "notes": list(data.notes), "environment": describe_environment(),
        "legend": legend(data.name, data.classes),
        "protocol": protocol | {"pre-trained": [f"{r.recipe.method}, seed {r.recipe.seed}" for r in runs],
                                "encoder weights": weights}}  # fmt: skip
    write_bytes(folder / "results.json", json.dumps(result, indent=1))
    for run in runs[:1]:
        run.report()
    return result | {"folder": str(folder)}


def _resolved(settings: Settings, modes: Sequence[str], seeds: int) -> Settings:
    for mode in modes:
        if mode not in MODES:
            raise UserError(f"unknown mode {mode!r}{nearest(mode, MODES)}")
    if seeds < 1:
        raise UserError(f"seeds {seeds}: give 1 or more")
    fast = "bf16-mixed" if torch.cuda.is_available() or build.has_fast_bf16() else "32-true"
    if settings.precision not in ("auto", "32-true", "bf16-mixed"):
        raise UserError(f"precision {settings.precision!r}: give auto, 32-true or bf16-mixed")
    return dataclasses.replace(settings, precision=fast) if settings.precision == "auto" else settings


def _head(task: ModuleType, head: str) -> str:
    if head and head not in task.HEADS:
        raise UserError(f"unknown head {head!r} for {task.__name__.rpartition('.')[2]}{nearest(head, task.HEADS)}")
    return head or task.HEADS[0]


def _open(
    run: Run, source: Any, task: str, settings: Settings, max_bad: float, say: Callable[[str], None]
) -> Data:
    if task and task not in TASKS:
        raise UserError(f"unknown task {task!r}{nearest(task, TASKS)}")
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    if task != "classification" and path is not None and path.is_dir() and (task or looks_annotated(path)):
        return _annotated(run, open_scenes(path, max_bad, task), settings, max_bad)
    if task not in ("", "classification"):
        raise UserError(f"{shown(source)}: {task} wants a folder of annotated pictures")
    return _labelled(run, source, say)


def _annotated(run: Run, scenes: Scenes, settings: Settings, max_bad: float) -> Data:
    module = importlib.import_module(f"nearfar.transfer.{scenes.task}")
    if scenes.task == "detection":  # before anything is trained
        require("faster_coco_eval", "coco", "judging detection")
    c = run.input.shape[2]
    if c not in (1, 3):
        raise UserError(f"{run.folder} was trained on {c} channels: annotated pictures have 1 or 3")
    test, bad = Pictures(scenes, scenes.test, c, settings.image_size).without_broken()
    if len(bad) > max_bad * len(scenes.test):
        raise UserError(f"{len(bad)} of {len(scenes.test)} test pictures are broken, the first: {bad[0]}")
    notes = scenes.notes + ((f"{len(bad)} test pictures left out, the first: {bad[0]}",) if bad else ())
    held = hashlib.sha256()
    for s in test.part:
        held.update(f"{s.name}{s.size}".encode() + s.boxes.tobytes() + s.labels.tobytes() + s.crowd.tobytes())
        if s.mask:
            held.update(s.mask.read_bytes())
    return Data(
        module, scenes.task, scenes.spec, scenes.classes, c, len(scenes.train),
        lambda n, seed: Pictures(scenes, draw(scenes, n, seed), c, settings.image_size),
        test, held.hexdigest()[:16], notes,
    )  # fmt: skip


def _labelled(run: Run, source: Any, say: Callable[[str], None]) -> Data:
    train, test = build.split(run.open(run.recipe.source if source is None else source, say), run.recipe)
    if train.labels is None or test is None or test.labels is None:
        raise UserError(f"{train.spec}: classification wants labelled images, for training and for the test")
    module = importlib.import_module("nearfar.transfer.classification")
    views = run.recipe.views[0] if isinstance(run.recipe.views, tuple) else run.recipe.views
    flip = float(views.get("flip", 0.5))

    def held(part: Source) -> Labelled:
        return Labelled(part, *run.input.range_for(part), flip)

    def drawn(n: int | str, seed: int) -> Labelled:
        if isinstance(n, int) and n > np.unique(train.labels, return_counts=True)[1].min():
            raise UserError(f"{n} labels a class: a class of {train.spec} has fewer training images")
        return held(train if n == 0 else train.subset(draw_labels(train.labels, n, seed)))

    return Data(module, "classification", str(train.spec), tuple(train.classes), train.shape[2], len(train), drawn,
                held(test), test.fingerprint())  # fmt: skip


def _one(run: Run, data: Data, part: Any, settings: Settings, key: dict[str, Any], show: bool | None) -> Any:
    """Train one head and judge it. -> the model, what it found, what is kept of it"""
    seed, frozen = key["seed"], key["mode"] == "frozen"
    if key["start"] == "random":  # has nothing to keep
        settings = dataclasses.replace(settings, encoder_rate=1.0)
    began, task = time.perf_counter(), data.task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def batch_of(rows: np.ndarray) -> Any:
        return task.batch_of(part, rows, settings, device)

    with torch.random.fork_rng(devices=[]):
        encoder = _encoder(run, key["start"], seed)
        torch.manual_seed(seed)
        model = task.build(encoder, data.channels, len(data.classes), settings).to(device)
        if key["start"] == "random":
            torch.manual_seed(seed)
            measure(model, part, settings, batch_of, task.loss_of)
        begun = getattr(task, "start", lambda model, part: False)(model, part)
    what = f"{key['labels'] or 'all'} labels, seed {seed}, {key['start']}, {key['mode']}"
    losses = []
    if not (frozen and begun):
        losses = fit(model, settings, len(part), batch_of, task.loss_of, frozen=frozen, seed=seed, what=what, show=show)
    found = task.predict(model, data.test, range(len(data.test)))
    judged = task.judged(found, data.test, 0)
    return model, found, {
        "results": {name: r.to_dict() for name, r in judged.results.items()}, "per_class": list(judged.per_class),
        "drawn": {name: np.asarray(v).tolist() for name, v in judged.drawn.items()}, "losses": losses,
        "pictures": len(part), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def _encoder(run: Run, start: str, seed: int) -> torch.nn.Module:
    """A copy of the run's encoder, or one of its kind with weights that the seed draws."""
    fresh = build.model(run.recipe.changed(seed=seed), run.input, len(run.about["classes"]), run.about["images"],
                        *_statistics(run)).encoder  # fmt: skip
    if start == "pre-trained":
        fresh.load_state_dict(run.encoder.state_dict())
    return fresh


def _statistics(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    held = run.encoder.state_dict()
    return held["mean"].view(-1).cpu(), held["std"].view(-1).cpu()


def _protocol(run: Run, data: Data, settings: Settings) -> dict[str, Any]:
    kept = dataclasses.asdict(settings)
    if data.name == "classification":
        kept = {k: v for k, v in kept.items() if k not in ("image_size", "crop", "width", "output_stride")}
    recipe = run.recipe
    return {
        "settings": kept, "encoder": recipe.encoder, "width": recipe.width, "input": run.input.shape,
        "trained on pictures": data.pool, "judged on pictures": len(data.test),
        "test hash": data.digest, "chosen on the test part": "nothing; the last step is judged",
        "intervals": "95 %: pictures drawn again (200 times) and, over several seeds, seeds drawn again, both levels",
    }  # fmt: skip


def _about(run: Run, data: Data) -> dict[str, Any]:
    return {"task": data.name, "classes": list(data.classes), "encoder": run.recipe.encoder, "width": run.recipe.width,
            "input": list(run.input.shape)}  # fmt: skip


def _keep(pictures: dict[str, np.ndarray], data: Data, found: Any, row: str) -> None:
    """Draw what one row found in a few test pictures."""
    if not hasattr(data.task, "drawn"):
        return
    for j, i in enumerate(np.linspace(0, len(data.test) - 1, min(_SHOWN, len(data.test))).astype(int)):
        scene = data.test.part[i]
        pixels = picture(scene, data.channels)
        truth = data.task.truth(scene, data.test.scenes)
        pictures.setdefault(f"{j}/{scene.name}/truth", data.task.drawn(truth, pixels))
        pictures[f"{j}/{scene.name}/{row}"] = data.task.drawn(found[i], pixels)


def _write_pictures(path: Path, pictures: dict[str, np.ndarray], protocol: str) -> None:
    """Add to what is there: rows that were done before, by the same protocol, keep their pictures."""
    if not pictures:
        return
    held = arrays(path)
    if str(held.get("protocol")) == protocol:
        pictures = held | pictures
    side = path.with_name(f".{path.name}.tmp.npz")
    np.savez_compressed(side, **pictures | {"protocol": np.array(protocol)})
    side.replace(path)
