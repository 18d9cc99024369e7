"""Triplets: every mining against loops that read as its paper does."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_processes_equal_one

from nearfar.losses import panels
from nearfar.losses.triplet import triplet, weights

MINING = ["all", "hard", "semi-hard"]
DRAWN = "distance-weighted"
METRICS = ["euclidean", "squared", "cosine-distance"]
GROUPS = {
    "pairs": lambda n, g: torch.arange(n) % (n // 2),
    "some": lambda n, g: torch.randint(0, 3, (n,), generator=g),
    "many": lambda n, g: torch.randint(0, 2, (n,), generator=g),
    "none": lambda n, g: torch.arange(n),
    "one": lambda n, g: torch.zeros(n, dtype=torch.int64),
}
NO_TRIPLET = {"none", "one"}


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distance(a: torch.Tensor, b: torch.Tensor, metric: str) -> torch.Tensor:
    if metric == "cosine-distance":
        return 1 - a @ b / (a.norm() * b.norm())
    return (a - b).norm() if metric == "euclidean" else ((a - b) ** 2).sum()


def naive(z, groups, keys=None, key_groups=None, *, margin=0.2, mining="hard", metric="euclidean", unit=False):
    """Loops over anchors, positives, negatives; -> each anchor's triplets' losses that count, as lists."""
    if unit:
        z, keys = F.normalize(z, dim=1), None if keys is None else F.normalize(keys, dim=1)
    own = keys is None
    if own:
        keys, key_groups = z, groups
    loss = (lambda x: (x + margin).clamp(min=0)) if margin is not None else (lambda x: torch.log1p(x.exp()))
    found = []
    for i in range(len(z)):
        d = {j: distance(z[i], keys[j], metric) for j in range(len(keys)) if not (own and i == j)}
        ps = [j for j in d if key_groups[j] == groups[i]]
        ns = [j for j in d if key_groups[j] != groups[i]]
        mined, far = [], lambda j, d=d: float(d[j].detach())
        if ps and ns and mining == "hard":
            mined = [(max(ps, key=far), min(ns, key=far))]
        if ps and ns and mining == "all":
            mined = [(p, n) for p in ps for n in ns]
        if ps and ns and mining == "semi-hard":
            for p in ps:
                farther = [n for n in ns if d[n] > d[p]]
                mined.append((p, min(farther, key=far) if farther else max(ns, key=far)))
        losses = [loss(d[p] - d[n]) for p, n in mined]
        if mining == "all" and margin is not None:
            losses = [x for x in losses if x > 0]
        found.append(losses)
    return found


def reduce(found: list[list[torch.Tensor]], reduction: str, like: torch.Tensor) -> torch.Tensor:
    if reduction == "none":
        return torch.stack([torch.stack(x).sum() if x else like.sum() * 0 for x in found])
    flat = [x for losses in found for x in losses]
    if not flat:
        return like.sum() * 0
    return torch.stack(flat).mean() if reduction == "mean" else torch.stack(flat).sum()


def agree(z: torch.Tensor, groups: torch.Tensor, *keys, reduction: str = "mean", **how) -> None:
    """Value and gradients equal the loops'."""
    inputs = [x.clone().requires_grad_() for x in (z, *keys[:1])]
    got = triplet(inputs[0], groups, *inputs[1:], *keys[1:], reduction=reduction, **how)
    want = reduce(naive(inputs[0], groups, *inputs[1:], *keys[1:], **how), reduction, inputs[0])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    weigh = torch.arange(1.0, 1 + got.numel(), dtype=torch.float64).view(got.shape)
    mine = torch.autograd.grad((got * weigh).sum(), inputs)
    theirs = torch.autograd.grad((want * weigh).sum(), inputs, allow_unused=True)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-8, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(2, 11), st.integers(1, 5), st.sampled_from(sorted(GROUPS)),
    st.sampled_from(MINING), st.sampled_from(METRICS), st.sampled_from([None, 0.0, 0.2, 3.0]), st.booleans(),
    st.sampled_from(["mean", "sum", "none"]),
)  # fmt: skip
def test_is_the_papers(seed, n, d, kind, mining, metric, margin, unit, reduction):
    d = d + 1 if unit or metric == "cosine-distance" else d  # on the sphere of one dimension all distances tie
    groups = GROUPS[kind](n, torch.Generator().manual_seed(seed))
    agree(rand(n, d, seed=seed), groups, mining=mining, metric=metric, margin=margin, unit=unit, reduction=reduction)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9), st.sampled_from(MINING), st.sampled_from([None, 1]))
def test_keys_are_the_candidates(seed, n, m, mining, margin):
    g = torch.Generator().manual_seed(seed)
    groups, key_groups = torch.randint(0, 3, (n,), generator=g), torch.randint(0, 3, (m,), generator=g)
    agree(rand(n, 3, seed=seed), groups, rand(m, 3, seed=seed + 1), key_groups, mining=mining, margin=margin)


@pytest.mark.parametrize("mining", [*MINING, DRAWN])
@pytest.mark.parametrize("margin", [0.3, None])
def test_gradcheck(mining, margin):
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])

    def loss(z):
        return triplet(z, groups, mining=mining, margin=margin, generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(loss, rand(8, 4).requires_grad_())


@pytest.mark.parametrize("mining", [*MINING, DRAWN])
@pytest.mark.parametrize("margin", [0.2, None])
@pytest.mark.parametrize("values", [1, 70, 400])
def test_panels_change_nothing(mining, margin, values, monkeypatch):
    z, groups = rand(23, 5).requires_grad_(), torch.arange(23) % 4

    def step():
        loss = triplet(z, groups, mining=mining, margin=margin, generator=torch.Generator().manual_seed(5))
        return loss, *torch.autograd.grad(loss, z)

    whole = step()
    monkeypatch.setattr(panels, "VALUES", values)
    torch.testing.assert_close(step(), whole, rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        loss = triplet(z, groups, mining=mining, margin=margin, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(loss, whole[0].detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("margin", [0.2, None])
def test_order_of_rows(mining, margin):
    z, groups = rand(15, 4), torch.arange(15) % 4
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    loss = partial(triplet, mining=mining, margin=margin)
    torch.testing.assert_close(loss(z, groups), loss(z[order], groups[order]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mining", [*MINING, DRAWN])
@pytest.mark.parametrize("margin", [0.2, None])
@pytest.mark.parametrize("kind", sorted(NO_TRIPLET))
def test_no_triplet_is_zero(mining, margin, kind):
    z = rand(6, 3).requires_grad_()
    groups = GROUPS[kind](6, None)
    loss = triplet(z, groups, mining=mining, margin=margin, generator=torch.Generator())
    (grad,) = torch.autograd.grad(loss, z)
    assert float(loss.detach()) == 0
    assert not grad.any()


@pytest.mark.parametrize("mining", [*MINING, DRAWN])
@pytest.mark.parametrize("n", [0, 1])
def test_a_row_or_none(mining, n):
    z = rand(n, 3).requires_grad_()
    loss = triplet(z, torch.zeros(n, dtype=torch.int64), mining=mining, generator=torch.Generator())
    loss.backward()
    assert float(loss.detach()) == 0
    assert not z.grad.any()


@pytest.mark.parametrize("mining", [*MINING, DRAWN])
@pytest.mark.parametrize("margin", [0.2, None])
def test_twins_and_large_values_stay_finite(mining, margin):
    groups = torch.arange(12) % 3
    for z in (torch.ones(12, 4), torch.zeros(12, 4), rand(12, 4).float() * 1e6):
        for metric in METRICS:
            x = z.clone().requires_grad_()
            how = {"mining": mining, "margin": margin, "metric": metric, "generator": torch.Generator()}
            loss = triplet(x, groups, **how)
            loss.backward()
            assert loss.isfinite()
            assert x.grad.isfinite().all()


@pytest.mark.parametrize("mining", [*MINING, DRAWN])
def test_half_precision_and_autocast(mining):
    z, groups = rand(16, 8), torch.arange(16) % 4
    for dtype in (torch.bfloat16, torch.float16):
        half = z.to(dtype)
        want = triplet(half.double(), groups, mining=mining, generator=torch.Generator())
        got = triplet(half, groups, mining=mining, generator=torch.Generator())
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = triplet(z.float(), groups, mining=mining, generator=torch.Generator())
    want = triplet(z, groups, mining=mining, generator=torch.Generator())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_float32_keeps_small_hinges_among_large_sums():
    keys = torch.full((4001, 1), 1024.0)  # the positive, then negatives a little nearer, all exact in float32
    keys[1:, 0] -= torch.arange(4000) % 4 / 1024
    ids = (torch.arange(4001) > 0).long()
    loss = triplet(torch.zeros(1, 1), ids[:1], keys, ids, mining="all", margin=1 / 1024)
    torch.testing.assert_close(loss, torch.tensor(2.5 / 1024), rtol=1e-6, atol=0)


def test_all_counts_what_is_above_zero():
    keys, ids = torch.tensor([[1.0], [2.0], [1.5]]), torch.tensor([0, 1, 1])
    assert float(triplet(torch.zeros(1, 1), ids[:1], keys, ids, mining="all", margin=1.0)) == 0.5  # 0 and 0.5


@pytest.mark.parametrize("how", [{"mining": DRAWN}, {"metric": "cosine-distance"}, {"unit": True}])
def test_lengths_do_not_matter_on_the_sphere(how):
    z, groups = rand(12, 4), torch.arange(12) % 4
    longer = z * torch.arange(1, 13)[:, None]
    a, b = (triplet(x, groups, generator=torch.Generator().manual_seed(0), **how) for x in (z, longer))
    torch.testing.assert_close(a, b)


# What distance-weighted draws


def rows_at(distances: list[float], d: int) -> torch.Tensor:
    """Unit rows at these distances from the first axis, each along its own other axis."""
    out = torch.zeros(len(distances), d, dtype=torch.float64)
    for i, x in enumerate(distances):
        out[i, 0] = 1 - x * x / 2
        out[i, i + 1] = math.sqrt(1 - float(out[i, 0]) ** 2)
    return out


def drawn(distances: list[float], features: int, times: int, metric: str = "euclidean", positives: int = 1):
    """How often each negative was drawn over ``times`` anchors and their positives, seen through the losses."""
    keys = torch.cat([rows_at(distances, features), torch.eye(1, features, dtype=torch.float64).repeat(positives, 1)])
    ids = torch.tensor([1] * len(distances) + [0] * positives)
    anchors = torch.eye(1, features, dtype=torch.float64).repeat(times, 1)
    loss = triplet(
        anchors, torch.zeros(times, dtype=torch.int64), keys, ids, margin=50.0, mining=DRAWN, metric=metric,
        generator=torch.Generator().manual_seed(7), reduction="none",
    )  # fmt: skip
    far = torch.tensor(distances, dtype=torch.float64)
    far = {"euclidean": far, "squared": far**2, "cosine-distance": far**2 / 2}[metric]
    if positives == 1:  # the loss is m - d(a,n)
        return (50 - loss)[:, None].sub(far).abs().argmin(1).bincount(minlength=len(distances)), loss
    return None, 50 * positives - loss


@pytest.mark.parametrize("features", [4, 8, 64])
@pytest.mark.parametrize("metric", METRICS)
def test_draws_are_the_papers(features, metric):
    distances = [0.3, 1.0, 1.35] if features == 4 else [0.3, 0.45, 0.7, 1.0, 1.2, 1.35, 1.45]
    want = []
    for x in distances:
        x = max(x, 0.5)
        q = x ** (features - 2) * (1 - x * x / 4) ** ((features - 3) / 2)
        want.append(1 / q if x < 1.4 else 0)
    want = torch.tensor(want, dtype=torch.float64) / sum(want)
    times = 20_000
    seen, _ = drawn(distances, features, times, metric)
    assert not seen[want == 0].any()
    likely = want * times > 5
    chi2 = float(((seen - want * times) ** 2 / (want * times))[likely].sum())
    assert chi2 < 25  # 5 degrees of freedom: once in 7,000
    assert int(seen[~likely].sum()) < 20 + 5 * float(want[~likely].sum()) * times


def test_density_is_that_of_the_sphere():
    """1/weight is the density of distances between random directions: a histogram says so."""
    d = F.normalize(rand(60_000, 6), dim=1) - torch.eye(1, 6, dtype=torch.float64)
    edges = torch.linspace(0.5, 1.4, 19, dtype=torch.float64)
    seen = torch.histogram(d.norm(dim=1), edges).hist
    middle = (edges[1:] + edges[:-1])[None] / 2
    q = 1 / weights(middle, torch.ones_like(middle, dtype=torch.bool), 6)[0]
    torch.testing.assert_close(seen / seen.sum(), q / q.sum(), rtol=0.1, atol=2e-3)


def test_all_negatives_far_weigh_the_same():
    seen, _ = drawn([1.5, 1.6, 1.9], 8, 9_000)
    assert (seen - 3_000).abs().max() < 250


def test_each_positive_draws_its_own_negative():
    _, far = drawn([0.5, 1.0], 4, 4_000, positives=2)
    ones = {round(float(x), 6) for x in far}
    assert ones == {1.0, 1.5, 2.0}
    p = 1 / (1 + float(1 / 0.5**2 / (1 - 0.25 / 4) ** 0.5) * (1 - 0.25) ** 0.5)  # of the farther one, in 4 dimensions
    assert float((far - 2).abs().lt(1e-6).double().mean()) == pytest.approx(p * p, abs=0.02)


def test_many_features_do_not_overflow():
    z = F.normalize(rand(64, 2048), dim=1)
    z.requires_grad_()
    loss = triplet(z, torch.arange(64) % 8, mining=DRAWN, margin=None, generator=torch.Generator())
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def test_generator_decides():
    z, groups = rand(30, 6), torch.arange(30) % 5
    seeds = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    a, b, c = (triplet(z, groups, mining=DRAWN, generator=g, reduction="none") for g in seeds)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# Peers


def explicit(z, groups):
    """Every triplet's three rows."""
    n = range(len(z))
    found = [
        (a, p, q) for a in n for p in n for q in n if a != p and groups[a] == groups[p] and groups[a] != groups[q]
    ]
    return (z[list(rows)] for rows in zip(*found))


@pytest.mark.parametrize("margin", [0.2, 2.0])
def test_torchs_own_triplets(margin):
    z, groups = rand(12, 4), torch.arange(12) % 3
    each = F.triplet_margin_loss(*explicit(z, groups), margin=margin, eps=1e-30, reduction="none")
    torch.testing.assert_close(triplet(z, groups, mining="all", margin=margin), each[each > 0].mean())
    torch.testing.assert_close(triplet(z, groups, mining="all", margin=margin, reduction="sum"), each.sum())


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("metric", ["euclidean", "squared"])
def test_pytorch_metric_learning(unit, metric):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, losses, miners, reducers

    z, groups = rand(20, 6), torch.arange(20) % 4
    measure = distances.LpDistance(normalize_embeddings=unit, power=1 if metric == "euclidean" else 2)
    how = {"metric": metric, "unit": unit}
    peer = losses.TripletMarginLoss(margin=0.2, distance=measure)
    torch.testing.assert_close(triplet(z, groups, mining="all", margin=0.2, **how), peer(z, groups))
    soft = losses.TripletMarginLoss(margin=0, smooth_loss=True, distance=measure, reducer=reducers.MeanReducer())
    torch.testing.assert_close(triplet(z, groups, mining="all", margin=None, **how), soft(z, groups))
    hard = losses.TripletMarginLoss(margin=0.2, distance=measure, reducer=reducers.MeanReducer())
    mined = miners.BatchHardMiner(distance=measure)(z, groups)
    torch.testing.assert_close(triplet(z, groups, mining="hard", margin=0.2, **how), hard(z, groups, mined))


# Processes


def weighted(z, groups, *keys):
    return triplet(z, groups, *keys, mining=DRAWN, margin=1.0, generator=torch.Generator().manual_seed(3))


def against_keys(z, groups, keys, mining):
    """The second half of the groups' columns are the keys' ids: parts of a batch, gathered."""
    return triplet(z, groups, keys, groups.flip(0), mining=mining, margin=None)


def whole_sum(z, groups):
    return triplet(z, groups, mining="semi-hard", margin=1.0, reduction="sum")


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world):
    x, w = rand(14, 5), [rand(5, 3, seed=1)]
    groups = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 4, 1, 3, 2])
    ways = {f"{m}, {b}": partial(triplet, mining=m, margin=b) for m in MINING for b in (0.5, None)}
    ways |= {DRAWN: weighted, "sum": whole_sum, "flat": partial(triplet, mining="hard")}
    cases = {name: (fn, x, [groups], w) for name, fn in ways.items()}
    cases["flat"] = (ways["flat"], x, [torch.arange(14)], w)
    queue, ids = rand(9, 3, seed=2), torch.arange(9) % 5
    for mining in MINING:
        cases[f"{mining}, a queue"] = (partial(triplet, keys=queue, key_groups=ids, mining=mining), x, [groups], w)
    cases["drawn, a queue"] = (partial(from_queue, queue=queue, ids=ids), x, [groups], w)
    few = x[: world - 1]  # a process without a row
    cases["flat, few"] = (partial(triplet, mining="all"), few, [groups[: len(few)]], w)
    assert_processes_equal_one(cases, world)


def from_queue(z, groups, queue, ids):
    return weighted(z, groups, queue, ids)


# Bad input


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"mining": "semihard"}, "unknown mining 'semihard'; did you mean 'semi-hard'"),
        ({"metric": "dot"}, "unknown metric 'dot'"),
        ({"margin": -0.1}, "margin must be .* got -0.1"),
        ({"margin": float("nan")}, "margin must be .* got nan"),
        ({"margin": "soft"}, "margin must be .* got 'soft'"),
        ({"mining": DRAWN}, "give generator="),
        ({"generator": 3}, "generator must be a torch.Generator, got int"),
        ({"reduction": "men"}, "reduction 'men'"),
        ({"keys": torch.zeros(2, 3)}, "keys and key_groups go together"),
    ],
)
def test_bad_arguments_are_named(how, said):
    with pytest.raises(ValueError, match=said) as caught:
        triplet(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), **how)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="z holds NaN"):
        triplet(torch.full((4, 3), float("nan")), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="groups must be a tensor of whole numbers"):
        triplet(torch.zeros(4, 3), torch.zeros(4))
