"""Optimisers and schedules as the papers have them: LARS by its formula, decay on matrices alone, rates by name."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from nearfar.methods.parts import Rate
from nearfar.training import optim
from nearfar.training.optim import Optim
from nearfar.training.schedule import learning_rate


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()


def gradients(model: nn.Module, step: int) -> None:
    g = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_is_its_formula(decay):
    """You et al. 2017: v ← m v + γ · λ‖w‖/(‖g‖ + β‖w‖) · (g + β w), for matrices; plain momentum for vectors."""
    pytest.importorskip("timm")
    model, config = net(), Optim("lars", lr=0.5, weight_decay=decay, momentum=0.9, trust=0.02, warmup=0.0)
    optimizer = optim.build(config, model)
    naive = {n: (p.detach().numpy().copy(), np.zeros(p.shape)) for n, p in model.named_parameters()}
    for step in range(4):
        gradients(model, step)
        optim.set_rates(optimizer, config, step / 4)
        rate = 0.5 * learning_rate(step / 4, 0.0)
        for name, p in model.named_parameters():
            w, v = naive[name]
            g = p.grad.numpy().copy()
            if w.ndim > 1:
                scale = 0.02 * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w) + 1e-8)
                g = scale * (g + decay * w)
            v = 0.9 * v + g
            naive[name] = (w - rate * v, v)
        optimizer.step()
        for name, p in model.named_parameters():
            np.testing.assert_allclose(p.detach().numpy(), naive[name][0], rtol=1e-9, atol=1e-12, err_msg=name)


def test_lars_says_what_it_needs(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(ValueError, match=r"optimiser lars needs timm.optim"):
        optim.build(Optim("lars"), net())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_vectors_are_not_decayed(name):
    model = net()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = optim.build(Optim(name, lr=0.1, momentum=0.0, weight_decay=0.5, warmup=0.0), model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in model.named_parameters():
        expected = before[n] * (1 - 0.1 * 0.5) if p.ndim > 1 else before[n]
        torch.testing.assert_close(p.detach(), expected)


def test_rates_by_the_beginning_of_names():
    """SimSiam's predictor at a constant rate, proxies a hundred times as fast; biases at a factor of their own."""
    model = nn.ModuleDict({"encoder": nn.Linear(3, 3), "predictor": nn.Linear(3, 3), "proxies": nn.Linear(3, 3, False)})
    model.rates = {"predictor.": Rate(constant=True), "proxies.": Rate(scale=100.0)}
    config = Optim("sgd", lr=0.2, bias_lr=0.5, warmup=0.1)
    optimizer = optim.build(config, model)
    optim.set_rates(optimizer, config, 0.55)  # half of the cosine
    rates = {}
    for group in optimizer.param_groups:
        for name, p in model.named_parameters():
            if any(p is q for q in group["params"]):
                rates[name] = group["lr"]
    assert rates == pytest.approx({"encoder.weight": 0.1, "encoder.bias": 0.05, "predictor.weight": 0.2,
                                   "predictor.bias": 0.1, "proxies.weight": 10.0})  # fmt: skip


def test_weight_decay_follows_its_schedule():
    """DINO: half a cosine from 0.04 to 0.4, on matrices alone."""
    model, config = net(), Optim("adamw", lr=1.0, weight_decay=0.04, weight_decay_end=0.4)
    optimizer = optim.build(config, model)
    for share in (0.0, 0.3, 1.0):
        optim.set_rates(optimizer, config, share)
        decays = sorted(g["weight_decay"] for g in optimizer.param_groups)
        assert decays == pytest.approx([0.0, 0.4 - 0.36 * (1 + math.cos(math.pi * share)) / 2])


def test_schedules_after_the_warm_up():
    assert [learning_rate(s, 0.1, "step") for s in (0.05, 0.59, 0.6, 0.8)] == [0.5, 1.0, 0.1, 0.01]
    assert [learning_rate(s, 0.1, "constant") for s in (0.05, 0.5, 1.0)] == [0.5, 1.0, 1.0]
    assert learning_rate(1.0, 0.1, end=0.001) == pytest.approx(0.001)
    assert learning_rate(0.55, 0.1, end=0.2) == pytest.approx(0.6)


@pytest.mark.parametrize(("bad", "says"), [
    ({"name": "larz"}, "unknown optimiser 'larz'; did you mean 'lars'"),
    ({"schedule": "cosin"}, "unknown optim.schedule 'cosin'; did you mean 'cosine'"),
    ({"trust": 0.0}, "optim.trust = 0.0 must be above 0"),
    ({"beta2": 1.0}, "optim.beta2 = 1.0: give 0 to below 1"),
    ({"lr_end": 2.0}, "optim.lr_end from 0 to 1"),
])  # fmt: skip
def test_a_wrong_setting_is_one_line(bad, says):
    with pytest.raises(ValueError, match=says):
        Optim(**bad)
