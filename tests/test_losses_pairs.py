"""Each pair loss against its formula in loops, value and gradient; then what must not change it."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_formulas import CASES, LOSSES, Naive, sample, slope
from processes import assert_processes_equal_one
from torch import Tensor

from nearfar.losses import panels
from nearfar.losses.neighbourhood import circle, lifted_structure, multi_similarity, nca, soft_nearest_neighbour
from nearfar.losses.pairs import (
    alignment,
    alignment_uniformity,
    logistic,
    margin_contrastive,
    uniformity,
)

GROUPS = {
    "pairs": lambda n, r: torch.arange(n) % max(1, n // 2),
    "many": lambda n, r: torch.randint(0, 3, (n,), generator=r) - 1,
    "none": lambda n, r: torch.randperm(n, generator=r) * 1000,
    "one": lambda n, r: torch.full((n,), 5),
    "mixed": lambda n, r: torch.randint(0, n, (n,), generator=r),
}
every = pytest.mark.parametrize("name", CASES)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 5), st.sampled_from(sorted(GROUPS)), st.booleans())
def test_each_is_its_papers(seed, n, d, groups, with_keys):
    r = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, dtype=torch.float64, generator=r)
    given = [draw(n, d), GROUPS[groups](n, r)]
    if with_keys:
        m = int(torch.randint(1, 9, (), generator=r))
        given += [draw(m, d), GROUPS[groups](m, r)]
    for name, (loss, naive, how) in CASES.items():
        value, grads = slope(partial(loss, **how), *given)
        want, want_grads = slope(lambda *rows: naive(Naive(*rows), **how), *given)  # noqa: B023
        torch.testing.assert_close(value, want, rtol=1e-8, atol=1e-10, msg=lambda m: f"{name}: {m}")  # noqa: B023
        for got, expected in zip(grads, want_grads):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8, msg=lambda m: f"{name}, gradient: {m}")  # noqa: B023


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("circle")])  # its weights have no slope
def test_gradcheck(name):
    z, groups = sample(3, n=6, kinds=3)
    k, ids = sample(4, n=5, kinds=3)
    z.requires_grad_()
    k.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, groups), z)
    assert torch.autograd.gradcheck(lambda x, y: LOSSES[name](x, groups, y, ids), (z, k))


def test_learnt_temperature_and_bias():
    z, groups = sample(5, n=6, kinds=3)
    t, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, [-1.0]))
    assert torch.autograd.gradcheck(lambda t, b: logistic(z, groups, temperature=t, bias=b), (t, b))
    assert torch.autograd.gradcheck(lambda t: soft_nearest_neighbour(z, groups, temperature=t), t)
    logistic(z.float(), groups, temperature=t, bias=b).backward()
    assert t.grad.shape == ()
    assert b.grad.shape == (1,)
    assert float(t.grad) != 0
    assert float(b.grad) != 0


@every
def test_row_order(name):
    z, groups = sample(6)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    value, (grad,) = slope(LOSSES[name], z, groups)
    again, (grad_again,) = slope(LOSSES[name], z[order], groups[order])
    torch.testing.assert_close(again, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad_again, grad[order], rtol=1e-10, atol=1e-12)


@every
@pytest.mark.parametrize("with_keys", [False, True])
def test_panel_size(name, with_keys, monkeypatch):
    given = [*sample(7, n=11), *(sample(8, n=9) if with_keys else ())]
    value, grads = slope(LOSSES[name], *given)
    assert any(float(g.abs().max()) > 0 for g in grads)
    for values in (1, 150):
        monkeypatch.setattr(panels, "VALUES", values)
        again, grads_again = slope(LOSSES[name], *given)
        torch.testing.assert_close(again, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grads_again, grads, rtol=1e-10, atol=1e-12)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(name, dtype):
    z, groups = sample(9)
    z = z.to(dtype)
    value, (grad,) = slope(LOSSES[name], z, groups)
    want, (want_grad,) = slope(LOSSES[name], z.float(), groups)
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-6)
    assert bool(grad.isfinite().all())
    torch.testing.assert_close(grad.float(), want_grad, rtol=2e-2, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = slope(LOSSES[name], z, groups)
    torch.testing.assert_close(inside, want, rtol=1e-5, atol=1e-6)


@every
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1e4])
def test_float32_is_close_at_any_size(name, size):
    z, groups = sample(10)
    z = (z * size).float()
    value, (grad,) = slope(LOSSES[name], z, groups)
    want, _ = slope(LOSSES[name], z.double(), groups)
    assert bool(value.isfinite())
    assert bool(grad.isfinite().all())
    if size != 1e-20:  # too short to be normalised in float32
        torch.testing.assert_close(value.double(), want, rtol=2e-4, atol=1e-5)


@every
def test_rows_that_coincide(name):
    z, _ = sample(11, n=4)
    z, groups = z.repeat(2, 1), torch.tensor([0, 1, 2, 2, 0, 0, 1, 2])  # copies among positives and negatives
    for x in (z, z.float(), torch.zeros_like(z)):
        value, (grad,) = slope(LOSSES[name], x, groups)
        assert bool(value.isfinite())
        assert bool(grad.isfinite().all())


POSITIVES_NEEDED = [n for n in CASES if not n.startswith(("margin", "logistic", "uniformity", "alignment uniformity"))]


@pytest.mark.parametrize("name", POSITIVES_NEEDED)
def test_without_a_positive_it_is_zero(name):
    z, _ = sample(12)
    value, (grad,) = slope(LOSSES[name], z, torch.arange(len(z)))
    assert float(value) == 0
    assert float(grad.abs().max()) == 0


@pytest.mark.parametrize("name", [n for n in POSITIVES_NEEDED if "lifted" not in n and "alignment" not in n])
def test_anchors_without_a_positive_are_left_out(name):
    z, groups = sample(13, n=8, kinds=2)
    groups = groups + 1
    groups[0] = 0
    assert all(int((groups == g).sum()) > 1 for g in (1, 2))
    each = LOSSES[name](z, groups, reduction="none")
    assert float(each[0]) == 0
    torch.testing.assert_close(LOSSES[name](z, groups), each[1:].mean())


def test_one_group_has_no_uniformity():
    z, _ = sample(14)
    value, (grad,) = slope(uniformity, z, torch.zeros(len(z), dtype=torch.int64))
    assert float(value) == 0
    assert float(grad.abs().max()) == 0


@every
def test_no_rows_at_all(name):
    z = torch.zeros(0, 3)
    value, _ = slope(LOSSES[name], z, torch.zeros(0, dtype=torch.int64))
    assert float(value) == 0


@pytest.mark.parametrize("name", [n for n in CASES if "alignment" not in n and n != "uniformity"])
def test_reductions(name):
    z, groups = sample(15)
    each, total = (LOSSES[name](z, groups, reduction=r) for r in ("none", "sum"))
    assert each.shape == (len(z),)
    torch.testing.assert_close(each.sum(), total)
    assert float(total) != 0
    assert float(LOSSES[name](z, groups)) != float(total)
    with pytest.raises(ValueError, match="reduction 'men'"):
        LOSSES[name](z, groups, reduction="men")


@every
def test_input_is_left_alone(name):
    z, groups = sample(16)
    before = z.clone(), groups.clone()
    LOSSES[name](z, groups)
    assert torch.equal(z, before[0])
    assert torch.equal(groups, before[1])


@every
def test_bad_rows_are_named(name):
    loss, (z, groups) = LOSSES[name], sample(17)
    with pytest.raises(ValueError, match=r"z must be \(N, d\), got \(10,\)"):
        loss(z[:, 0], groups)
    with pytest.raises(ValueError, match="z must be a tensor of floats"):
        loss(groups[:, None], groups)
    with pytest.raises(ValueError, match="one id a row"):
        loss(z, groups[:3])
    with pytest.raises(ValueError, match="z holds NaN"):
        loss(z / 0, groups)
    with pytest.raises(ValueError, match="keys and key_groups"):
        loss(z, groups, z)


@pytest.mark.parametrize(
    ("loss", "how", "said"),
    [
        (margin_contrastive, {"margin": 0.0}, "margin must be a number above 0, got 0.0"),
        (margin_contrastive, {"metric": "euclid"}, "unknown metric 'euclid'; did you mean 'euclidean'"),
        (logistic, {"temperature": -1.0}, "temperature must be a number above 0, got -1.0"),
        (logistic, {"temperature": torch.ones(2)}, "temperature must be one number"),
        (logistic, {"bias": torch.ones(2)}, "bias must be one number"),
        (logistic, {"bias": float("nan")}, "bias must be a finite number, got nan"),
        (logistic, {"positive_weight": 0}, "positive_weight must be a number above 0, got 0"),
        (alignment, {"alpha": -2}, "alpha must be a number above 0, got -2"),
        (uniformity, {"t": 0}, "t must be a number above 0, got 0"),
        (alignment_uniformity, {"weight": float("inf")}, "weight must be a number above 0, got inf"),
        (multi_similarity, {"alpha": 0}, "alpha must be a number above 0"),
        (multi_similarity, {"beta": "x"}, "beta must be|could not"),
        (multi_similarity, {"base": None}, "base must be a finite number, got None"),
        (multi_similarity, {"epsilon": float("inf")}, "epsilon must be a finite number, got inf"),
        (circle, {"scale": 0}, "scale must be a number above 0, got 0"),
        (circle, {"margin": float("nan")}, "margin must be a finite number, got nan"),
        (soft_nearest_neighbour, {"temperature": 0}, "temperature must be a number above 0, got 0"),
        (soft_nearest_neighbour, {"metric": "dot"}, "unknown metric 'dot'"),
        (nca, {"objective": "expect"}, "unknown objective 'expect'; did you mean 'expected'"),
        (lifted_structure, {"form": "smoth"}, "unknown form 'smoth'; did you mean 'smooth'"),
        (lifted_structure, {"margin": -1}, "margin must be a number above 0, got -1"),
    ],
)
def test_bad_settings_are_named(loss, how, said):
    with pytest.raises(ValueError, match=said) as error:
        loss(*sample(18), **how)
    assert "\n" not in str(error.value)


# processes


def towers(loss, z: Tensor, groups: Tensor, x: Tensor, ids: Tensor, w: Tensor) -> Tensor:
    return loss(z, groups, x @ w, ids)


def learnt(loss, z: Tensor, groups: Tensor, temperature: Tensor, *bias: Tensor) -> Tensor:
    return loss(z, groups, temperature=temperature, **({"bias": bias[0]} if bias else {}))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world):
    x, groups = sample(31, n=13, d=6)
    y, ids = sample(32, n=13, d=6)
    queue = sample(33, n=7, d=3)
    w, v = sample(34, n=6, d=3)[0], sample(35, n=6, d=3)[0]
    t, b = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    cases = {}
    for name, loss in LOSSES.items():
        cases[name] = (loss, x, [groups], [w])
        cases[f"{name}, towers"] = (partial(towers, loss), x, [groups, y, ids], [w, v])
        cases[f"{name}, queue"] = (partial(loss, keys=queue[0], key_groups=queue[1]), x, [groups], [w])
    cases["logistic, learnt"] = (partial(learnt, logistic), x, [groups], [w, t, b])
    cases["snn, learnt"] = (partial(learnt, soft_nearest_neighbour), x, [groups], [w, t])
    cases["sum"] = (partial(multi_similarity, reduction="sum"), x, [groups], [w])
    few = torch.arange(13)
    few[12] = 0  # one positive pair, its ends on the first and the last process
    cases["one pair, nca"] = (nca, x, [few], [w])
    cases["one pair, lifted"] = (lifted_structure, x, [few], [w])
    cases["one pair, alignment"] = (alignment, x, [few], [w])
    cases["flat, no pair"] = (lifted_structure, x, [torch.arange(13)], [w])
    cases["flat, one group"] = (uniformity, x, [torch.zeros(13, dtype=torch.int64)], [w])
    two = x[:2]  # of three processes one has no row
    cases["two rows"] = (alignment_uniformity, two, [torch.tensor([0, 1])], [w])
    cases["flat, two rows"] = (lifted_structure, two, [torch.tensor([0, 0])], [w])
    cases["two rows, queue"] = (partial(lifted_structure, keys=queue[0], key_groups=queue[1]), two, [queue[1][:2]], [w])
    assert_processes_equal_one(cases, world)
