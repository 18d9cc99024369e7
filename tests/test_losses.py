"""The softmax losses against their papers' formulas, written out in float64 loops, value and gradient."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import all_steps, assert_processes_equal_one, spawn
from torch.utils._python_dispatch import TorchDispatchMode

from nearfar import losses
from nearfar.losses import engine, info_nce, nt_xent, panels, tiles

STRUCTURES = {
    "pairs": lambda n: torch.arange(n) // 2,
    "views": lambda n: torch.arange(n) % max(1, n // 2),
    "many": lambda n: torch.arange(n) % 3,
    "none": lambda n: torch.arange(n),
    "one group": lambda n: torch.zeros(n, dtype=torch.int64),
    "mixed": lambda n: torch.tensor([0, 0, 1, 5, 0, 9, 9, 2, 5, 5, 5, 7, 8][:n]) * 10**12,
}


def lse(values):
    return torch.logsumexp(torch.stack(values), 0) if values else torch.tensor(-math.inf, dtype=torch.float64)


def mean(values):
    return torch.stack(values).mean()


# one anchor's loss, as its paper has it: cos to each candidate, the positives' and negatives' indices, τ
def out(cos, pos, neg, t):
    return -mean([cos[p] / t - lse([cos[j] / t for j in pos + neg]) for p in pos])


def inside(cos, pos, neg, t):
    bottom = lse([cos[j] / t for j in pos + neg])
    return -(lse([cos[p] / t for p in pos]) - math.log(len(pos)) - bottom)


def smoothed(cos, pos, neg, t, eps=0.2):
    bottom = lse([cos[j] / t for j in pos + neg])
    logs = {j: cos[j] / t - bottom for j in pos + neg}
    return -(1 - eps) * mean([logs[p] for p in pos]) - eps * mean(list(logs.values()))


def each(cos, pos, neg, t):
    return -mean([cos[p] / t - lse([cos[j] / t for j in [*neg, p]]) for p in pos])


def decoupled(cos, pos, neg, t):
    return lse([cos[n] / t for n in neg]) - mean([cos[p] / t for p in pos])


def hard(cos, pos, neg, t, prior=0.1, beta=1.0):
    top = max(c.item() for c in cos) / t  # a shift, so that the formula can be written without logarithms
    e = lambda j, k=1.0: torch.exp(k * cos[j] / t - k * top)  # noqa: E731
    weight = [e(n, beta) for n in neg]
    negatives = sum(w * e(n) for w, n in zip(weight, neg)) / sum(weight)
    g = (negatives - prior * mean([e(p) for p in pos])) / (1 - prior)
    g = torch.maximum(g, torch.exp(torch.tensor(-1 / t - top, dtype=torch.float64)))
    return -mean([torch.log(e(p) / (e(p) + len(neg) * g)) for p in pos])


ONE = {  # name -> (ours, the paper's, does an anchor need a negative too, are rows brought to length one)
    "info_nce": (losses.info_nce, out, False, True),
    "nt_xent": (losses.nt_xent, out, False, True),
    "sup_con out": (losses.sup_con, out, False, True),
    "sup_con in": (functools.partial(losses.sup_con, kind="in"), inside, False, True),
    "smoothing": (functools.partial(losses.info_nce, label_smoothing=0.2), smoothed, False, True),
    "dot": (functools.partial(losses.info_nce, similarity="dot"), out, False, False),
    "vince": (losses.vince, each, False, True),
    "dcl": (losses.dcl, decoupled, True, True),
    "debiased": (losses.debiased, functools.partial(hard, beta=0.0), True, True),
    "hard_negative": (losses.hard_negative, hard, True, True),
}


def naive(z, groups, keys, key_groups, t, paper, both, unit):
    if unit:
        z, keys = F.normalize(z, dim=1), None if keys is None else F.normalize(keys, dim=1)
    own = keys is None
    keys, key_groups = (z, groups) if own else (keys, key_groups)
    got = []
    for i in range(len(z)):
        others = [j for j in range(len(keys)) if not (own and j == i)]
        pos = [j for j in others if key_groups[j] == groups[i]]
        neg = [j for j in others if key_groups[j] != groups[i]]
        if pos and (neg or not both):
            got.append(paper([z[i] @ k for k in keys], pos, neg, t))
    return mean(got) if got else (z * 0).sum()


def example(n, m, d, seed, structure):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, dtype=torch.float64, generator=g)
    keys = torch.randn(m, d, dtype=torch.float64, generator=g) if m else None
    groups = STRUCTURES[structure](n)
    return z, groups, keys, None if keys is None else STRUCTURES[structure](13)[torch.arange(m) % 13]


def with_gradients(loss, z, keys):
    z = z.clone().requires_grad_()
    keys = None if keys is None else keys.clone().requires_grad_()
    value = loss(z, keys)
    value.backward()
    return value.item(), z.grad, None if keys is None else keys.grad


@pytest.mark.parametrize("name", ONE)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 13), m=st.integers(0, 13), d=st.integers(1, 6),
       t=st.sampled_from([0.01, 0.07, 0.5, 1.0, 10.0]), structure=st.sampled_from(list(STRUCTURES)),
       size=st.sampled_from([1, 3, 1024]))  # fmt: skip
def test_each_loss_is_its_papers(name, seed, n, m, d, t, structure, size):
    ours, paper, both, unit = ONE[name]
    z, groups, keys, key_groups = example(n, m, d, seed, structure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "side", lambda device, longest: size)  # tiles that do not divide the rows
        patch.setattr(panels, "VALUES", size * 16)
        got = with_gradients(lambda z, k: ours(z, groups, k, key_groups, temperature=t), z, keys)
    want = with_gradients(lambda z, k: naive(z, groups, k, key_groups, t, paper, both, unit), z, keys)
    assert got[0] == pytest.approx(want[0], rel=1e-9, abs=1e-9)
    for a, b in zip(got[1:], want[1:]):
        if a is not None and b is not None:
            scale = max(1e-3, float(b.abs().max()))
            torch.testing.assert_close(a / scale, b / scale, rtol=1e-7, atol=1e-7)


def naive_dclw(z, groups, t, sigma):
    u = F.normalize(z, dim=1)
    pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j and groups[i] == groups[j]]
    middle = np.mean([math.exp((u[i] @ u[j]).item() / sigma) for i, j in pairs])
    total = []
    for i in range(len(z)):
        pos = [j for k, j in pairs if k == i]
        neg = [j for j in range(len(z)) if groups[j] != groups[i]]
        if pos and neg:
            w = {p: 2 - math.exp((u[i] @ u[p]).item() / sigma) / middle for p in pos}
            total.append(lse([u[i] @ u[n] / t for n in neg]) - mean([w[p] * (u[i] @ u[p]) / t for p in pos]))
    return mean(total)


def naive_n_pair(z, groups, keys, key_groups, l2):
    total = []
    for i in range(len(z)):
        pos = [j for j in range(len(keys)) if key_groups[j] == groups[i]]
        neg = [j for j in range(len(keys)) if key_groups[j] != groups[i]]
        if pos:
            terms = [torch.log(1 + sum(torch.exp(z[i] @ keys[n] - z[i] @ keys[p]) for n in neg)) for p in pos]
            total.append(mean(terms) + l2 * (z[i] @ z[i]))
    return mean(total)


def naive_sigmoid(z, groups, keys, key_groups, t, bias):
    own = keys is None
    z = F.normalize(z, dim=1)
    keys, key_groups = (z, groups) if own else (F.normalize(keys, dim=1), key_groups)
    total = 0.0
    for i in range(len(z)):
        for j in range(len(keys)):
            if not (own and i == j):
                y = 1 if groups[i] == key_groups[j] else -1
                total = total + F.softplus(-y * (z[i] @ keys[j] / t + bias))
    return total / len(z)


@pytest.mark.parametrize("structure", ["pairs", "many", "mixed"])
@pytest.mark.parametrize("t", [0.01, 0.1, 1.0])
def test_losses_with_settings_of_their_own_are_their_papers(structure, t, monkeypatch):
    monkeypatch.setattr(tiles, "side", lambda device, longest: 4)
    z, groups, keys, key_groups = example(12, 9, 5, 3, structure)
    cases = [
        (lambda z, k: losses.dclw(z, groups, temperature=t, sigma=0.4), lambda z, k: naive_dclw(z, groups, t, 0.4)),
        (lambda z, k: losses.n_pair(z, groups, k, key_groups, l2=0.3),
         lambda z, k: naive_n_pair(z, groups, k, key_groups, 0.3)),
        (lambda z, k: losses.clip(z, groups, k, key_groups, temperature=t),
         lambda z, k: (naive(z, groups, k, key_groups, t, out, False, True)
                       + naive(k, key_groups, z, groups, t, out, False, True)) / 2),
        (lambda z, k: losses.sigmoid(z, groups, k, key_groups, temperature=t, bias=-3.0),
         lambda z, k: naive_sigmoid(z, groups, k, key_groups, t, -3.0)),
        (lambda z, k: losses.sigmoid(z, groups, temperature=t, bias=-3.0),
         lambda z, k: naive_sigmoid(z, groups, None, None, t, -3.0)),
    ]  # fmt: skip
    for ours, theirs in cases:
        got, want = with_gradients(ours, z, keys), with_gradients(theirs, z, keys)
        assert got[0] == pytest.approx(want[0], rel=1e-9)
        for a, b in zip(got[1:], want[1:]):
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8 * float(b.abs().max()) + 1e-12)


def test_false_negatives_are_left_out():
    z, groups, keys, key_groups = example(12, 9, 5, 4, "many")
    exclude, key_exclude = torch.arange(12) % 4, torch.arange(9) % 4

    def naive_excluding(z, keys, above=None):
        u, v = F.normalize(z, dim=1), F.normalize(keys, dim=1)
        total = []
        for i in range(12):
            pos = [j for j in range(9) if key_groups[j] == groups[i]]
            neg = [j for j in range(9) if key_groups[j] != groups[i] and exclude[i] != key_exclude[j]
                   and (above is None or (u[i] @ v[j]).item() <= above)]  # fmt: skip
            total.append(out([u[i] @ k for k in v], pos, neg, 0.2))
        return mean(total)

    for above in (None, 0.3):
        got = with_gradients(lambda z, k: info_nce(z, groups, k, key_groups, temperature=0.2, exclude=exclude,
                             key_exclude=key_exclude, exclude_above=above), z, keys)  # fmt: skip # noqa: B023
        want = with_gradients(lambda z, k: naive_excluding(z, k, above), z, keys)  # noqa: B023
        assert got[0] == pytest.approx(want[0], rel=1e-10)
        torch.testing.assert_close(got[1], want[1])
        torch.testing.assert_close(got[2], want[2])
    assert float(nt_xent(z, groups, exclude_above=2.0)) == pytest.approx(float(nt_xent(z, groups)), rel=1e-12)


@pytest.mark.parametrize("name", [n for n in ONE if n != "smoothing"])
@pytest.mark.parametrize("keyed", [False, True])
def test_temperature_gets_its_gradient(name, keyed):
    ours = ONE[name][0]
    z, groups, keys, key_groups = example(9, 7 * keyed, 4, 5, "many")
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    value = ours(z, groups, keys, key_groups, temperature=t)
    (slope,) = torch.autograd.grad(value, t)
    e = 1e-6
    up, down = (float(ours(z, groups, keys, key_groups, temperature=0.3 + d)) for d in (e, -e))
    assert float(slope) == pytest.approx((up - down) / (2 * e), rel=1e-6, abs=1e-9)


def test_gradcheck():
    z, groups, keys, key_groups = example(7, 5, 3, 6, "many")
    z, keys = z.requires_grad_(), keys.requires_grad_()
    t, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, -1.0))
    for loss in (losses.info_nce, losses.vince, losses.clip):
        assert torch.autograd.gradcheck(lambda z, k, t: loss(z, groups, k, key_groups, temperature=t), (z, keys, t))  # noqa: B023
    assert torch.autograd.gradcheck(lambda z, t: nt_xent(z, groups, temperature=t, reduction="none"), (z, t))
    sig = lambda z, k, t, b: losses.sigmoid(z, groups, k, key_groups, temperature=t, bias=b)  # noqa: E731
    assert torch.autograd.gradcheck(sig, (z, keys, t, b))
    assert torch.autograd.gradcheck(lambda z, t, b: losses.sigmoid(z, groups, temperature=t, bias=b), (z, t, b))


EVERY = {**{n: v[0] for n, v in ONE.items()}, "dclw": losses.dclw, "n_pair": losses.n_pair, "sigmoid": losses.sigmoid}


@pytest.mark.parametrize("name", EVERY)
def test_row_order_tiles_and_panels_do_not_matter(name, monkeypatch):
    ours = EVERY[name]
    z, groups, _, _ = example(13, 0, 6, 7, "mixed")
    want = with_gradients(lambda z, _: ours(z, groups), z, None)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    got = with_gradients(lambda z, _: ours(z, groups[order]), z[order], None)
    assert got[0] == pytest.approx(want[0], rel=1e-12)
    torch.testing.assert_close(got[1], want[1][order])
    for size in (1, 2, 5, 12):
        monkeypatch.setattr(tiles, "side", lambda device, longest: size)  # noqa: B023
        monkeypatch.setattr(panels, "VALUES", 13 * size)
        got = with_gradients(lambda z, _: ours(z, groups), z, None)
        assert got[0] == pytest.approx(want[0], rel=1e-12)
        torch.testing.assert_close(got[1], want[1])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("t", [0.01, 0.002])
def test_low_temperatures_do_not_overflow(name, t):
    if name in ("n_pair",):
        ours = lambda z, g: losses.n_pair(z / t**0.5, g)  # noqa: E731
    else:
        ours = lambda z, g: EVERY[name](z, g, temperature=t)  # noqa: E731
    g = torch.Generator().manual_seed(8)
    z = F.normalize(torch.randn(20, 4, generator=g), dim=1)
    z[1] = -z[0]  # the worst positive there can be
    groups = torch.arange(20) // 2
    a, b = (with_gradients(lambda z, _: ours(z, groups), x, None) for x in (z, z.double()))
    assert a[0] == pytest.approx(b[0], rel=2e-5)
    assert math.isfinite(a[0])
    torch.testing.assert_close(a[1].double(), b[1], rtol=1e-3, atol=1e-4 * float(b[1].abs().max()))


@pytest.mark.parametrize("name", EVERY)
def test_without_a_positive_the_loss_is_zero_and_never_nan(name):
    for n in (1, 2, 5):
        z = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), requires_grad=True)
        value = EVERY[name](z, torch.arange(n))
        value.backward()
        if name != "sigmoid":  # there negatives alone are worth something
            assert value.item() == 0
            assert float(z.grad.abs().max()) == 0
        assert bool(z.grad.isfinite().all())
    z = torch.randn(6, 3, requires_grad=True)
    alone = EVERY[name](z, torch.zeros(6, dtype=torch.int64))  # all one group
    alone.backward()
    assert math.isfinite(float(alone.detach()))
    assert bool(z.grad.isfinite().all())


def test_rows_without_a_positive_are_left_out_of_the_mean():
    z, groups, _, _ = example(12, 0, 5, 9, "mixed")
    each_row = nt_xent(z, groups, reduction="none")
    counted = torch.tensor([int((groups == g).sum()) > 1 for g in groups])
    assert bool((each_row[~counted] == 0).all())
    assert float(nt_xent(z, groups)) == pytest.approx(float(each_row[counted].mean()), rel=1e-12)
    assert float(nt_xent(z, groups, reduction="sum")) == pytest.approx(float(each_row.sum()), rel=1e-12)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_and_autocast_changes_nothing(name, dtype):
    ours = EVERY[name]
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(10)).to(dtype)
    groups = torch.arange(16) // 2
    wide = with_gradients(lambda z, _: ours(z, groups), z.float(), None)
    narrow = with_gradients(lambda z, _: ours(z, groups), z, None)
    assert narrow[0] == wide[0]
    assert narrow[1].dtype == dtype
    torch.testing.assert_close(narrow[1].float(), wide[1], rtol=0.02, atol=0.01 * float(wide[1].abs().max()))

    def under_autocast(z, _):
        with torch.autocast("cpu", torch.bfloat16):
            return ours(z, groups)

    cast = with_gradients(under_autocast, z.float(), None)
    assert cast[0] == wide[0]
    torch.testing.assert_close(cast[1], wide[1], rtol=0, atol=0)


def test_cross_entropy_is_info_nce_against_every_class():
    g = torch.Generator().manual_seed(1)
    z, words = torch.randn(40, 8, generator=g), torch.randn(300, 8, generator=g)
    target = torch.randint(0, 300, (40,), generator=g)
    target[3] = -100  # torch's own mark of what is left out
    for smoothing in (0.0, 0.1):
        want = F.cross_entropy(z @ words.T, target, label_smoothing=smoothing)
        got = losses.cross_entropy(z, target, words, label_smoothing=smoothing)
        assert float(got) == pytest.approx(float(want), rel=1e-6)
    a, b = (with_gradients(f, z, words) for f in (lambda z, w: losses.cross_entropy(z, target, w),
                                                 lambda z, w: F.cross_entropy(z @ w.T, target)))  # fmt: skip
    torch.testing.assert_close(a[1], b[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(a[2], b[2], rtol=1e-5, atol=1e-7)
    want = F.cross_entropy(F.normalize(z, dim=1) @ F.normalize(words, dim=1).T / 0.1, target)
    torch.testing.assert_close(info_nce(z, target, words, torch.arange(300), temperature=0.1), want)


class Largest(TorchDispatchMode):
    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, tuple | list) else (made,):
            if isinstance(t, torch.Tensor):
                self.most = max(self.most, t.numel())
        return made


def test_memory_is_flat_in_the_number_of_pairs(monkeypatch):
    """No tensor of N×N is ever made: the largest is a tile or the input."""
    monkeypatch.setattr(panels, "VALUES", 2**17)
    monkeypatch.setattr(tiles, "side", lambda device, longest: 256)
    n = 2000
    z = torch.randn(n, 16, requires_grad=True)
    for name, ours in EVERY.items():
        with Largest() as seen:
            ours(z, torch.arange(n) // 2).backward()
        assert seen.most <= 2**17, name


def test_more_pairs_than_a_whole_number_of_31_bits_counts():
    """Index overflow past 2³¹ pairs: 47,000² candidates are counted and summed without an index of their own."""
    n = 47_000
    groups = torch.arange(n) % 2
    t = engine.tally(groups, groups, 0)
    assert int(t.positives.sum()) == n * (n // 2 - 1)
    assert n * n > 2**31
    z = torch.ones(n, 1)  # every cosine is 1: the loss is log(n - 1) exactly
    assert float(nt_xent(z, groups, temperature=1.0)) == pytest.approx(math.log(n - 1), rel=1e-6)


EYE, IDS = torch.eye(4), torch.arange(4)
BAD = [
    (lambda: nt_xent(EYE, IDS[:3]), r"z has 4 rows and groups is \(3,\): give one id a row"),
    (lambda: nt_xent(EYE[0], IDS), r"z must be \(N, d\), got \(4,\)"),
    (lambda: nt_xent(EYE, IDS.float()), "groups must be a tensor of whole numbers, got torch.float32"),
    (lambda: nt_xent(EYE.long(), IDS), "z must be a tensor of floats, got torch.int64"),
    (lambda: nt_xent([[1.0]], torch.arange(1)), "z must be a tensor of floats, got list"),
    (lambda: nt_xent(EYE * torch.nan, IDS), "holds NaN or infinite values in 4 of 4 rows, the first row 0"),
    (lambda: nt_xent(torch.tensor([[1.0], [torch.inf]]), torch.arange(2)), "in 1 of 2 rows, the first row 1"),
    (lambda: nt_xent(EYE, IDS, temperature=0), "temperature must be a number above 0, got 0"),
    (lambda: nt_xent(EYE, IDS, temperature=-0.1), "got -0.1"),
    (lambda: nt_xent(EYE, IDS, temperature=torch.tensor([0.1, 0.2])), r"got a tensor of \(2,\)"),
    (lambda: nt_xent(EYE, IDS, reduction="men"), "reduction 'men'"),
    (lambda: info_nce(EYE, IDS, EYE[:3, :3], IDS[:3]), r"keys are \(3, 3\) and z is \(4, 4\)"),
    (lambda: info_nce(EYE, IDS, EYE), "keys and key_groups go together"),
    (lambda: info_nce(EYE, IDS, EYE, torch.arange(5)), r"keys has 4 rows and key_groups is \(5,\)"),
    (lambda: info_nce(EYE, IDS, similarity="cos"), "similarity 'cos'"),
    (lambda: info_nce(EYE, IDS, label_smoothing=1.0), "label_smoothing must lie in"),
    (lambda: info_nce(EYE, IDS, exclude=torch.arange(3)), r"exclude is \(3,\)"),
    (lambda: losses.debiased(EYE, IDS, prior=1.0), "prior must lie in 0 to below 1, got 1.0"),
    (lambda: losses.sigmoid(EYE, IDS, reduction="none"), "sigmoid takes 'mean' or 'sum'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), BAD)
def test_bad_input_is_named_in_one_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


# several processes
def queue_loss(z, groups, t, queue):
    return info_nce(z, groups, queue, torch.arange(len(queue)) % 5, temperature=t)  # a queue is the same everywhere


def towers(z, groups, keys, v, t, loss=losses.info_nce):
    return loss(z, groups, keys @ v, groups, temperature=t)


def own(z, groups, t, loss=losses.nt_xent):
    return loss(z, groups, temperature=t)


def summed(z, groups, t):
    return nt_xent(z, groups, temperature=t, reduction="sum")


def excluding(z, groups, more, t):
    return nt_xent(z, groups, exclude=more, exclude_above=0.4, temperature=t)


def classes(z, groups, weight):
    return losses.cross_entropy(z, groups, weight)


def biased(z, groups, t, b, keyed=False):
    keys = (z.flip(1), groups) if keyed else ()
    return losses.sigmoid(z, groups, *keys, temperature=t, bias=b)


def paired(z, groups, keys, v):
    return losses.n_pair(z, groups, keys @ v, groups, l2=0.1)


def process_cases():
    g = torch.Generator().manual_seed(2)
    draw = lambda *s: torch.randn(*s, dtype=torch.float64, generator=g)  # noqa: E731
    x, y, w, v = draw(23, 5), draw(23, 4), draw(5, 6), draw(4, 6)
    groups, more = torch.randint(0, 7, (23,), generator=g), torch.randint(0, 4, (23,), generator=g)
    t, b = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    cases = {f"own {n}": (functools.partial(own, loss=f), x, (groups,), (w, t))
             for n, f in EVERY.items() if n not in ("n_pair", "smoothing")}  # fmt: skip
    cases |= {f"towers {f.__name__}": (functools.partial(towers, loss=f), x, (groups, y), (w, v, t))
              for f in (losses.info_nce, losses.clip, losses.vince, losses.dcl, losses.hard_negative)}  # fmt: skip
    cases |= {"smoothing": (functools.partial(own, loss=ONE["smoothing"][0]), x, (groups,), (w, t)),
              "queue": (functools.partial(queue_loss, queue=draw(11, 6)), x, (groups,), (w, t)),
              "sum": (summed, x, (groups,), (w, t)), "excluding": (excluding, x, (groups, more), (w, t)),
              "classes": (classes, x, (groups,), (w, draw(7, 6))), "n_pair": (paired, x, (groups, y), (w, v)),
              "sigmoid": (biased, x, (groups,), (w, t, b)),
              "sigmoid keys": (functools.partial(biased, keyed=True), x, (groups,), (w, t, b))}  # fmt: skip
    return cases


@pytest.mark.parametrize("world", [2, 3])
def test_processes_with_unequal_parts_equal_one(world):
    assert_processes_equal_one(process_cases(), world)


def _steps_round_a_ring(cases):
    from processes import all_steps

    from nearfar.losses import ring

    ring.ABOVE = -1  # as if the candidates were many
    tiles.side = lambda device, longest: 4
    return all_steps(cases)


@pytest.mark.parametrize("world", [2, 3])
def test_a_ring_equals_one_process(world):
    kept = ("own info_nce", "own nt_xent", "smoothing", "towers info_nce", "towers clip", "sum", "classes", "queue")
    cases = {name: case for name, case in process_cases().items() if name in kept}
    assert len(cases) == len(kept)
    one = all_steps(cases)
    for got in spawn(world, _steps_round_a_ring, cases):
        for name, (value, grads) in got.items():
            assert value == pytest.approx(one[name][0], rel=1e-10), name
            for a, b in zip(grads, one[name][1]):
                assert torch.allclose(a, b, rtol=1e-9, atol=1e-11), name


def _largest_round_a_ring():
    """The largest tensor that a process makes, in values, with 3 × 400 candidates of 16."""
    from nearfar.losses import ring

    ring.ABOVE, tiles.side = -1, lambda device, longest: 64
    z = torch.randn(400, 16, generator=torch.Generator().manual_seed(torch.distributed.get_rank()), requires_grad=True)
    with Largest() as seen:
        nt_xent(z, torch.arange(400) // 2 + 200 * torch.distributed.get_rank()).backward()
    return seen.most


def test_a_ring_holds_a_block_and_never_all():
    assert max(spawn(3, _largest_round_a_ring)) <= 401 * 16 < 3 * 400 * 16  # a row of zeros beside the groups' sums


def test_tiles_are_as_large_as_the_device_likes_and_never_larger_than_the_rows():
    assert tiles.side(torch.device("cpu"), 10**6) == 1024  # two of them fit a core's caches
    assert tiles.side(torch.device("cuda"), 10**6) == 4096
    assert tiles.side(torch.device("cpu"), 7) == 7


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, torch.tensor])
def test_a_temperature_may_be_any_number(kind):
    want = nt_xent(EYE, IDS // 2, temperature=0.1).item()
    assert nt_xent(EYE, IDS // 2, temperature=kind(0.1)).item() == pytest.approx(want)


def _one_bad_process():
    z, ids = torch.eye(4), torch.arange(4)
    second = torch.distributed.get_rank() == 1
    said = []
    for call in (lambda: nt_xent(z * torch.nan if second else z, ids),
                 lambda: nt_xent(z, ids, exclude=ids[:3] if second else ids)):  # fmt: skip
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    # keys that are the same everywhere with ids that are not: parts of a batch all the same
    mine = ids + 4 * second
    said.append(nt_xent(z, mine, z, mine, exclude=ids, key_exclude=ids).item())
    return said


def test_a_bad_process_stops_all_of_them():
    good, bad = spawn(2, _one_bad_process)
    assert "z holds NaN" in bad[0]
    assert "exclude is (3,)" in bad[1]
    assert all("process 1 was given embeddings that cannot be used" in said for said in good[:2])
    z, ids = torch.eye(4).repeat(2, 1), torch.arange(8)
    one = nt_xent(z, ids, z, ids, exclude=ids % 4, key_exclude=ids % 4).item()
    assert good[2] == bad[2] == pytest.approx(one, rel=1e-6)


# peers
def test_lightlys_nt_xent_dcl_dclw():
    peer = pytest.importorskip("lightly.loss")
    g = torch.Generator().manual_seed(11)
    a, b = torch.randn(16, 8, generator=g), torch.randn(16, 8, generator=g)
    z, groups = torch.cat([a, b]), torch.arange(16).repeat(2)
    assert float(nt_xent(z, groups, temperature=0.2)) == pytest.approx(float(peer.NTXentLoss(0.2)(a, b)), rel=1e-5)
    assert float(losses.dcl(z, groups, temperature=0.2)) == pytest.approx(float(peer.DCLLoss(0.2)(a, b)), rel=1e-5)


def test_pytorch_metric_learnings_nt_xent_sup_con_n_pairs():
    peer = pytest.importorskip("pytorch_metric_learning.losses")
    g = torch.Generator().manual_seed(12)
    z = torch.randn(24, 8, generator=g)
    pairs, labels = torch.arange(24) // 2, torch.arange(24) % 5
    assert float(nt_xent(z, pairs, temperature=0.2)) == pytest.approx(float(peer.NTXentLoss(0.2)(z, pairs)), rel=1e-5)
    for t in (0.1, 0.5):
        want = float(peer.SupConLoss(t)(z, labels))
        assert float(losses.sup_con(z, labels, temperature=t)) == pytest.approx(want, rel=1e-5)
    # its NT-Xent takes each positive pair against the negatives alone: with several positives, VINCE's form
    by_pair = torch.tensor([int((labels == c).sum()) - 1 for c in labels], dtype=torch.float32)
    mine = losses.vince(z, labels, temperature=0.2, reduction="none")
    want = float(peer.NTXentLoss(0.2)(z, labels))
    assert float((mine * by_pair).sum() / by_pair.sum()) == pytest.approx(want, rel=1e-5)
