"""Steps whose loss is not finite: not taken, with everything as it was; the batch is kept; or left out and counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import numpy as np
import torch
from attempts import OFTEN, Ground, called, checkpoints, forked, hold, weights

from nearfar import build
from nearfar import recipe as recipes
from nearfar.data import Loader, open_source
from nearfar.errors import UserError
from nearfar.learning import Hooks, fresh, learn
from nearfar.training import keeper
from nearfar.training.engine import Engine

METHODS = {"simclr": {}, "moco": {"queue": 128, "momentum": 0.9}, "byol": {"hidden": 32, "predictor_hidden": 32},
           "swav": {"prototypes": 16, "queue": 64, "queue_from": 0.1, "hidden": 32}}  # fmt: skip
_BATCH, _STEPS, _AT = 32, 30, 6


def _held(method: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in method.state_dict().items()}


def blank_image(ground: Ground, name: str, seed: int) -> Callable[[], None]:
    """Views that divide by the image's own deviation, and an image of one colour: first in the seventh step."""

    def prove() -> None:
        x = np.load(ground.plain).copy()
        recipe = recipes.of(name, source="array", batch=_BATCH, width=8, seed=seed, steps=_STEPS)
        recipe = recipe.changed(settings=recipe.settings | METHODS[name])
        blank = int(Loader(open_source(x).train, _BATCH, seed).indices(_AT)[3])
        x[blank] = 128
        source = open_source(x).train
        recipe = build.resolve(recipe, source)
        loader = Loader(source, _BATCH, seed)
        there = sum(blank in loader.indices(step) for step in range(_STEPS))
        for skip in (False, True):
            method, after, saved, kept = fresh(source, recipe), {}, [], []
            given = build.Input(tuple(source.shape), float(source.low), float(source.high))
            made = build.image_views(recipe, given, method.views, small=getattr(method, "small_views", False))

            def views(content, generator, device, made=made):
                own = torch.as_tensor(content).float().flatten(1).std(1)[:, None, None, None]  # (B, 1, 1, 1)
                return [v / own * 64 for v in made(content, generator, device)]

            hooks = Hooks(lambda row, m=method, a=after: a.update({row["step"]: _held(m)}), False,
                          save=lambda loop, s=saved, **how: s.append((loop.step, _held(loop.method))),
                          study=lambda batch, step, k=kept: k.append((step, batch)) or "there")  # fmt: skip
            try:
                done = learn(source, recipe, method, hooks, engine=Engine(skip_nan=skip), views=views)
            except UserError as error:
                hold(not skip and "\n" not in str(error) and "there" in str(error), str(error))
                (step, held), (broken, batch) = saved[-1], kept[-1]
                hold(step == _AT and broken == _AT + 1 and blank in batch.index, f"stopped after {step}, at {broken}")
                for state in (held, method.state_dict()):
                    wrong = [k for k, v in after[_AT].items() if not torch.equal(v, state[k])]
                    hold(not wrong, f"{name}: a step without a finite loss has moved {wrong}")
            else:
                hold(skip, f"{name}: a blank image went unseen")
                hold(done.loop.skipped == there > 0, f"{name}: {done.loop.skipped} steps left out, not {there}")
                hold(all(torch.isfinite(v).all() for v in method.state_dict().values() if v.is_floating_point()),
                     f"{name}: not finite after steps that were left out")  # fmt: skip
                hold(done.loop.step == _STEPS, f"ended at step {done.loop.step}")

    return prove


def forced(ground: Ground, optimiser: str) -> None:
    """The command with a learning rate that breaks it: exit 2, one line, the batch on disk; and so when resumed."""
    run = ground.folder / f"forced-{optimiser}"
    shutil.rmtree(run, ignore_errors=True)
    argv = ground.begin(run, "--steps", "60", "--optim.name", optimiser, "--optim.lr", "1e30", *OFTEN)
    attempt = forked(argv, run.with_suffix(".log"))
    hold(attempt.wait() == 2 and "not-finite-" in attempt.line, attempt.said[-800:])
    (file,) = run.glob("not-finite-*.npz")
    step = int(file.stem.split("-")[-1])
    with np.load(file, allow_pickle=False) as held:
        hold((held["content"][..., 0] == np.load(ground.plain)[held["index"]]).all(), f"{file} is another batch")
    last = checkpoints(run)[-1]
    hold(last.name == f"step-{step - 1:08}", f"{last} is not of the step before {step}")
    hold(all(torch.isfinite(t).all() for t in keeper.checked(last).tensors(keeper.METHOD).values()), f"{last}: NaN")
    hold(json.loads((run / "doctor.jsonl").read_text().splitlines()[-1])["name"] == "not_finite", "doctor.jsonl")
    before = weights(run)
    again = forked(["train", "--resume", str(run)], ground.folder / "again.log")
    hold(again.wait() == 2 and f"not-finite-{step}.npz" in again.line and weights(run) == before, again.said[-500:])


def prove(ground: Ground) -> str:
    short = ground.short
    tried = 0
    for name in ("moco",) if short else METHODS:
        for seed in (0,) if short else (0, 1, 2):
            attempt = called(blank_image(ground, name, seed), ground.folder / "blank.log")
            hold(attempt.wait() == 0, f"{name}, seed {seed}: {attempt.said[-800:]}")
            tried += 1
    for optimiser in ("sgd",) if short else ("sgd", "adamw"):
        forced(ground, optimiser)
    return (f"{tried} times an image for which the views divide by 0 ({', '.join(METHODS)}): stopped at its step with "
            f"weights, twins, queues and BatchNorm's statistics equal to those before, to the bit; with --skip-nan "
            f"each of its steps was left out and counted, all that is kept stayed finite. Learning rate 1e30 by the "
            f"command: one line, exit 2, the batch loads and is the right one, a checkpoint of the step before, "
            f"the same when resumed")  # fmt: skip
