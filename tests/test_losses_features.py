import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_processes_equal_one, spawn, split
from torch.autograd import gradcheck

from nearfar.losses.features import barlow_twins, byol, mmcr, shared_seed, simsiam, vicreg, w_mse

TWO = {
    "barlow": barlow_twins, "vicreg": vicreg, "w_mse": w_mse, "byol": byol, "simsiam": simsiam,
    "mmcr": lambda a, b: mmcr([a, b], weight=0.3),
}  # fmt: skip


def draw(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=g) * scale


def same(loss, naive, *views, rel=1e-9):
    """Value, and gradient by autograd of the naive form."""
    ours, theirs = [[v.clone().requires_grad_() for v in views] for _ in range(2)]
    got, want = loss(*ours), naive(*theirs)
    torch.testing.assert_close(got, want, rtol=rel, atol=1e-10)
    for a, b in zip(torch.autograd.grad(got, ours, allow_unused=True),
                    torch.autograd.grad(want, theirs, allow_unused=True)):  # fmt: skip
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


# --- the papers' formulas, in loops; on tensors, so that autograd gives their gradients --------------------------


def naive_barlow(a, b, lam):
    n, d = a.shape
    total = 0
    for i in range(d):
        for j in range(d):
            x, y = a[:, i] - sum(a[:, i]) / n, b[:, j] - sum(b[:, j]) / n
            vx, vy = sum(x**2) / n, sum(y**2) / n
            c = sum(x * y) / n / (torch.sqrt(vx + 1e-5) * torch.sqrt(vy + 1e-5))
            total = total + ((1 - c) ** 2 if i == j else lam * c**2)
    return total


def naive_vicreg_equation_6(a, b, lam, mu, nu):
    """Word for word: s sums over features, v of both views are added."""
    n, d = a.shape
    s = sum(((a[i] - b[i]) ** 2).sum() for i in range(n)) / n
    v = c = 0
    for z in (a, b):
        mean = sum(z[i] for i in range(n)) / n
        cov = sum(torch.outer(z[i] - mean, z[i] - mean) for i in range(n)) / (n - 1)
        for j in range(d):
            v = v + torch.clamp(1 - torch.sqrt(cov[j, j] + 1e-4), min=0) / d
            c = c + sum(cov[j, k] ** 2 for k in range(d) if k != j) / d
    return lam * s + mu * v + nu * c


def naive_whiten(x):
    n = len(x)
    mean = sum(x[i] for i in range(n)) / n
    cov = sum(torch.outer(x[i] - mean, x[i] - mean) for i in range(n)) / (n - 1)
    return (x - mean) @ torch.linalg.inv(torch.linalg.cholesky(cov)).T


def naive_w_mse(*views):
    z = [naive_whiten(x) for x in views]
    pairs = [(u, v) for u in range(len(z)) for v in range(u)]
    total = 0
    for u, v in pairs:
        for x, y in zip(z[u], z[v]):
            total = total + ((x / x.norm() - y / y.norm()) ** 2).sum() / len(views[0])
    return total / len(pairs)


def naive_mmcr(views, weight):
    z = [v / v.norm(dim=1, keepdim=True) for v in views]
    centroids = sum(z) / len(z)
    local = sum(torch.linalg.matrix_norm(torch.stack([v[i] for v in z]), "nuc") for i in range(len(z[0])))
    return weight * local / len(z[0]) - torch.linalg.matrix_norm(centroids, "nuc")


def naive_byol(p, t):
    return sum(((x / x.norm() - y / y.norm()) ** 2).sum() for x, y in zip(p, t.detach())) / len(p)


shapes = given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 6), st.sampled_from([0.05, 1.0, 30.0]))


@settings(max_examples=25, deadline=None)
@shapes
def test_barlow_twins_is_the_papers(seed, n, d, scale):
    a, b = draw(seed, 2, n, d, scale=scale) + 3
    same(partial(barlow_twins, off_diagonal=0.1), partial(naive_barlow, lam=0.1), a, b)


@settings(max_examples=25, deadline=None)
@shapes
def test_vicreg_is_the_papers(seed, n, d, scale):
    a, b = draw(seed, 2, n, d, scale=scale) - 2
    same(partial(vicreg, similarity=3.0 * d, variance=2 * 5.0, covariance=0.7),
         partial(naive_vicreg_equation_6, lam=3.0, mu=5.0, nu=0.7), a, b)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 8), st.integers(2, 4))
def test_w_mse_is_the_papers(seed, d, more, views):
    same(w_mse, naive_w_mse, *(draw(seed, views, d + more, d) @ draw(seed + 1, d, d) + 5), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6), st.integers(2, 4), st.sampled_from([0.0, 0.5]))
def test_mmcr_is_the_papers(seed, n, d, views, weight):
    same(lambda *v: mmcr(v, weight=weight), lambda *v: naive_mmcr(v, weight), *draw(seed, views, n, d))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6))
def test_byol_and_simsiam_are_the_papers_and_stop_at_the_target(seed, n, d):
    p, t = draw(seed, 2, n, d)
    same(byol, naive_byol, p, t)
    same(simsiam, lambda p, t: naive_byol(p, t) / 2 - 1, p, t)
    torch.testing.assert_close(byol(p, t, reduction="none"), 2 + 2 * simsiam(p, t, reduction="none"))
    torch.testing.assert_close(byol(p, t, reduction="sum"), byol(p, t) * n)


def test_w_mse_slices():
    d, size = 3, 5
    a, b = draw(0, 2, 17, d)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(
        shared_seed(torch.Generator().manual_seed(7), torch.device("cpu"))))  # fmt: skip
    parts = [part.sort().values for part in order.tensor_split(3)]
    assert sorted(len(p) for p in parts) == [5, 6, 6]
    want = sum(naive_w_mse(a[p], b[p]) * len(p) for p in parts) / 17
    torch.testing.assert_close(w_mse(a, b, size=size, generator=torch.Generator().manual_seed(7)), want)
    # iterations are averaged, each with a slicing of its own
    g = torch.Generator().manual_seed(7)
    singles = [w_mse(a, b, size=size, generator=g) for _ in range(4)]
    assert len({round(float(s), 9) for s in singles}) == 4
    several = w_mse(a, b, size=size, iterations=4, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(several, sum(singles) / 4)
    torch.testing.assert_close(w_mse(a, b, size=17, iterations=2), w_mse(a, b))  # one slice: nothing is drawn


@pytest.mark.parametrize("name", TWO)
def test_gradcheck(name):
    a, b = draw(1, 2, 6, 3)
    a.requires_grad_()
    b.requires_grad_()
    stops = name in ("byol", "simsiam")
    assert gradcheck((lambda x: TWO[name](x, b)) if stops else TWO[name], (a,) if stops else (a, b))


@pytest.mark.parametrize("name", TWO)
def test_row_order_is_nothing_and_pairing_is_everything(name):
    a, b = draw(2, 2, 12, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(TWO[name](a[order], b[order]), TWO[name](a, b))
    assert abs(float(TWO[name](a[order], b) - TWO[name](a, b))) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TWO)
def test_half_precision_is_taken_to_float32(name, dtype):
    a, b = draw(3, 2, 32, 4).to(dtype)
    before = a.clone()
    a.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = TWO[name](a, b)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), TWO[name](a.detach().double(), b.double()), rtol=1e-5, atol=1e-5)
    got.backward()
    assert a.grad.dtype == dtype
    assert bool(a.grad.isfinite().all())
    assert bool((a.detach() == before).all())  # not written to


@pytest.mark.parametrize("name", [n for n in TWO if n != "w_mse"])
def test_constant_features_and_fewer_rows_than_features(name):
    z = torch.full((4, 6), 0.1, requires_grad=True)
    other = torch.full((4, 6), 0.1)
    got = TWO[name](z, other)
    got.backward()
    got = got.detach()
    assert bool(got.isfinite())
    assert bool(z.grad.isfinite().all())
    if name == "barlow":
        assert float(got) == pytest.approx(6, abs=1e-5)  # nothing correlates
    if name == "vicreg":
        assert float(got) == pytest.approx(25 * (1 - math.sqrt(1e-4)), rel=1e-6)
    if name == "mmcr":
        assert float(got) == pytest.approx(-2 + 0.3 * math.sqrt(2), rel=1e-6)  # C has one singular value, √4


def test_one_row():
    z = torch.ones(1, 3)
    for loss in (barlow_twins, vicreg):
        with pytest.raises(ValueError, match=f"{loss.__name__} needs at least 2 rows over all processes"):
            loss(z, z)
    assert float(mmcr([z, z])) == pytest.approx(-1)
    assert float(byol(z, z)) == pytest.approx(0, abs=1e-6)


def test_no_row_costs_nothing():
    z = torch.zeros(0, 3, requires_grad=True)
    got = byol(z, torch.zeros(0, 3))
    got.backward()
    assert float(got.detach()) == 0
    assert z.grad.shape == (0, 3)


def test_w_mse_says_what_it_cannot_whiten():
    a, b = draw(4, 2, 8, 8)
    g = torch.Generator()
    with pytest.raises(ValueError, match=r"a batch of 8 rows is too small to whiten 8 features: give at least 9"):
        w_mse(a, b)
    assert bool(w_mse(a, b, shrink=0.1).isfinite())
    a, b = draw(4, 2, 40, 8)
    with pytest.raises(ValueError, match=r"size=8 is too small to whiten 8"):
        w_mse(a, b, size=8, generator=g)
    with pytest.raises(ValueError, match="size=41 rows a slice, but the batch has 40"):
        w_mse(a, b, size=41, generator=g)
    with pytest.raises(ValueError, match="give a generator"):
        w_mse(a, b, size=20)
    for dtype in (torch.float32, torch.float64):
        for spoil in (lambda z: torch.full_like(z[:, 0], 0.1), lambda z: z[:, 0] * 2 - z[:, 2]):
            b2 = b.to(dtype)
            b2 = torch.cat([b2[:, :5], spoil(b2)[:, None], b2[:, 6:]], 1)
            with pytest.raises(ValueError, match=r"views\[1\] cannot be whitened: feature 5 is constant or follows"):
                w_mse(a.to(dtype), b2)
            assert bool(w_mse(a.to(dtype), b2, shrink=0.01).isfinite())
    # what is merely ill-scaled is whitened all the same
    scales = 10.0 ** torch.arange(-4, 4).double()
    torch.testing.assert_close(w_mse(a * scales, b + 100), w_mse(a, b), rtol=1e-6, atol=0)
    torch.testing.assert_close(w_mse((a * scales).float(), b.float() + 10), w_mse(a, b).float(), rtol=1e-3, atol=0)


def test_shrink_shrinks_the_covariance():
    a, b = draw(5, 2, 10, 3)
    want = 0
    out = []
    for z in (a, b):
        cov = 0.8 * torch.tensor(np.cov(z.numpy().T)) + 0.2 * torch.eye(3)
        out.append((z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(cov)).T)
    for x, y in zip(*out):
        want += (2 - 2 * x @ y / x.norm() / y.norm()) / 10
    torch.testing.assert_close(w_mse(a, b, shrink=0.2), want)


@pytest.mark.parametrize("name", TWO)
def test_bad_input_is_named(name):
    z, loss = torch.randn(8, 3), TWO[name]
    second = {"byol": "target", "simsiam": "z", "barlow": "b", "vicreg": "b"}.get(name, r"views\[1\]")
    with pytest.raises(ValueError, match=rf"{second} is \(7, 3\) on cpu: rows with the same index"):
        loss(z, z[:7])
    with pytest.raises(ValueError, match=rf"{second} must be a tensor of floats, got torch.int64"):
        loss(z, torch.ones(8, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=rf"{second} must be \(N, d\), got \(8,\)"):
        loss(z, z[:, 0])
    bad = z.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match=rf"{second} holds NaN or infinite values in 1 of 8 rows, the first row 3"):
        loss(z, bad)


def test_bad_options_are_named():
    z = torch.randn(8, 3)
    for say, call in {
        "off_diagonal must be a number of at least 0, got -1": lambda: barlow_twins(z, z, off_diagonal=-1),
        "variance must be a number of at least 0, got nan": lambda: vicreg(z, z, variance=float("nan")),
        "weight must be a number of at least 0, got '1'": lambda: mmcr([z, z], weight="1"),
        "size must be a whole number above 0, got 2.5": lambda: w_mse(z, z, size=2.5),
        "iterations must be a whole number above 0, got 0": lambda: w_mse(z, z, iterations=0),
        "shrink must be between 0 and 1, got 2": lambda: w_mse(z, z, shrink=2),
        "got 1 views: give at least 2": lambda: w_mse(z),
        "reduction 'men'": lambda: byol(z, z, reduction="men"),
    }.items():
        with pytest.raises(ValueError, match=say):
            call()
    with pytest.raises(ValueError, match="at least one row"):
        mmcr([z[:0], z[:0]])


# --- peers ------------------------------------------------------------------------------------------------------


def test_lightlys_values():
    loss = pytest.importorskip("lightly.loss")
    a, b = draw(6, 2, 12, 5)
    # lightly's batch normalisation is torch's: the same ε
    torch.testing.assert_close(barlow_twins(a, b, off_diagonal=0.02), loss.BarlowTwinsLoss(lambda_param=0.02)(a, b))
    torch.testing.assert_close(vicreg(a, b), loss.VICRegLoss()(a, b))
    torch.testing.assert_close(simsiam(a, b), loss.NegativeCosineSimilarity()(a, b))
    # lightly's MMCR neither normalises nor takes a plain list of views
    u, v = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
    torch.testing.assert_close(mmcr([a, b], weight=0.1), loss.MMCRLoss(lmda=0.1)(u[:, None], v[:, None]))


def test_lightlys_w_mse():
    loss = pytest.importorskip("lightly.loss.wmse_loss")
    a, b, c = draw(7, 3, 12, 5)  # one slice: which rows it draws is nothing
    peer = loss.WMSELoss(embedding_dim=5, w_size=12, num_samples=3, track_running_stats=False)
    torch.testing.assert_close(w_mse(a, b, c), peer(torch.cat([a, b, c])))


# --- processes --------------------------------------------------------------------------------------------------


def halves(loss, z: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """The two views are z's halves; with a second weight the second is turned by it, so that both get a gradient."""
    a, b = z.chunk(2, 1)
    return loss(a, b @ weights[0] if weights else b)


def sliced(z: torch.Tensor) -> torch.Tensor:
    a, b = z.chunk(2, 1)
    seed = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0  # the first one's decides
    return w_mse(a, b, size=5, iterations=2, generator=torch.Generator().manual_seed(seed))


def of_mmcr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return mmcr([a, b, a * b], weight=0.2)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world):
    x, w, turn = draw(8, 13, 6), draw(9, 6, 4), draw(10, 2, 2)
    assert len({s.stop - s.start for s in split(13, world)}) > 1  # unequal parts
    turned = {"barlow": barlow_twins, "vicreg": vicreg, "w_mse": w_mse, "mmcr": of_mmcr}
    stopped = {"byol": byol, "simsiam": partial(simsiam, reduction="sum")}  # no gradient to the second view
    cases = {name: (partial(halves, loss), x, (), (w, turn)) for name, loss in turned.items()}
    cases |= {name: (partial(halves, loss), x, (), (w,)) for name, loss in stopped.items()}
    cases["w_mse sliced"] = (sliced, x, (), (w,))
    # a process without a row (3 processes, 4 rows)
    cases |= {f"{name} of 4": (partial(halves, loss), x[:4], (), (w,)) for name, loss in (turned | stopped).items()}
    assert_processes_equal_one(cases, world, tolerance=1e-9)


def _bad_on_the_last() -> str:
    z = torch.ones(4, 3)
    if torch.distributed.get_rank() == 1:
        z[0, 0] = float("nan")
    try:
        vicreg(z, z)
    except ValueError as error:
        return str(error)
    return ""


def test_an_error_on_one_process_is_raised_on_all():
    other, own = spawn(2, _bad_on_the_last, seconds=60)
    assert "a holds NaN" in own
    assert "process 1 was given" in other
