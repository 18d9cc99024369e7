"""Losses on given pairs against their formulas in loops and sentence-transformers' own."""

import inspect
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_processes_equal_one
from torch import Tensor

from nearfar import dist, losses
from nearfar.losses import angle, cosent, info_nce, matryoshka, pair_logistic, pair_margin, pair_regression

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


def cos(x: Tensor, y: Tensor) -> Tensor:
    return x @ y / (x.norm() * y.norm())


def theta(x: Tensor, y: Tensor) -> Tensor:
    """|Re + Im| of the complex product of the two, by complex numbers."""
    if len(x) % 2:
        x, y = F.pad(x, (0, 1)), F.pad(y, (0, 1))
    half = len(x) // 2
    p, q = torch.complex(x[:half], x[half:]), torch.complex(y[:half], y[half:])
    product = (p * q.conj()).sum() / (x.norm() * y.norm())
    return (product.real + product.imag).abs()


def ranked(alike, a, b, scores, temperature=0.05):
    s = [alike(x, y) for x, y in zip(a, b)]
    total = 1.0
    for i in range(len(s)):
        for j in range(len(s)):
            if scores[i] > scores[j]:
                total = total + ((s[j] - s[i]) / temperature).exp()
    return torch.as_tensor(total, dtype=a.dtype).log() + 0 * (a.sum() + b.sum())


def soft(a, b, scores, temperature=0.1, bias=0.0):
    p = [torch.sigmoid(cos(x, y) / temperature + bias) for x, y in zip(a, b)]
    return sum(-s * q.log() - (1 - s) * (1 - q).log() for s, q in zip(scores, p)) / len(p)


def hadsell(distance, a, b, same, margin=1.0):
    d = [distance(x, y) for x, y in zip(a, b)]
    return sum(0.5 * e**2 if s else 0.5 * max(0 * e, margin - e) ** 2 for s, e in zip(same, d)) / len(d)


def squared(a, b, scores):
    return sum((cos(x, y) - s) ** 2 for x, y, s in zip(a, b, scores)) / len(a)


CASES = {  # loss, naive, settings, are the values 0 or 1
    "cosent": (cosent, partial(ranked, cos), {}, False),
    "cosent soft": (cosent, partial(ranked, cos), {"temperature": 0.7}, False),
    "angle": (angle, partial(ranked, theta), {}, False),
    "pair_logistic": (pair_logistic, soft, {"temperature": 0.3, "bias": -0.5}, False),
    "pair_margin": (pair_margin, partial(hadsell, lambda x, y: (x - y).norm()), {"margin": 2.5}, True),
    "pair_margin cosine": (
        partial(pair_margin, metric="cosine-distance"), partial(hadsell, lambda x, y: 1 - cos(x, y)), {}, True),
    "pair_regression": (pair_regression, squared, {}, False),
}  # fmt: skip
every = pytest.mark.parametrize("name", CASES)


def sample(seed: int, n: int, d: int, whole: bool, levels: int = 5, dtype=torch.float64):
    r = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, d, dtype=torch.float64, generator=r).to(dtype) for _ in range(2))
    s = torch.randint(0, 2 if whole else levels + 1, (n,), generator=r)
    return a, b, s if whole else (s / levels).to(dtype)  # many are equal


def slope(loss, a, b, *rest):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    value = loss(a, b, *rest)
    value.backward()
    return value.detach(), a.grad, b.grad


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4))
def test_each_is_its_formula(seed, n, d, levels):
    for name, (loss, naive, how, whole) in CASES.items():
        a, b, s = sample(seed, n, d, whole, levels)
        for got, want in zip(slope(partial(loss, **how), a, b, s), slope(partial(naive, **how), a, b, s)):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9, msg=lambda m: f"{name}: {m}")  # noqa: B023


@every
def test_gradcheck(name):
    loss, _, how, whole = CASES[name]
    a, b, s = sample(3, 6, 4, whole)
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, s, **how), (a.requires_grad_(), b.requires_grad_()))


def test_learnt_temperature_and_bias():
    a, b, s = sample(4, 6, 4, False)
    t, c = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, -0.3))
    assert torch.autograd.gradcheck(lambda t, c: pair_logistic(a, b, s, temperature=t, bias=c), (t, c))
    for loss in (cosent, angle):
        assert torch.autograd.gradcheck(lambda t: loss(a, b, s, temperature=t), (t,))  # noqa: B023


def test_sentence_transformers_say_the_same():
    pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers.sentence_transformer import losses as theirs

    model = torch.nn.Identity()
    pairs = {
        cosent: theirs.CoSENTLoss(model), angle: theirs.AnglELoss(model),
        partial(pair_margin, metric="cosine-distance", margin=0.5): theirs.ContrastiveLoss(model),
        pair_regression: theirs.CosineSimilarityLoss(model),
    }  # fmt: skip
    for ours, peer in pairs.items():
        for d in (6, 7):
            a, b, s = sample(5, 40, d, isinstance(ours, partial))
            want = slope(lambda x, y, s: peer.compute_loss_from_embeddings([x, y], s), a, b, s.double())  # noqa: B023
            for got, expected in zip(slope(ours, a, b, s), want):
                torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_float_is_taken_and_the_order_does_not_matter(name, dtype):
    loss, _, how, whole = CASES[name]
    a, b, s = sample(6, 50, 8, whole, dtype=dtype)
    value, da, db = slope(partial(loss, **how), a, b, s)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert da.dtype == db.dtype == dtype
    assert float(da.abs().max()) > 0
    assert bool(da.isfinite().all())
    assert bool(db.isfinite().all())
    again = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    moved = loss(a[again], b[again], s[again], **how)
    torch.testing.assert_close(moved, value, rtol=1e-5, atol=1e-6)


def test_cosent_over_many_pairs_is_exact_and_flat():
    """65,536 pairs: all pairs of pairs would be 16 GiB."""
    a, b, s = sample(7, 2**16, 2, False, dtype=torch.float32)
    value = cosent(a, b, s)
    c = F.cosine_similarity(a.double(), b.double())
    total = torch.zeros(1, dtype=torch.float64)  # log 1
    for level in s.unique():
        below, above = c[s < level], c[s == level]
        if len(below):
            parts = [(below / 0.05).logsumexp(0, True) + (-above / 0.05).logsumexp(0, True)]
            total = torch.cat([total, *parts])
    torch.testing.assert_close(value.double(), total.logsumexp(0), rtol=1e-5, atol=1e-5)


def test_extremes_stay_finite():
    a, b, s = sample(8, 30, 4, False, dtype=torch.float32)
    for loss in (cosent, angle):
        value, da, _ = slope(partial(loss, temperature=1e-4), a, b, s)
        assert bool(value.isfinite())
        assert bool(da.isfinite().all())
    flat = slope(cosent, a, b, torch.ones(30))  # nothing is above anything
    assert float(flat[0]) == 0
    assert float(flat[1].abs().max()) == 0
    zero = torch.zeros(4, 3)
    for name, (loss, _, how, _whole) in CASES.items():
        value, da, _ = slope(partial(loss, **how), zero, zero.clone(), torch.tensor([0, 1, 0, 1]))
        assert bool(value.isfinite()), name
        assert bool(da.isfinite().all()), name


def test_reductions_and_integer_scores():
    a, b, s = sample(9, 7, 5, True)
    for loss in (pair_logistic, pair_margin, pair_regression):
        each = loss(a, b, s, reduction="none")
        assert each.shape == (7,)
        close(loss(a, b, s.bool(), reduction="sum"), each.sum())
        close(loss(a, b, s.double()), each.mean())
        with pytest.raises(ValueError, match="reduction 'means'"):
            loss(a, b, s, reduction="means")
    close(cosent(a, b, s), cosent(a, b, 3.0 * s - 1))  # the order alone


def test_pair_logistic_learns_what_pair_probability_says():
    a, b, s = sample(10, 9, 4, False)
    p = losses.pair_probability(a, b, 0.3, -0.4)
    close(pair_logistic(a, b, s, temperature=0.3, bias=-0.4), F.binary_cross_entropy(p, s))


def test_matryoshka_is_the_mean_over_prefixes():
    a, b, s = sample(11, 8, 6, False)
    want = sum(cosent(a[:, :w], b[:, :w], s) for w in (2, 3, 6)) / 3
    close(matryoshka(lambda x, y: cosent(x, y, s), (2, 3, 6), a, b), want)
    z, groups = a.clone().requires_grad_(), torch.arange(8) // 2
    matryoshka(lambda z: info_nce(z, groups), [2], z).backward()
    assert float(z.grad[:, :2].abs().min()) > 0
    assert float(z.grad[:, 2:].abs().max()) == 0
    for widths in ((), (0, 3), (7,), (2.0,), (True,)):
        with pytest.raises(ValueError, match="widths .*: give one or more whole numbers from 1 to 6"):
            matryoshka(lambda z: z.sum(), widths, a)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b": torch.ones(4, 2)}, r"a is \(4, 3\) and b is \(4, 2\)"),
        ({"a": torch.ones(4, 3).long()}, "a must be a tensor of floats"),
        ({"b": torch.full((4, 3), torch.nan)}, "b holds NaN or infinite"),
        ({"s": torch.ones(3)}, r"4 pairs and scores is \(3,\)"),
        ({"s": [1, 0, 1, 0]}, "scores must be a tensor of numbers, got list"),
        ({"s": torch.tensor([0, 1, torch.inf, 0])}, "scores holds NaN or infinite"),
        ({"s": torch.tensor([0, 1, 2.5, 0])}, "scores must lie between 0 and 1, got 2.5"),
        ({"how": {"temperature": 0}}, "temperature must be a number above 0"),
        ({"how": {"bias": "x"}}, "bias must be a finite number"),
    ],
)
def test_bad_input_is_named(change, said):
    given = {"a": torch.ones(4, 3), "b": torch.ones(4, 3), "s": torch.tensor([0, 1, 1, 0.5]), "how": {}} | change
    with pytest.raises(ValueError, match=said) as error:
        pair_logistic(given["a"], given["b"], given["s"], **given["how"])
    assert "\n" not in str(error.value)


def test_bad_labels_and_metrics_are_named():
    a = torch.ones(2, 3)
    with pytest.raises(ValueError, match="same must be 0 or 1, got 0.5"):
        pair_margin(a, a, torch.tensor([1, 0.5]))
    with pytest.raises(ValueError, match="unknown metric 'cosine'; did you mean 'cosine-distance'"):
        pair_margin(a, a, torch.tensor([1, 0]), metric="cosine")
    with pytest.raises(ValueError, match="margin must be a number above 0"):
        pair_margin(a, a, torch.tensor([1, 0]), margin=0)
    with pytest.raises(ValueError, match="scores must lie between -1 and 1, got 5"):
        pair_regression(a, a, torch.tensor([0, 5]))


# processes


def towers(loss, how: dict, a: Tensor, x: Tensor, scores: Tensor, w: Tensor, *learnt: Tensor) -> Tensor:
    if learnt:
        how = how | dict(zip(("temperature", "bias"), learnt))
    return loss(a, x @ w, scores, **how)


def mistaken(a: Tensor, y: Tensor, scores: Tensor) -> Tensor:
    """A loss after another has failed on one process alone, which all of them are told."""
    if dist.world() > 1:
        last = dist.rank() == dist.world() - 1
        with pytest.raises(ValueError, match="got 8" if last else f"process {dist.world() - 1} was given"):
            pair_logistic(torch.ones(2, 2), torch.ones(2, 2), torch.tensor([0.0, 8.0 if last else 1.0]))
    return pair_regression(a, y, scores)


def test_processes_equal_one():
    t, c = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    cases = {}
    for name, (whole, loss, how) in {  # naive functions are no part of what is sent
        "cosent": (False, cosent, {}), "angle": (False, angle, {}), "logistic": (False, pair_logistic, {}),
        "margin": (True, pair_margin, {"margin": 3.0}), "regression": (False, pair_regression, {}),
    }.items():  # fmt: skip
        x, y, s = sample(12, 13, 6, whole)
        w, v = sample(13, 6, 3, True)[:2]
        cases[name] = (partial(towers, loss, how), x, [y, s], [w, v])
        few = torch.tensor([0, 1])  # one a process
        cases[f"{name}, two pairs"] = (partial(towers, loss, how), x[:2], [y[:2], few], [w, v])
        if "temperature" in inspect.signature(loss).parameters:
            learnt = [t, c] if name == "logistic" else [t]
            cases[f"{name}, learnt"] = (partial(towers, loss, how), x, [y, s], [w, v, *learnt])
    cases["mistaken"] = (mistaken, x, [y[:, :3], s], [w])
    assert_processes_equal_one(cases, 2)
