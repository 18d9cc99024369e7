"""Every method on images: it learns, resumes to the bit, is the same on two processes, says what it needs."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from processes import torchrun

import nearfar
from nearfar import build, cli, methods
from nearfar import recipe as recipes
from nearfar.data import open_source
from nearfar.evaluate import evaluate
from nearfar.learning import Hooks, checkpoint_of, fresh, learn
from nearfar.training.engine import Engine, launch
from nearfar.training.keeper import Keeper, checked

NAMES = methods.names("image")
UNLIKE = {"ibot"}  # methods whose encoder must be of a kind of its own: tested in their own files


def tiny(name: str, source, seed: int = 0, optim_changes=None, **changes):
    """A method's small recipe at a size for tests: narrow, few prototypes, a short queue."""
    known = {f.name for f in dataclasses.fields(methods.module(name).Config)}
    small = {"hidden": 32, "dim": 8, "queue": 64, "prototypes": 16, "clusters": "8,12", "warmup_epochs": 0.1,
             "frozen_epochs": 0.1, "queue_from": 0.1, "slices": 16, "predictor_hidden": 16}  # fmt: skip
    recipe = recipes.of(name, source="array", batch=16, width=4, seed=seed, precision="32-true", **changes)
    kinds = {f.name: str(f.type) for f in dataclasses.fields(methods.module(name).Config)}
    held = {k: v for k, v in small.items() if k in known and kinds[k] in ("int", "float")}
    return build.resolve(recipe.changed(settings=recipe.settings | held), source)


def images(n: int = 64, side: int = 16):
    g = np.random.default_rng(0)
    return open_source((g.integers(0, 256, (n, side, side, 3), dtype=np.uint8), np.arange(n) % 4)).train


def learnt(name: str, fabric=None, start=None, kept=None, **changes):
    """Six steps of a method in float64, more than an epoch: losses, and everything that is kept of it."""
    source = images()
    recipe = tiny(name, source, steps=6, **changes).changed(precision="64-true")
    recipe = recipe.changed(optim=dataclasses.replace(recipe.optim, **changes.get("optim_changes", {})))
    method = fresh(source, recipe)
    method.batch_norm = "whole"  # as one process has it, for methods that deal their rows anew instead
    rows = list(start.about["rows"]) if start else []

    def save(loop, final=False, wait=False):
        if kept is not None:
            files, about = checkpoint_of(loop, {}, final)
            kept.write(loop.step, files, about | {"rows": list(rows)})
            kept.wait()

    engine = Engine(checkpoint_minutes=1e-9 if kept else 1.0)
    learn(source, recipe, method, Hooks(rows.append, False, save=save), engine=engine, fabric=fabric, start=start)
    return [row["loss"] for row in rows], method.state_dict()


def all_learnt(names: list[str]) -> dict:
    fabric = launch(Engine(), "64-true")
    return {name: learnt(name, fabric, optim_changes=STEEP) for name in names}


STEEP = {"name": "sgd", "lr": 0.005}  # as some losses are steep


def test_two_processes_are_one():
    """The loop under DDP on two gloo processes: the same losses, weights, twins, queues, prototypes, assignments."""
    names = [n for n in NAMES if n not in UNLIKE]
    ones = all_learnt(names)
    wrong = []
    for rank, got in enumerate(torchrun(2, all_learnt, names, seconds=400)):
        for name in names:
            (one, held), (two, there) = ones[name], got[name]
            if not np.allclose(two, one, rtol=1e-6, atol=1e-9):
                wrong.append(f"{name}, process {rank}: losses {two}, not {one}")
            wrong += [f"{name}, process {rank}: {key}" for key, value in held.items()
                      if not torch.allclose(there[key].double(), value.double(), rtol=1e-5, atol=1e-6, equal_nan=True)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in UNLIKE])
def test_it_goes_on_from_a_checkpoint_to_the_bit(name, tmp_path):
    """Weights, optimiser and everything else that decides training are in a checkpoint: twin, queue, centre, bank."""
    kept = Keeper(tmp_path, keep=9)
    losses, held = learnt(name, kept=kept)
    for path in (tmp_path / "step-00000003", tmp_path / "step-00000005"):
        again, there = learnt(name, start=checked(path))
        assert again == losses
        for key, value in held.items():
            np.testing.assert_array_equal(value.numpy(), there[key].numpy(), err_msg=f"{key} from {path.name}")


@pytest.mark.parametrize("name", NAMES)
def test_its_recipes_are_recipes(name, capsys):
    module = methods.module(name)
    assert {"small", "paper"} <= set(module.PRESETS)
    for preset in module.PRESETS:
        recipe = recipes.filled(name, preset)
        assert recipes.from_toml(recipes.to_toml(recipe)) == recipe
        assert recipe.method == name
    assert recipes.of(name, "paper").image_size or module.SUPERVISED
    with pytest.raises(ValueError, match=f"{name} has no preset 'smal'; did you mean 'small'"):
        recipes.of(name, "smal")
    assert cli.main(["methods", name]) == 0
    assert f"--method {name} --preset paper" in capsys.readouterr().out


def test_cpc_learns_to_foretell(digits, tmp_path):
    """Patches of digits are foretold far better than by guessing; few labels gain nothing by it (docs/methods.md)."""
    run = nearfar.train(digits[0][:800], method="cpc", out=tmp_path / "r", steps=150, batch=128, width=8,
                        evaluate=False)  # fmt: skip
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] > 0.9 * rows[0]["chance"]
    assert rows[-1]["loss"] < 0.7 * rows[-1]["chance"]
    assert (run.folder / "doctor.jsonl").read_text() == ""


@pytest.mark.parametrize("name", [n for n in NAMES if n not in {*UNLIKE, "cpc"}])
def test_it_learns(name, digits, tmp_path):
    """A short form of benchmarks/methods.py on digits: what is learnt beats the untrained encoder at few labels."""
    x, y = digits
    known = {f.name for f in dataclasses.fields(methods.module(name).Config)}
    settings = recipes.of(name).settings | {k: v for k, v in {"temperature": 0.5}.items() if k in known}
    run = nearfar.train((x[:800], y[:800]), method=name, out=tmp_path / "r", steps=150, batch=128, width=8, holdout=0,
                        settings=settings, evaluate=False, seed=3)  # fmt: skip
    assert (run.folder / "doctor.jsonl").read_text() == ""  # no false alarm
    first = run._fresh().eval()
    spaces = {"trained": (run.embed(x[:800]), run.embed(x[800:]))}
    parts = [open_source(part).train for part in (x[:800], x[800:])]
    given = build.input_of(parts[0])
    build.calibrate(first, parts[0], given)
    spaces["untrained"] = tuple(build.embed(first, p, given) for p in parts)
    got = evaluate(spaces, y[:800], y[800:])
    for column in ("1 label linear", "5 labels linear", "kNN"):  # labels are scarce: there the training must show
        assert got["trained"][column].value > got["untrained"][column].value + 0.02, column


@pytest.mark.parametrize("name", [n for n in NAMES if methods.module(n).SUPERVISED])
def test_supervised_methods_ask_for_labels(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} learns from labels and array has none"):
        nearfar.train(np.zeros((20, 8, 8), np.uint8), method=name, out=tmp_path / "r", batch=8)
    with pytest.raises(ValueError, match=f"{name} tells classes apart and all labels of array are the same"):
        nearfar.train((np.zeros((20, 8, 8), np.uint8), ["cat"] * 20), method=name, out=tmp_path / "r", batch=8)
    assert not (tmp_path / "r").exists()


def test_unsupervised_methods_do_not_see_labels(digits, tmp_path):
    x, y = digits
    runs = [nearfar.train(data, out=tmp_path / str(i), steps=3, batch=32, width=4, holdout=0, evaluate=False)
            for i, data in enumerate([(x[:100], y[:100]), (x[:100], y[:100][::-1])])]  # fmt: skip
    np.testing.assert_array_equal(runs[0].embed(x[:20]), runs[1].embed(x[:20]))
