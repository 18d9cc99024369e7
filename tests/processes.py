"""Real gloo processes for tests: run a function on each, or hold a loss on P processes against one."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Callable, Sequence

import torch
import torch.distributed as td
import torch.multiprocessing as mp


def _entry(rank: int, world: int, port: int, fn: Callable, args: tuple, out: mp.SimpleQueue, started: bool) -> None:
    try:
        torch.set_num_threads(1)
        if started:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(world),
                           "LOCAL_WORLD_SIZE": str(world), "GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
        else:
            td.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
        out.put((rank, pickle.dumps(fn(*args)), None))  # bytes: a shared tensor would die with its process
        td.barrier()
        td.destroy_process_group()
    except BaseException:
        out.put((rank, None, traceback.format_exc()))


def torchrun(world: int, fn: Callable, *args: object, seconds: float = 120) -> list:
    """:func:`spawn` for a ``fn`` that joins the process group itself, told as torchrun tells it."""
    return spawn(world, fn, *args, seconds=seconds, started=True)


def spawn(world: int, fn: Callable, *args: object, seconds: float = 120, started: bool = False) -> list:
    """``fn(*args)`` on each of ``world`` gloo processes; what each returned, in rank order. ``fn`` must be importable.

    Fails where a process raises, or hangs for longer than ``seconds``.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=_entry, args=(r, world, port, fn, args, out, started), daemon=True)
               for r in range(world)]  # fmt: skip
    for w in workers:
        w.start()
    try:
        got = sorted((out.get(timeout=seconds) for _ in workers), key=lambda g: g[0])
    finally:
        for w in workers:
            w.join(5)
            w.kill()
    for rank, _, error in got:
        assert error is None, f"process {rank}:\n{error}"
    return [pickle.loads(value) for _, value, _ in got]


def split(n: int, world: int) -> list[slice]:
    """Unequal parts of n rows, the last the smallest."""
    each = -(-n // world) + (1 if world > 1 and n > 2 * world else 0)
    return [slice(min(n, r * each), min(n, (r + 1) * each)) for r in range(world)]


def step(loss: Callable[..., torch.Tensor], x: torch.Tensor, rows: Sequence[torch.Tensor],
         weights: Sequence[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:  # fmt: skip
    """One training step by DDP's rule on this process's part of the rows.

    ``z = x @ weights[0]``; ``loss(z, *rows, *weights[1:])``. Rows and x are whole and cut here. -> the loss, and the
    gradients' mean over processes
    """
    on = td.is_available() and td.is_initialized()
    world, rank = (td.get_world_size(), td.get_rank()) if on else (1, 0)
    mine = split(len(x), world)[rank]
    weights = [w.clone().requires_grad_() for w in weights]
    value = loss(x[mine] @ weights[0], *(r[mine] for r in rows), *weights[1:])
    value.backward()
    grads = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]
    for g in grads if world > 1 else ():
        td.all_reduce(g)
        g /= world
    return float(value.detach()), grads


def all_steps(cases: dict[str, tuple]) -> dict[str, tuple[float, list[torch.Tensor]]]:
    """:func:`step` for each named ``(loss, x, rows, weights)``."""
    return {name: step(*case) for name, case in cases.items()}


def assert_processes_equal_one(cases: dict[str, tuple], world: int, tolerance: float = 1e-10) -> None:
    """Loss and gradients on ``world`` processes with unequal parts equal those of one, for every case (float64)."""
    one = all_steps(cases)
    for rank, got in enumerate(spawn(world, all_steps, cases)):
        for name, (value, grads) in got.items():
            want, want_grads = one[name]
            said = f"{name}: {value} on process {rank}, {want} on one"
            assert abs(value - want) <= tolerance * max(1, abs(want)), said
            for i, (a, b) in enumerate(zip(grads, want_grads)):
                said = f"{name}, weight {i}, process {rank}: off by {float((a - b).abs().max()):.2e}"
                assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), said
                assert float(b.abs().max()) > 0 or name.startswith("flat"), f"{name}: a gradient of zero proves nothing"
