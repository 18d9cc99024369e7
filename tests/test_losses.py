import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.losses import info_nce, nt_xent


def naive_nt_xent(z: np.ndarray, groups: list[int], t: float) -> float:
    """Equation 1 of SimCLR, and SupCon's L_out for several positives, in float64 loops."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if groups[j] == groups[i]]
        bottom = sum(math.exp(z[i] @ z[j] / t) for j in others)
        for p in positives:
            total -= math.log(math.exp(z[i] @ z[p] / t) / bottom) / len(positives)
    return total / len(z)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from([0.1, 0.5, 1.0]), st.integers(1, 5))
def test_nt_xent_is_the_papers(seed, n, t, kinds):
    rng = np.random.default_rng(seed)
    z, groups = rng.normal(size=(n, 5)), rng.integers(0, kinds, n)
    got = nt_xent(torch.tensor(z), torch.tensor(groups), temperature=t)
    assert float(got) == pytest.approx(naive_nt_xent(z, groups.tolist(), t), rel=1e-9, abs=1e-12)


def test_gradient_and_row_order():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(8, 4, dtype=torch.float64, generator=g, requires_grad=True)
    groups = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    assert torch.autograd.gradcheck(lambda x: nt_xent(x, groups), z)
    order = torch.randperm(8, generator=g)
    torch.testing.assert_close(nt_xent(z, groups), nt_xent(z[order], groups[order]))


def test_cross_entropy_is_info_nce_against_every_class():
    g = torch.Generator().manual_seed(1)
    z, words = torch.randn(6, 8, generator=g), torch.randn(20, 8, generator=g)
    target = torch.randint(0, 20, (6,), generator=g)
    unit = torch.nn.functional.normalize
    want = torch.nn.functional.cross_entropy(unit(z) @ unit(words).T / 0.1, target)
    torch.testing.assert_close(info_nce(z, target, words, torch.arange(20), temperature=0.1), want)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one id a row"):
        nt_xent(torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(N, d\)"):
        nt_xent(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="reduction 'men'"):
        nt_xent(torch.eye(4), torch.tensor([0, 0, 1, 1]), reduction="men")


def _two_processes(rank: int, port: int, z: torch.Tensor, groups: torch.Tensor, w: torch.Tensor, out) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    w = w.clone().requires_grad_()
    mine = slice(rank * 4, rank * 4 + 4)
    loss = nt_xent(z[mine] @ w, groups[mine])
    loss.backward()
    grad = w.grad.clone()
    torch.distributed.all_reduce(grad)  # as DDP does: the mean over processes
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    if rank == 0:
        out.put((float(total) / 2, (grad / 2).tolist()))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_processes_equal_one():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    g = torch.Generator().manual_seed(2)
    z, w = torch.randn(8, 5, dtype=torch.float64, generator=g), torch.randn(5, 3, dtype=torch.float64, generator=g)
    groups = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])  # positives live on the other process
    out = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_two_processes, (port, z, groups, w, out), nprocs=2)
    loss, grad = out.get()
    one = w.clone().requires_grad_()
    want = nt_xent(z @ one, groups)
    want.backward()
    assert loss == pytest.approx(float(want), abs=1e-12)
    np.testing.assert_allclose(grad, one.grad.numpy(), atol=1e-12)
