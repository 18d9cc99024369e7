"""The losses' page runs and prints what it says, has every loss as it is in the code, and names tests that exist."""

import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import spawn

import nearfar.losses
from nearfar.losses import CrossBatchMemory, triplet

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = (ROOT / "docs" / "losses.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:^```\n(.*?)^```$)?", re.M | re.S)  # code, and what it prints
COMMON = {"z", "groups", "keys", "key_groups", "reduction"}  # said above the tables


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def launched(monkeypatch=None, rank: int = 0, world: int = 1, port: str = "") -> dict[str, str]:
    """What torchrun sets."""
    said = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port or free_port()}
    for name, value in said.items() if monkeypatch else ():
        monkeypatch.setenv(name, value)
    return os.environ | said


def test_the_losses_page_runs_and_prints_what_it_says(monkeypatch):
    """Block after block, in one namespace, as one process that torchrun started."""
    launched(monkeypatch)
    held: dict = {"__name__": "page"}
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == 4
    for code, printed in blocks:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, "docs/losses.md", "exec"), held)
        assert said.getvalue() == printed


def test_the_views_page_runs_and_prints_what_it_says():
    (code, printed), *more = BLOCK.findall((ROOT / "docs" / "views.md").read_text())
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "docs/views.md", "exec"), {"__name__": "page"})
    assert said.getvalue() == printed
    assert not more


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_on_every_page_is_python_and_imports_what_there_is(page):
    for code, _ in BLOCK.findall(page.read_text()):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "nearfar":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nearfar":
                assert hasattr(nearfar, node.attr), ast.unparse(node)


def rows_of_tables() -> dict[str, list[str]]:
    """name -> the cells after it, of every row that begins with a name alone."""
    cells = [[c.strip() for c in line.strip().strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    named = [(m[1], row) for row in cells if (m := re.fullmatch(r"`(\w+)`", row[0]))]
    assert len({name for name, _ in named}) == len(named)
    return {name: row[1:] for name, row in named}


def test_every_loss_stands_in_a_table_and_nothing_else():
    assert set(rows_of_tables()) == set(nearfar.losses.__all__)


@pytest.mark.parametrize("name", nearfar.losses.__all__)
def test_parameters_and_papers_are_as_in_the_code(name):
    row = rows_of_tables()[name]
    thing = getattr(nearfar.losses, name)
    said = ast.parse(f"f({row[2].strip('`')})", mode="eval").body
    told = {a.id: inspect.Parameter.empty for a in said.args}
    told |= {k.arg: ast.literal_eval(k.value) for k in said.keywords}
    have = {p.name: p.default for p in inspect.signature(thing).parameters.values()}
    kept = COMMON - {"z"} if "groups" not in have else COMMON  # a z without groups is another thing
    assert told == {p: default for p, default in have.items() if p not in kept}
    for paper in re.findall(r"\d{4}\.\d{5}", row[1]):
        assert f"arXiv:{paper}" in thing.__doc__, paper


def test_reduction_is_where_the_page_says():
    without = {name for name in nearfar.losses.__all__ if inspect.isfunction(getattr(nearfar.losses, name))
               and "reduction" not in inspect.signature(getattr(nearfar.losses, name)).parameters}  # fmt: skip
    told = re.search(r"`reduction` is .*?have no `reduction`", PAGE, re.DOTALL)[0].split("`\"none\"`; ")[-1]
    no_loss = {name for name in without if name.endswith("_temperature")} | {
        "in_chunks", "matryoshka", "pair_probability", "sinkhorn", "spherical_kmeans", "update_centre"}  # fmt: skip
    assert set(re.findall(r"`(\w+)`", told)) - {"reduction"} == without - no_loss
    eye = torch.eye(3)
    for loss in (nearfar.losses.sigmoid, nearfar.losses.clip):
        with pytest.raises(ValueError, match="none"):
            loss(eye, torch.arange(3), eye, torch.arange(3), reduction="none")


def test_every_test_that_keeps_a_trap_out_exists():
    named = re.findall(r"`tests/(\w+\.py)::(\w+)`", PAGE)
    assert len(named) > 12
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_two_processes_have_the_gradient_of_one():
    """The page's own DDP block, on unequal parts."""
    (code,) = (code for code, _ in BLOCK.findall(PAGE) if "DistributedDataParallel" in code)
    first = BLOCK.findall(PAGE)[0][0].split("g = torch")[0]  # the imports
    code = first + code + "print([loss.item(), *(v for p in model.parameters() for v in p.grad.flatten().tolist())])"
    # the model outlives its process group here, and gloo's threads now and then abort the interpreter's own way out
    code += "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)"
    got = {}
    for world in (1, 2):
        port = free_port()
        parts = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=launched(rank=rank, world=world, port=port) | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)
            for rank in range(world)
        ]  # fmt: skip
        for p in parts:
            out, error = p.communicate(timeout=120)
            assert p.returncode == 0, error
            got.setdefault(world, []).append(torch.tensor(ast.literal_eval(out)))
    assert len(got[1][0]) == 1 + 16 * 8 + 8 + 1  # the loss, a matrix, a bias, the temperature
    assert float(got[1][0].abs().min()) > 1e-6
    for part in got[2]:
        torch.testing.assert_close(part, got[1][0], rtol=1e-4, atol=1e-6)


def test_more_triplets_than_a_whole_number_of_31_bits_counts():
    """A batch against a memory: anchors × keys × keys, as pytorch-metric-learning #688 has it."""
    n, m = 64, 12_000
    memory = CrossBatchMemory(m, 1)
    memory.push(torch.ones(m, 1), torch.arange(m) % 2)
    triplets = n * (m // 2) ** 2
    assert triplets > 2**31
    z = torch.ones(n, 1, requires_grad=True)
    for mining, count in (("all", triplets), ("semi-hard", n * m // 2), ("hard", n)):
        loss = triplet(z, torch.arange(n) % 2, *memory(), margin=0.5, mining=mining, reduction="sum")
        loss.backward()  # all rows coincide: each triplet costs its margin
        assert float(loss.detach()) == pytest.approx(0.5 * count, rel=1e-6)
    assert bool(z.grad.isfinite().all())


def call(name: str, z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """A loss by its name, on what it takes."""
    loss = getattr(nearfar.losses, name)
    takes = list(inspect.signature(loss).parameters)
    other, weights = z.flip(1), torch.eye(4, dtype=z.dtype)
    if takes[:2] == ["z", "groups"]:
        return loss(z, ids, *((other, ids) if "keys" in takes else (weights,)))
    if takes[2:3] in (["scores"], ["same"]):
        return loss(z, other, ids % 2)
    if takes[0] in ("scores", "student"):
        return loss([z, other]) if name == "swav" else loss([z, other], [other, z], weights[0])
    if "generator" in takes and takes[0] == "z":
        return loss(z, generator=torch.Generator().manual_seed(0))
    return loss([z, other]) if name == "mmcr" else loss(z, other)


def step(parts: list[slice], names: list[str]) -> dict[str, list]:
    """Each loss and DDP's gradient, on this process's part."""
    x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    world = len(parts)
    mine, got = parts[torch.distributed.get_rank() if world > 1 else 0], {}
    for name in names:
        w = torch.eye(4, dtype=torch.float64).requires_grad_()
        value = call(name, x[mine] @ w, (torch.arange(7) // 2)[mine])
        value.backward()
        if world > 1:
            torch.distributed.all_reduce(w.grad)
        got[name] = [value.item(), *(w.grad / world).flatten().tolist()]
    return got


def test_a_process_without_rows_neither_hangs_nor_changes_the_loss():
    no_loss = {"constant_temperature", "linear_temperature", "cosine_temperature", "in_chunks", "matryoshka",
               "pair_probability", "prototype_cross_entropy", "sinkhorn", "spherical_kmeans",
               "update_centre"}  # fmt: skip
    names = [n for n in nearfar.losses.__all__ if inspect.isfunction(getattr(nearfar.losses, n)) and n not in no_loss]
    want = step([slice(0, 7)], names)
    for got in spawn(2, step, [slice(0, 7), slice(7, 7)], names, seconds=60):
        for name in names:
            assert got[name] == pytest.approx(want[name], rel=1e-9, abs=1e-12), name
            assert max(abs(v) for v in got[name][1:]) > 0, name
