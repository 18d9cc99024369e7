"""Flags of the engine: several processes by the command line, shards, compiling, chunks; and what is refused."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as td
import torch.nn.functional as F
from processes import all_steps, spawn

import nearfar
from nearfar.losses import nt_xent
from nearfar.training import keeper
from nearfar.training.engine import Engine

DIGITS = ["digits", "--steps", "5", "--batch", "64", "--width", "8", "--optim.name", "sgd", "--optim.lr", "0.05"]


def nf(*words, launcher=("-m",)):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *launcher, "nearfar", "train", *words], env=env, capture_output=True,
                          text=True, timeout=100)  # fmt: skip


def kept(folder):
    losses = [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return losses, keeper.newest(folder / "checkpoints", print).tensors(keeper.METHOD)


def assert_equal_runs(a, b, tolerance):
    (losses, held), (others, there) = kept(a), kept(b)
    np.testing.assert_allclose(losses, others, rtol=tolerance)
    assert held.keys() == there.keys()
    for name, value in held.items():
        np.testing.assert_allclose(value.double(), there[name].double(), rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("flags", "tolerance"), [
    (["--precision", "64-true", "--accumulate", "2", "--method", "swav"], 1e-10),
    (["--precision", "32-true", "--strategy", "fsdp", "--method", "byol"], 2e-4),
])  # fmt: skip
def test_two_devices_are_one(flags, tolerance, tmp_path):
    """By the command line: the loss curve, the weights, and one judged run of both."""
    two = nf(*DIGITS, *flags, "--devices", "2", "--checkpoint-minutes", "1e-5", "--out", str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("report  ") == 1
    alone = [word for word in flags if word not in ("--strategy", "fsdp")]
    one = nf(*DIGITS, *alone, "--out", str(tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    assert_equal_runs(tmp_path / "two", tmp_path / "one", tolerance)
    assert (tmp_path / "two" / "results.json").is_file()
    if "fsdp" in flags:  # shards are kept whole, and cut again
        again = shutil.copytree(tmp_path / "two", tmp_path / "again")
        shutil.rmtree(keeper.listed(again / "checkpoints")[0])
        resumed = nf("--resume", str(again))
        assert resumed.returncode == 0, resumed.stderr
        assert "resuming" in resumed.stderr
        assert_equal_runs(again, tmp_path / "two", 0)


def without_gradient(z, groups):
    """NT-Xent on rows that were gathered without a gradient, each process's mean over its own anchors."""
    if not td.is_initialized():
        return nt_xent(z, groups, temperature=0.5)
    rows, ids = [torch.empty_like(z) for _ in range(2)], [torch.empty_like(groups) for _ in range(2)]
    td.all_gather(rows, z.detach())
    td.all_gather(ids, groups)
    everyone, all_ids = torch.cat(rows), torch.cat(ids)  # (2B, d), (2B,)
    first = td.get_rank() * len(z)
    logits = F.normalize(z, dim=1) @ F.normalize(everyone, dim=1).T / 0.5  # (B, 2B)
    itself = torch.arange(len(z)) + first
    logits = logits.scatter(1, itself[:, None], -torch.inf)
    same = (groups[:, None] == all_ids[None, :]).scatter(1, itself[:, None], False)
    return (logits.logsumexp(1) - logits[same]).mean()


def with_gradient(z, groups):
    return nt_xent(z, groups, temperature=0.5)


def test_a_gather_without_gradient_is_far_off_and_ours_is_exact():
    """Why :func:`nearfar.dist.gather` has a backward: without it the gradient under DDP is another one."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(4, 6, generator=g, dtype=torch.float64), torch.randn(6, 4, generator=g, dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 1])  # a pair lies on one process
    cases = {"with": (with_gradient, x, [groups], [w]), "without": (without_gradient, x, [groups], [w])}
    one, two = all_steps(cases), spawn(2, all_steps, cases)[0]
    off = {name: float((two[name][1][0] - one[name][1][0]).norm() / one[name][1][0].norm()) for name in cases}
    assert off["with"] < 1e-14
    assert off["without"] > 0.1, off


def test_chunks_and_workers_change_nothing_without_batchnorm(tmp_path, digits):
    """Gradient caching is exact: an encoder without BatchNorm learns the same in chunks of 10 images."""
    x = digits[0][:200].repeat(4, axis=1).repeat(4, axis=2)
    runs = [nearfar.train(x, out=tmp_path / str(i), steps=3, batch=32, encoder="timm:vit_tiny_patch16_224",
                          precision="64-true", settings={"norm": "none"}, evaluate=False, show=False, **how)
            for i, how in enumerate(({}, {"chunk": 10, "workers": 0}))]  # fmt: skip
    assert_equal_runs(runs[0].folder, runs[1].folder, 1e-9)


def test_a_compiled_encoder_learns_the_same(tmp_path, digits):
    runs = [nearfar.train(digits[0][:200], out=tmp_path / str(i), steps=4, batch=32, width=4, precision="32-true",
                          evaluate=False, show=False, compile=compiled)
            for i, compiled in enumerate((False, True))]  # fmt: skip
    assert_equal_runs(runs[0].folder, runs[1].folder, 5e-2)
    assert not hasattr(runs[1].encoder.forward, "_torchdynamo_orig_callable")


@pytest.mark.parametrize(("changes", "says"), [
    ({"devices": -1}, "devices = -1 must be at least 0"),
    ({"checkpoint_minutes": 0}, "checkpoint_minutes = 0 must be above 0"),
    ({"strategy": "dpp"}, "unknown strategy 'dpp'; did you mean 'ddp'"),
    ({"accumulate": 3, "batch": 32}, "batch = 32 does not divide into accumulate = 3 parts"),
])  # fmt: skip
def test_what_the_engine_refuses(changes, says, tmp_path, digits):
    with pytest.raises(ValueError, match=says):
        nearfar.train(digits[0][:64], out=tmp_path / "r", steps=1, **changes)
    assert not list(tmp_path.iterdir())


def test_the_engine_is_kept_for_resuming(tmp_path, digits):
    run = nearfar.train(digits[0][:64], out=tmp_path / "r", steps=1, batch=16, width=4, keep=5, evaluate=False)
    assert Engine(**json.loads((run.folder / "engine.json").read_text())).keep == 5
    with pytest.raises(ValueError, match="a run is resumed by its own recipe: leave out steps"):
        nearfar.train(resume=run.folder, steps=3)
    with pytest.raises(ValueError, match="was trained on an array: give it again"):
        nearfar.train(resume=run.folder)


def test_a_batch_that_does_not_divide_is_one_line_of_all_processes(tmp_path):
    got = nf("digits", "--batch", "63", "--steps", "2", "--devices", "2", "--out", str(tmp_path / "r"))
    assert got.returncode == 2
    assert got.stderr.count("does not divide among 2 processes") == 1, got.stderr
