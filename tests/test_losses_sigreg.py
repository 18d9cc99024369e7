"""SIGReg against the paper's formula in loops, one process against several, and what is known of its values."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_processes_equal_one, spawn
from torch.autograd import gradcheck

from nearfar.losses import sigreg
from nearfar.losses.features import shared_seed

EXPECTED = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))  # of a sample of the normal: ∫ (1 - e^(-t²)) e^(-t²/2) dt
COLLAPSED = math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))  # a row, of zeros: ∫ (1 - e^(-t²/2))² …


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def directions(d: int, slices: int, generator: torch.Generator) -> torch.Tensor:
    """Those that a call with this generator takes. (d, S)"""
    inner = seeded(shared_seed(generator, torch.device("cpu")))
    return F.normalize(torch.randn(d, slices, dtype=torch.float64, generator=inner), dim=0)


def naive(z: np.ndarray, a: np.ndarray, points: int, reach: float) -> float:
    """Algorithm 1, in complex numbers, knot by knot over the whole interval."""
    values = []
    for s in range(a.shape[1]):
        x, integrand = z @ a[:, s], []
        t = np.linspace(-reach, reach, points)
        for knot in t:
            ecf = sum(np.exp(1j * knot * v) for v in x) / len(x)
            integrand.append(abs(ecf - math.exp(-(knot**2) / 2)) ** 2 * math.exp(-(knot**2) / 2))
        h = t[1] - t[0]
        values.append(len(z) * h * (sum(integrand) - (integrand[0] + integrand[-1]) / 2))
    return sum(values) / len(values)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.sampled_from([3, 5, 17]),
       st.sampled_from([1.0, 5.0]), st.sampled_from([0.1, 1.0, 20.0]))  # fmt: skip
def test_it_is_the_papers(seed, n, d, slices, points, reach, scale):
    z = draw(seed, n, d) * scale
    got = sigreg(z, generator=seeded(seed), slices=slices, points=points, reach=reach)
    want = naive(z.numpy(), directions(d, slices, seeded(seed)).numpy(), points, reach)
    assert float(got) == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_the_authors_optimised_form():
    """rbalestr-lab/lejepa, MINIMAL.md: 17 knots on [0, 3], each but the ends twice, are 33 on [-3, 3]."""
    z = draw(1, 12, 4)
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    weights, window = torch.full((17,), 2 * 3 / 16, dtype=torch.float64), torch.exp(-t.square() / 2)
    weights[[0, -1]] = 3 / 16
    x = (z @ directions(4, 8, seeded()))[..., None] * t
    apart = (x.cos().mean(0) - window).square() + x.sin().mean(0).square()
    want = (apart @ (weights * window) * 12).mean()
    torch.testing.assert_close(sigreg(z, generator=seeded(), slices=8, points=33, reach=3.0), want)


def test_gradcheck():
    z = draw(2, 5, 3).requires_grad_()
    assert gradcheck(lambda z: sigreg(z, generator=seeded(), slices=4), (z,))


def test_values_that_are_known():
    normal = [float(sigreg(draw(s, 256, 6), generator=seeded(s), slices=64)) for s in range(200)]
    spread = np.std(normal) / math.sqrt(len(normal))
    assert spread < 0.03
    assert abs(np.mean(normal) - EXPECTED) < 4 * spread
    one = torch.zeros(256, 6, dtype=torch.float64, requires_grad=True)
    loss = sigreg(one, generator=seeded(), slices=64)
    assert float(loss.detach()) == pytest.approx(256 * COLLAPSED, rel=1e-3)
    for wrong in (0.3 * draw(0, 256, 6), 2 * draw(0, 256, 6), draw(0, 256, 6) + 1, draw(0, 256, 6).sign(),
                  draw(0, 256, 6) * torch.tensor([1.0, 1, 1, 1, 1, 0])):  # fmt: skip
        assert float(sigreg(wrong, generator=seeded(), slices=64)) > 1.5 * EXPECTED
    # however far out a row lies, its gradient is bounded (theorem 4): by 2 · 2 ∫ |t| e^(-t²/2) dt
    far = (1e4 * draw(0, 16, 6)).requires_grad_()
    sigreg(far, generator=seeded(), slices=64).backward()
    assert float(far.grad.norm(dim=1).max()) < 8


def test_descent_makes_a_normal_of_something_else():
    z = (draw(0, 64, 2).sign() * torch.tensor([1.0, 0.2]) + 0.1 * draw(1, 64, 2) + 0.5).requires_grad_()
    optimizer, g = torch.optim.Adam([z], lr=0.02), seeded()
    for _ in range(200):
        optimizer.zero_grad()
        sigreg(z, generator=g, slices=8).backward()
        optimizer.step()
    z = z.detach()
    assert float(z.mean(0).abs().max()) < 0.1
    assert float((torch.cov(z.T) - torch.eye(2)).abs().max()) < 0.2


def test_knots_that_are_far_apart_do_not_see_a_row_that_is_far_away():
    """As the docstring says: at the defaults x and x + 10.05 are one, at more points they are two."""
    z = draw(0, 32, 1)
    for points, seen in ((17, False), (33, True)):
        near, far = (float(sigreg(v, generator=seeded(), points=points)) for v in (z, z + 2 * math.pi / 0.625))
        assert (abs(far - near) > 1) == seen


def test_what_is_drawn_is_the_generators_alone():
    z, g = draw(3, 8, 4), seeded(5)
    state, before = torch.get_rng_state(), z.clone()
    first, second = sigreg(z, generator=g, slices=3), sigreg(z, generator=g, slices=3)
    assert float(first) != float(second)  # other directions
    assert torch.equal(first, sigreg(z, generator=seeded(5), slices=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(z, before)
    order = torch.randperm(8, generator=seeded())
    torch.testing.assert_close(sigreg(z[order], generator=seeded(5), slices=3), first)
    torch.testing.assert_close(sigreg(z.T.contiguous().T, generator=seeded(5), slices=3), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_taken_to_float32(dtype):
    z = draw(4, 32, 4).to(dtype)
    exact = sigreg(z.double(), generator=seeded(), slices=16)
    z.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = sigreg(z, generator=seeded(), slices=16)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)
    got.backward()
    assert z.grad.dtype == dtype
    assert bool(z.grad.isfinite().all())


def test_bad_input_is_named():
    z = torch.randn(8, 3)
    bad = z.clone()
    bad[3, 1] = float("nan")
    for say, call in {
        "z holds NaN or infinite values in 1 of 8 rows": lambda: sigreg(bad, generator=seeded()),
        r"z must be \(N, d\), got \(8,\)": lambda: sigreg(z[:, 0], generator=seeded()),
        "give a generator": lambda: sigreg(z, generator=None),
        "slices must be a whole number of at least 1, got 0": lambda: sigreg(z, generator=seeded(), slices=0),
        "points must be a whole number of at least 3, got 2.5": lambda: sigreg(z, generator=seeded(), points=2.5),
        "points must be odd, so that one knot is at 0, got 16": lambda: sigreg(z, generator=seeded(), points=16),
        "reach must be a number above 0, got -5": lambda: sigreg(z, generator=seeded(), reach=-5),
        "at least one row over all processes": lambda: sigreg(z[:0], generator=seeded()),
    }.items():
        with pytest.raises(ValueError, match=say):
            call()


def ranked(z: torch.Tensor, slices: int) -> torch.Tensor:
    """Each process with a generator of its own: the first one's decides."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return sigreg(z, generator=seeded(rank), slices=slices)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world):
    x, w = draw(8, 13, 6), draw(9, 6, 4)
    cases = {"several": (partial(ranked, slices=5), x, (), (w,)),
             "a process without a row": (partial(ranked, slices=5), x[:4], (), (w,))}  # fmt: skip
    assert_processes_equal_one(cases, world, tolerance=1e-10)


def _bad_on_the_last() -> str:
    z = torch.ones(4, 3)
    if torch.distributed.get_rank() == 1:
        z[0, 0] = float("nan")
    try:
        sigreg(z, generator=seeded(), slices=2)
    except ValueError as error:
        return str(error)
    return ""


def test_an_error_on_one_process_is_raised_on_all():
    other, own = spawn(2, _bad_on_the_last, seconds=60)
    assert "z holds NaN" in own
    assert "process 1 was given" in other
