import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_processes_equal_one

from nearfar.losses import info_nce, nt_xent
from nearfar.losses.temperature import (
    LearntTemperature,
    constant_temperature,
    cosine_temperature,
    linear_temperature,
)

shares, temperatures = st.floats(0, 1), st.floats(0.001, 10)


@settings(max_examples=60, deadline=None)
@given(shares, temperatures, temperatures, st.sampled_from([0.5, 1.0, 2.5, 5.0]))
def test_schedules_are_their_formulas_and_stay_between_their_ends(share, start, end, periods):
    assert constant_temperature(share, start) == start
    assert linear_temperature(share, start, end) == pytest.approx(start + share * (end - start), rel=1e-9)
    high, low = max(start, end), min(start, end)
    phase = 0 if start >= end else math.pi  # Kukleva's begins at the high one
    want = (high - low) * (1 + math.cos(2 * math.pi * share * periods + phase)) / 2 + low
    got = cosine_temperature(share, start, end, periods=periods)
    assert got == pytest.approx(want, rel=1e-7)
    assert low * (1 - 1e-12) <= got <= high * (1 + 1e-12)


def test_schedules_meet_their_ends_exactly():
    for schedule in (linear_temperature, cosine_temperature):
        assert (schedule(0, 0.7, 0.1), schedule(1, 0.7, 0.1)) == (0.7, 0.1)
    assert cosine_temperature(1, 1.0, 0.1, periods=5) == 1.0
    assert [cosine_temperature(s / 10, 1.0, 0.1, periods=5) for s in (1, 3, 5, 7, 9)] == pytest.approx([0.1] * 5)


@pytest.mark.parametrize(("call", "said"), [
    (functools.partial(constant_temperature, 1.5, 0.1), "share must be a number from 0 to 1"),
    (functools.partial(linear_temperature, float("nan"), 0.1, 0.2), "share .* nan"),
    (functools.partial(linear_temperature, True, 0.1, 0.2), "share"),
    (functools.partial(linear_temperature, 0.5, 0.0, 0.2), "start must be a number above 0, got 0.0"),
    (functools.partial(cosine_temperature, 0.5, 0.1, -1), "end must be a number above 0, got -1"),
    (functools.partial(cosine_temperature, 0.5, 0.1, 0.2, periods=0), "periods must be"),
    (functools.partial(constant_temperature, 0.5, float("inf")), "value must be"),
    (functools.partial(LearntTemperature, 0), "init must be a number above 0"),
    (functools.partial(LearntTemperature, 0.005), "init 0.005 is under least 0.01"),
    (functools.partial(LearntTemperature, least=-1), "least must be a temperature"),
    (functools.partial(LearntTemperature, bias=float("nan")), "bias must be a number or None"),
    (functools.partial(LearntTemperature, bias=True), "bias must be a number or None"),
])  # fmt: skip
def test_bad_values_are_named_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def naive_nt_xent(z: torch.Tensor, groups: list[int], t: torch.Tensor) -> torch.Tensor:
    z = z.double() / z.double().norm(dim=1, keepdim=True)
    values = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if groups[j] == groups[i]]
        bottom = torch.stack([z[i] @ z[j] / t for j in others]).logsumexp(0)
        if positives:
            values.append(sum(bottom - z[i] @ z[p] / t for p in positives) / len(positives))
    return sum(values) / len(values)


@pytest.mark.parametrize("init", [0.01, 0.07, 1.0, 10.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_gradient_of_the_temperature_is_the_naive_ones(init, kind):
    z = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(kind)
    groups = [0, 1, 2, 0, 1, 0, 3, 4, 4]
    learnt = LearntTemperature(init).to(kind)
    nt_xent(z, torch.tensor(groups), temperature=learnt()).backward()
    s = torch.tensor(-math.log(init), dtype=torch.float64, requires_grad=True)
    naive_nt_xent(z, groups, torch.exp(-s)).backward()
    tolerance = 1e-4 if kind == torch.float32 else 1e-6  # the parameter begins as a float32
    assert float(learnt.log_scale.grad) == pytest.approx(float(s.grad), rel=tolerance)
    assert learnt().dtype == kind


def test_starts_are_the_papers():
    clip, siglip = LearntTemperature(), LearntTemperature(0.1, bias=-10.0)
    assert clip().item() == pytest.approx(0.07)
    assert clip().shape == ()
    assert clip.bias is None
    assert [name for name, _ in clip.named_parameters()] == ["log_scale"]
    assert siglip.log_scale.item() == pytest.approx(math.log(10))
    assert siglip.bias.item() == -10
    assert siglip().dtype == siglip.bias.dtype == torch.float32


def separable() -> tuple[torch.Tensor, torch.Tensor]:
    """Positives all the same, negatives apart: the loss always wants a smaller temperature."""
    return torch.eye(8).repeat(2, 1), torch.arange(8).repeat(2)


@pytest.mark.parametrize("optimiser", [
    functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9), functools.partial(torch.optim.Adam, lr=0.1),
])  # fmt: skip
def test_the_bound_holds_and_lets_go(optimiser):
    z, groups = separable()
    learnt = LearntTemperature(0.5, least=0.2)
    step = optimiser(learnt.parameters())
    for _ in range(200):
        step.zero_grad()
        t = learnt()
        assert t.item() >= 0.2 * (1 - 1e-6)
        nt_xent(z, groups, temperature=t).backward()
        assert learnt.log_scale.grad.item() < 0  # whole, on the bound too
        step.step()
    assert learnt().item() == pytest.approx(0.2, rel=1e-6)
    for state in step.state.values():  # momentum of 200 steps is the optimiser's own
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    learnt()
    step.zero_grad()
    nt_xent(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)), groups, temperature=learnt()).backward()
    assert learnt.log_scale.grad.item() > 0
    step.step()
    assert learnt().item() > 0.2 * (1 + 1e-4)  # the first step that wants to leave leaves


def test_bound_is_clips_clamp_after_each_step():
    z, groups = separable()
    ours, theirs = LearntTemperature(0.3, least=0.2), torch.tensor(-math.log(0.3), requires_grad=True)
    a, b = torch.optim.SGD(ours.parameters(), lr=0.5), torch.optim.SGD([theirs], lr=0.5)
    for i in range(30):
        x = z if i < 20 else torch.randn(16, 3, generator=torch.Generator().manual_seed(i))
        for optimiser, temperature in ((a, ours()), (b, torch.exp(-theirs))):
            optimiser.zero_grad()
            nt_xent(x, groups, temperature=temperature).backward()
            optimiser.step()
        with torch.no_grad():
            theirs.clamp_(max=-math.log(0.2))
        assert torch.equal(ours().detach(), torch.exp(-theirs.detach()))


def test_evaluation_leaves_the_parameter_and_two_forwards_may_precede_a_backward():
    learnt = LearntTemperature()
    with torch.no_grad():
        learnt.log_scale.fill_(9.0)
    learnt.eval()
    assert learnt().item() == pytest.approx(0.01)
    assert learnt.log_scale.item() == 9.0
    learnt.train()
    with torch.no_grad():
        assert learnt().item() == pytest.approx(0.01)
    assert learnt.log_scale.item() == 9.0
    z, groups = separable()
    first = nt_xent(z, groups, temperature=learnt())
    (first + nt_xent(z, groups, temperature=learnt())).backward()
    assert learnt.log_scale.item() == pytest.approx(math.log(100))
    free = LearntTemperature(1e-4, least=0)
    assert free().item() == pytest.approx(1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_stays_wide_in_a_narrow_model(kind):
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(4, 4), "temperature": LearntTemperature(bias=-10.0)})
    before = model["temperature"].log_scale.detach().clone()
    model["temperature"]().backward()
    kept = dict(model["temperature"].named_parameters())
    model.to(kind)
    learnt = model["temperature"]
    assert model["encoder"].weight.dtype == kind
    assert {p.dtype for p in learnt.parameters()} == {torch.float32}
    assert dict(learnt.named_parameters()) == kept  # the optimiser's parameters, still
    assert torch.equal(learnt.log_scale.detach(), before)
    assert learnt.log_scale.grad.dtype == torch.float32
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, groups = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).to(kind), torch.arange(4).repeat(2)
    optimiser.zero_grad()
    nt_xent(model["encoder"](x), groups, temperature=learnt()).backward()
    optimiser.step()
    assert learnt.log_scale.item() != before.item()
    model.half().float().double()
    assert learnt().dtype == torch.float64
    assert torch.equal(LearntTemperature().half().state_dict()["log_scale"], before)


def test_under_autocast_it_is_the_same_number_and_gradient():
    z, groups = torch.randn(12, 5, generator=torch.Generator().manual_seed(2)), torch.arange(6).repeat(2)
    got = []
    for narrow in (False, True):
        learnt = LearntTemperature()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            t = learnt()
            loss = nt_xent(z, groups, temperature=t)
        loss.backward()
        assert t.dtype == torch.float32
        got.append((t.item(), learnt.log_scale.grad.item()))
    assert got[0] == got[1]


def with_learnt(loss, z, groups, log_scale):
    """A loss in which the temperature's parameter is one of the weights."""
    learnt = LearntTemperature(1.0, least=0.2).double()
    return loss(z, groups, temperature=torch.func.functional_call(learnt, {"log_scale": log_scale}, ()))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world):
    g = torch.Generator().manual_seed(3)
    x, w = torch.randn(13, 5, dtype=torch.float64, generator=g), torch.randn(5, 3, dtype=torch.float64, generator=g)
    groups = torch.tensor(list(itertools.islice(itertools.cycle(range(5)), 13)))
    cases = {}
    for name, loss in {"nt_xent": nt_xent, "info_nce": info_nce}.items():
        for t in (0.2, 0.5, 2.0):  # on the bound, and inside
            scale = torch.tensor(-math.log(t), dtype=torch.float64)
            cases[f"{name} {t}"] = (functools.partial(with_learnt, loss), x, [groups], [w, scale])
    assert_processes_equal_one(cases, world)


def test_state_round_trip():
    a, b = LearntTemperature(0.3, bias=1.5), LearntTemperature(bias=0.0)
    b.load_state_dict(a.state_dict())
    assert np.array_equal(a().item(), b().item())
    assert b.bias.item() == 1.5
