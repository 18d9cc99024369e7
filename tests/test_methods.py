"""Every method there is a file for: it learns, resumes to the bit, is the same on two processes, says what it needs."""

import copy
import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from processes import spawn

import nearfar
from nearfar import build, cli, methods
from nearfar import recipe as recipes
from nearfar.data import Loader, open_source
from nearfar.encoders import image_encoder
from nearfar.encoders.norm import synchronise
from nearfar.evaluate import evaluate
from nearfar.methods.parts import Progress
from nearfar.training import checkpoint, optim
from nearfar.training.loop import step_generator

NAMES = methods.names()
UNLIKE = {"ibot"}  # methods whose encoder must be of a kind of its own: tested in their own files


def tiny(name: str, source, seed: int = 0, **changes):
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


class Training:
    """A few steps of a method in float64, by DDP's rule where there are several processes."""

    def __init__(self, name: str) -> None:
        from nearfar import dist

        torch.manual_seed(0)
        self.source = images()
        recipe = tiny(name, self.source)
        encoder = image_encoder("cnn", self.source.shape, torch.full((3,), 0.5), torch.full((3,), 0.3), width=4)
        self.method = methods.module(name).Method(encoder, recipe.method_config(), 4, len(self.source)).double()
        self.method.train()
        self.model = self.method
        if dist.world() > 1:
            synchronise(self.method)
            self.model = torch.nn.parallel.DistributedDataParallel(self.method, forward_sync_buffers=False)
        self.config = dataclasses.replace(recipe.optim, name="sgd", lr=0.005)  # small, as some losses are steep
        self.optimizer = optim.build(self.config, self.method)
        self.loader = Loader(self.source, recipe.batch, 0, dist.rank(), dist.world(),
                             per_class=getattr(self.method, "per_class", 0))  # fmt: skip
        given = build.Input(tuple(self.source.shape), 0.0, 255.0)
        self.views = build.image_views(recipe, given, self.method.views, rank=dist.rank(), world=dist.world(),
                                       small=getattr(self.method, "small_views", False))  # fmt: skip

    def run(self, start: int, stop: int) -> list[float]:
        losses = []
        for step in range(start, stop):
            optim.set_rates(self.optimizer, self.config, 0.1 + step / 20)
            batch, generator = self.loader.batch(step), step_generator(0, step)
            if getattr(self.method, "wants_maps", False):
                seen = [v.changed(pixels=v.pixels.double()) for v in self.views.seen(batch.content, generator)]
            else:
                seen = [v.double() for v in self.views(batch.content, generator)]
            progress = Progress(step, step / 20, step / self.loader.steps_per_epoch, generator)
            labels = torch.as_tensor(batch.label) if methods.module(self.method_name).SUPERVISED else None
            out = self.model(seen, torch.as_tensor(batch.index), labels, progress)
            self.optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            getattr(self.method, "before_step", lambda progress: None)(progress)
            self.optimizer.step()
            self.method.after_step(progress)
            losses.append(float(out.loss.detach()))
        return losses

    @functools.cached_property
    def method_name(self) -> str:
        return type(self.method).__module__.rpartition(".")[2].replace("_", "-")


def steps_of(name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    training = Training(name)
    return training.run(0, 6), training.method.state_dict()


def all_steps(names: list[str]) -> dict:
    return {name: steps_of(name) for name in names}


def test_two_processes_are_one():
    """Six steps, more than an epoch: the same losses, weights, twins, queues, prototypes and assignments."""
    names = [n for n in NAMES if n not in UNLIKE]
    ones = all_steps(names)
    wrong = []
    for rank, got in enumerate(spawn(2, all_steps, names, seconds=400)):
        for name in names:
            (one, held), (two, there) = ones[name], got[name]
            if not np.allclose(two, one, rtol=1e-6, atol=1e-9):
                wrong.append(f"{name}, process {rank}: losses {two}, not {one}")
            wrong += [f"{name}, process {rank}: {key}" for key, value in held.items()
                      if not torch.allclose(there[key].double(), value.double(), rtol=1e-5, atol=1e-6, equal_nan=True)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in UNLIKE])
def test_it_goes_on_from_a_checkpoint_to_the_bit(name, tmp_path):
    """Weights and everything else that decides training are in the file: twin, queue, prototypes, centre."""
    whole = Training(name)
    first = whole.run(0, 3)
    checkpoint.save(tmp_path / "c.safetensors", whole.method.state_dict(), {})
    held = copy.deepcopy(whole.optimizer.state_dict())
    rest = whole.run(3, 7)
    again = Training(name)
    again.method.load_state_dict(checkpoint.load(tmp_path / "c.safetensors")[0])
    again.optimizer.load_state_dict(held)
    assert again.run(3, 7) == rest
    assert first + rest == Training(name).run(0, 7)
    for key, value in whole.method.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), again.method.state_dict()[key].numpy(), err_msg=key)


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
    build.calibrate(first, parts[0], (0.0, 255.0))
    spaces["untrained"] = tuple(build.embed(first, p, (0.0, 255.0)) for p in parts)
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
