"""Losses with proxies: each against its paper's equation in float64 loops."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_processes_equal_one

from nearfar.losses import panels
from nearfar.losses.proxies import (
    ArcFace,
    CosFace,
    NormalizedSoftmax,
    ProxyAnchor,
    ProxyNCA,
    arcface,
    cosface,
    normalized_softmax,
    proxy_anchor,
    proxy_nca,
)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosines(z, proxies):
    return F.normalize(z, dim=1) @ F.normalize(proxies, dim=1).T


def cross_entropy(own, others):
    """-log of own's share, all as logits; in loops, the largest taken off."""
    every = torch.stack([own, *others])
    return every.max().detach() + (every - every.max().detach()).exp().sum().log() - own


def naive_nca(z, groups, proxies, temperature=1.0, all_proxies=False):
    z, proxies, out = F.normalize(z, dim=1), F.normalize(proxies, dim=1), []
    for row, y in zip(z, groups.tolist()):
        logits = [-((row - p) ** 2).sum() / temperature for p in proxies]
        others = [x for c, x in enumerate(logits) if c != y]
        if all_proxies:
            out.append(cross_entropy(logits[y], others))
        else:
            out.append(torch.stack(others).logsumexp(0) - logits[y] if others else logits[y] * 0)
    return torch.stack(out)


def naive_margin(z, groups, proxies, scale, psi):
    out = []
    for row, y in zip(cosines(z, proxies), groups.tolist()):
        out.append(cross_entropy(scale * psi(row[y]), [scale * x for c, x in enumerate(row) if c != y]))
    return torch.stack(out)


def naive_arcface(z, groups, proxies, scale=64.0, margin=0.5):
    def psi(cos):
        theta = cos.acos()
        return (theta + margin).cos() if theta <= math.pi - margin else cos - margin * math.sin(margin)

    return naive_margin(z, groups, proxies, scale, psi)


def naive_cosface(z, groups, proxies, scale=64.0, margin=0.35):
    return naive_margin(z, groups, proxies, scale, lambda cos: cos - margin)


def naive_softmax(z, groups, proxies, temperature=0.05):
    return naive_margin(z, groups, proxies, 1 / temperature, lambda cos: cos)


def naive_anchor(z, groups, proxies, alpha=32.0, margin=0.1):
    """-> (C, 2): the two logarithms of each proxy."""
    s, out = cosines(z, proxies), []
    for c in range(len(proxies)):
        near = sum((torch.exp(-alpha * (s[i, c] - margin)) for i, y in enumerate(groups) if y == c), s.sum() * 0)
        far = sum((torch.exp(alpha * (s[i, c] + margin)) for i, y in enumerate(groups) if y != c), s.sum() * 0)
        out.append(torch.stack([torch.log1p(near), torch.log1p(far)]))
    return torch.stack(out)


ROW_WISE = {
    "nca": (proxy_nca, naive_nca, [{}, {"temperature": 0.1}, {"temperature": 10.0}, {"temperature": 0.01}]),
    "nca++": (partial(proxy_nca, all_proxies=True), partial(naive_nca, all_proxies=True),
              [{"temperature": 1 / 9}, {"temperature": 0.01}, {"temperature": 10.0}]),
    "softmax": (normalized_softmax, naive_softmax, [{}, {"temperature": 0.01}, {"temperature": 10.0}]),
    "cosface": (cosface, naive_cosface, [{}, {"scale": 1.0, "margin": 0.0}, {"scale": 100.0, "margin": 1.2}]),
    "arcface": (arcface, naive_arcface, [{}, {"scale": 1.0, "margin": 0.0}, {"scale": 10.0, "margin": 2.5}]),
}  # fmt: skip
ALL = {name: fn for name, (fn, *_) in ROW_WISE.items()} | {"anchor": proxy_anchor}


def agree(got, want, inputs):
    """Values and gradients."""
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    weigh = torch.arange(1.0, 1 + got.numel(), dtype=torch.float64).view(got.shape)
    mine = torch.autograd.grad((got * weigh).sum(), inputs)
    theirs = torch.autograd.grad((want * weigh).sum(), inputs)
    torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def reduce(values, reduction):
    return values if reduction == "none" else getattr(values, reduction)()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6), st.integers(2, 5), st.sampled_from(sorted(ROW_WISE)),
    st.integers(0, 3), st.sampled_from(["mean", "sum", "none"]),
)  # fmt: skip
def test_rows_are_the_papers(seed, n, classes, d, name, which, reduction):
    loss, naive, ways = ROW_WISE[name]
    how = ways[which % len(ways)]
    z, proxies = rand(n, d, seed=seed).requires_grad_(), rand(classes, d, seed=seed + 1).requires_grad_()
    groups = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
    got = loss(z, groups, proxies, **how, reduction=reduction)
    agree(got, reduce(naive(z, groups, proxies, **how), reduction), [z, proxies])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6), st.integers(2, 5),
    st.sampled_from([{}, {"alpha": 1.0, "margin": 0.0}, {"alpha": 100.0, "margin": 0.3}]),
    st.sampled_from(["mean", "sum", "none"]),
)  # fmt: skip
def test_proxy_anchor_is_the_papers(seed, n, classes, d, how, reduction):
    z, proxies = rand(n, d, seed=seed).requires_grad_(), rand(classes, d, seed=seed + 1).requires_grad_()
    groups = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
    terms = naive_anchor(z, groups, proxies, **how)
    if reduction == "mean":
        want = terms[:, 0].sum() / len(groups.unique()) + terms[:, 1].sum() / classes
    else:
        want = reduce(terms.sum(1), reduction)
    agree(proxy_anchor(z, groups, proxies, **how, reduction=reduction), want, [z, proxies])


@pytest.mark.parametrize("name", sorted(ALL))
def test_gradcheck(name):
    groups = torch.tensor([0, 1, 1, 3, 0])  # class 2 has no row

    def loss(z, proxies):
        return ALL[name](z, groups, proxies, reduction="none")

    assert torch.autograd.gradcheck(loss, (rand(5, 3).requires_grad_(), rand(4, 3, seed=1).requires_grad_()))


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("values", [1, 30, 100])
def test_panels_and_order_change_nothing(name, values, monkeypatch):
    z, proxies, groups = rand(13, 4).requires_grad_(), rand(6, 4, seed=1).requires_grad_(), torch.arange(13) % 5

    def step(order):
        loss = ALL[name](z[order], groups[order], proxies)
        return loss, *torch.autograd.grad(loss, (z, proxies))

    whole = step(torch.arange(13))
    monkeypatch.setattr(panels, "VALUES", values)
    torch.testing.assert_close(step(torch.arange(13)), whole, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(step(torch.randperm(13)), whole, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_row_or_none_and_one_class(name):
    for n, classes in ((0, 3), (1, 3), (2, 1)):
        z, proxies = rand(n, 4).requires_grad_(), rand(classes, 4, seed=1).requires_grad_()
        loss = ALL[name](z, torch.zeros(n, dtype=torch.int64), proxies)
        loss.backward()
        assert loss.isfinite()
        assert z.grad.isfinite().all()
        assert proxies.grad.isfinite().all()
        if n == 0:
            assert float(loss.detach()) == 0
        if classes == 1 and name != "anchor":
            assert float(loss.detach()) == 0


def test_absent_classes_are_pushed_alone():
    z, proxies = rand(4, 5).requires_grad_(), rand(3, 5, seed=1).requires_grad_()
    groups = torch.tensor([0, 0, 2, 2])
    terms = naive_anchor(z, groups, proxies)
    assert float(terms[1, 0].detach()) == 0
    torch.testing.assert_close(proxy_anchor(z, groups, proxies), terms[:, 0].sum() / 2 + terms[:, 1].mean())
    torch.testing.assert_close(proxy_anchor(z, groups, proxies, reduction="none"), terms.sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(ALL))
def test_rows_on_their_proxies_or_opposite(name, dtype):
    """cos = ±1, where the arc cosine has no slope."""
    proxies = torch.cat([torch.eye(3), torch.ones(1, 3)]).to(dtype).requires_grad_()
    z = torch.cat([torch.eye(3), -torch.eye(3), 1e6 * torch.ones(1, 3), torch.zeros(1, 3)]).to(dtype).requires_grad_()
    groups = torch.tensor([0, 1, 2, 0, 1, 2, 3, 0])
    loss = ALL[name](z, groups, proxies)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert proxies.grad.isfinite().all()


def test_arcface_near_its_proxy_in_float32():
    """An angle of 1e-4, which float32's cosine cannot tell from 0: value and gradient are float64's all the same."""
    z, proxies = torch.tensor([[1.0, 1e-4]], requires_grad=True), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    exact = z.detach().double().requires_grad_()
    got = arcface(z, torch.tensor([0]), proxies, scale=4.0)
    want = arcface(exact, torch.tensor([0]), proxies.double(), scale=4.0)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(got, z)[0].double(), torch.autograd.grad(want, exact)[0], rtol=1e-4, atol=1e-5
    )


def test_arcface_only_falls_with_the_angle():
    theta = torch.linspace(0, math.pi, 400, dtype=torch.float64)
    z = torch.stack([theta.cos(), theta.sin()], 1)
    proxies = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    z = F.pad(z, (0, 1))
    loss = arcface(z, torch.zeros(400, dtype=torch.int64), proxies, scale=8.0, reduction="none")
    assert (loss.diff() > 0).all()


def test_small_losses_keep_their_digits():
    """A row well placed: float32 gives the loss of 1e-12, not 0."""
    z, proxies = torch.eye(2), torch.eye(2)
    got = normalized_softmax(z, torch.tensor([0, 1]), proxies, temperature=0.036)
    assert float(got) == pytest.approx(math.log1p(math.exp(-1 / 0.036)), rel=1e-5)


def test_nca_plus_plus_is_the_normalised_softmax_and_info_nce():
    from nearfar.losses import info_nce

    z, proxies, groups = rand(7, 4), rand(5, 4, seed=1), torch.arange(7) % 5
    plus = proxy_nca(z, groups, proxies, temperature=0.2, all_proxies=True)
    soft = normalized_softmax(z, groups, proxies, temperature=0.1)
    torch.testing.assert_close(plus, soft)
    torch.testing.assert_close(soft, info_nce(z, groups, proxies, torch.arange(5), temperature=0.1))
    torch.testing.assert_close(soft, arcface(z, groups, proxies, scale=10.0, margin=0.0))


@pytest.mark.parametrize("name", sorted(ALL))
def test_half_precision_and_autocast(name):
    z, proxies, groups = rand(9, 8), rand(5, 8, seed=1), torch.arange(9, dtype=torch.int32) % 5
    for dtype in (torch.bfloat16, torch.float16):
        got = ALL[name](z.to(dtype), groups, proxies.to(dtype))
        want = ALL[name](z.to(dtype).double(), groups, proxies.to(dtype).double())
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ALL[name](z.float(), groups, proxies.float())
    torch.testing.assert_close(got.double(), ALL[name](z, groups, proxies), rtol=2e-5, atol=1e-5)
    assert ALL[name](z, groups, proxies.float()).dtype == torch.float64


@pytest.mark.parametrize("name", sorted(ALL))
def test_large_values_stay_finite(name):
    z, proxies = (rand(6, 4) * 1e6).float().requires_grad_(), (rand(3, 4, seed=1) * 1e-6).float().requires_grad_()
    sharp = {"anchor": {"alpha": 1e4}, "cosface": {"scale": 1e4}, "arcface": {"scale": 1e4}}
    sharp = sharp.get(name, {"temperature": 1e-4})
    loss = ALL[name](z, torch.arange(6) % 3, proxies, **sharp)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert proxies.grad.isfinite().all()


MODULES = {
    "nca": (ProxyNCA, {"temperature": 0.3}),
    "nca++": (ProxyNCA, {"temperature": 1 / 9, "all_proxies": True}),
    "softmax": (NormalizedSoftmax, {"temperature": 0.07}),
    "cosface": (CosFace, {"scale": 20.0, "margin": 0.2}),
    "arcface": (ArcFace, {"scale": 20.0, "margin": 0.3}),
    "anchor": (ProxyAnchor, {"alpha": 20.0, "margin": 0.2}),
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_hold_the_proxies(name):
    make, how = MODULES[name]
    z, groups = rand(6, 4).float(), torch.arange(6) % 3
    module = make(3, 4, **how, generator=torch.Generator().manual_seed(1))
    assert [p.shape for p in module.parameters()] == [(3, 4)]
    assert list(module.state_dict()) == ["proxies"]
    for reduction in ("mean", "sum", "none"):
        want = ALL[name](z, groups, module.proxies, **how, reduction=reduction)
        torch.testing.assert_close(module(z, groups, reduction=reduction), want)
    torch.testing.assert_close(module.proxies.norm(dim=1), torch.ones(3))
    same = make(3, 4, **how, generator=torch.Generator().manual_seed(1))
    assert torch.equal(module.proxies, same.proxies)
    again = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    torch.testing.assert_close(again(z, groups), module(z, groups))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_learns(name):
    make, how = MODULES[name]
    g = torch.Generator().manual_seed(0)
    z, groups = torch.nn.Parameter(torch.randn(12, 3, generator=g)), torch.arange(12) % 3
    module = make(3, 3, **how, generator=g)
    optimiser = torch.optim.Adam([z, *module.parameters()], 0.05)
    for _ in range(150):
        optimiser.zero_grad()
        module(z, groups).backward()
        optimiser.step()
    assert torch.equal(cosines(z, module.proxies).argmax(1), groups)


# Peers


def peer(name, how):
    from pytorch_metric_learning import losses

    degrees = {"margin": math.degrees(how["margin"]), "scale": how["scale"]} if name == "arcface" else how
    return {
        "nca++": lambda: losses.ProxyNCALoss(5, 4, softmax_scale=1 / how["temperature"]),
        "softmax": lambda: losses.NormalizedSoftmaxLoss(5, 4, temperature=how["temperature"]),
        "cosface": lambda: losses.CosFaceLoss(5, 4, **how),
        "arcface": lambda: losses.ArcFaceLoss(5, 4, **degrees),
        "anchor": lambda: losses.ProxyAnchorLoss(5, 4, **how),
    }[name]()


@pytest.mark.parametrize("name", ["nca++", "softmax", "cosface", "arcface", "anchor"])
def test_pytorch_metric_learning(name):
    pytest.importorskip("pytorch_metric_learning")
    _, how = MODULES[name]
    z, groups, proxies = rand(9, 4).requires_grad_(), torch.arange(9) % 4, rand(5, 4, seed=1)
    theirs = peer(name, how)
    held = theirs.proxies if hasattr(theirs, "proxies") else theirs.W
    held.data = proxies if hasattr(theirs, "proxies") else proxies.T.contiguous()
    mine = proxies.clone().requires_grad_()
    got, want = ALL[name](z, groups, mine, **how), theirs(z, groups)
    torch.testing.assert_close(got, want)
    (a, b), (c, d) = torch.autograd.grad(got, (z, mine)), torch.autograd.grad(want, (z, held))
    torch.testing.assert_close((a, b), (c, d if d.shape == b.shape else d.T))


# Processes


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world):
    x, weights = rand(13, 5), [rand(5, 3, seed=1), rand(4, 3, seed=2)]
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 0, 1, 3, 3, 0, 1, 1])  # 2 is nobody's; 3 the last process's alone
    cases = {name: (partial(ordered, loss), x, [groups], weights) for name, loss in ALL.items()}
    cases |= {f"{name}, sum": (partial(ordered, partial(loss, reduction="sum")), x, [groups], weights)
              for name, loss in ALL.items()}  # fmt: skip
    few = world - 1  # a process without a row
    cases |= {f"{name}, few": (partial(ordered, loss), x[:few], [groups[:few]], weights) for name, loss in ALL.items()}
    assert_processes_equal_one(cases, world)


def ordered(loss, z, groups, proxies):
    return loss(z, groups, proxies)


# Bad input


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize(
    ("z", "groups", "proxies", "said"),
    [
        (torch.eye(3), torch.tensor([0, 1, 3]), torch.eye(3), "groups must be class numbers 0 … 2 .* got 3"),
        (torch.eye(3), torch.tensor([0, -1, 1]), torch.eye(3), "groups must be class numbers 0 … 2 .* got -1"),
        (torch.eye(3), torch.zeros(3), torch.eye(3), "groups must be a tensor of whole numbers, got torch.float32"),
        (torch.eye(3), torch.tensor([0, 1]), torch.eye(3), "z has 3 rows and groups is"),
        (torch.eye(3), torch.tensor([0, 1, 2]), torch.eye(4), r"proxies are \(4, 4\) and z is \(3, 3\)"),
        (torch.eye(3) / 0, torch.tensor([0, 1, 2]), torch.eye(3), "z holds NaN"),
        (torch.eye(3), torch.tensor([0, 1, 2]), torch.eye(3) / 0, "proxies holds NaN"),
        (torch.eye(3).long(), torch.tensor([0, 1, 2]), torch.eye(3), "z must be a tensor of floats"),
    ],
)
def test_bad_rows_are_named(name, z, groups, proxies, said):
    with pytest.raises(ValueError, match=said) as caught:
        ALL[name](z, groups, proxies)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "how", "said"),
    [
        (ProxyNCA, {"temperature": 0}, "temperature must be a number above 0, got 0"),
        (NormalizedSoftmax, {"temperature": -1.0}, "temperature must be a number above 0"),
        (CosFace, {"scale": 0.0}, "scale must be a number above 0"),
        (CosFace, {"margin": 2.5}, "margin must be from -2 to below 2"),
        (ArcFace, {"margin": 28.6}, "margin must be from 0 to below 3.142 .radians; 28.6 degrees are 0.5.* got 28.6"),
        (ArcFace, {"scale": float("inf")}, "scale must be a number above 0"),
        (ProxyAnchor, {"alpha": "32"}, "alpha must be a number above 0, got '32'"),
        (ProxyAnchor, {"margin": float("nan")}, "margin must be .* got nan"),
    ],
)
def test_bad_arguments_are_named(make, how, said):
    with pytest.raises(ValueError, match=said):
        make(3, 4, **how)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_bad_sizes_are_named(name):
    make, how = MODULES[name]
    with pytest.raises(ValueError, match="classes must be a whole number of 1 or more, got 0"):
        make(0, 4, **how)
    with pytest.raises(ValueError, match="features must be a whole number of 1 or more, got 2.5"):
        make(3, 2.5, **how)
    with pytest.raises(ValueError, match="reduction 'men'"):
        make(3, 4, **how)(torch.eye(4)[:2], torch.tensor([0, 1]), reduction="men")
