"""Methods that learn from labels: their losses as their papers write them, and what is asked of the labels."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import spawn, split
from torch import nn

import nearfar
from nearfar import dist, methods
from nearfar import recipe as recipes
from nearfar.encoders.norm import synchronise
from nearfar.methods.parts import Progress
from nearfar.training import optim
from nearfar.training.loop import step_generator

NAMES = ["supervised", "triplet", "n-pair", "margin-contrastive", "logistic", "proxy-anchor", "arcface"]
PAIRED = ["triplet", "n-pair", "margin-contrastive", "logistic"]
PROXIES = ["supervised", "proxy-anchor", "arcface"]
LABELS = torch.tensor([0, 2, 1, 0, 2, 2, 1, 0, 1, 0])


class Encoder(nn.Module):
    """Images to eight features by one linear layer and BatchNorm."""

    features = 8

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(1), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def build(name: str, classes: int = 3, **settings):
    torch.manual_seed(0)
    module = methods.module(name)
    small = {} if name == "supervised" else {"dim": 6, "hidden": 10} if name == "triplet" else {"dim": 6}
    return module.Method(Encoder(), module.Config(**small | settings), classes, 50).double()


def images(n: int = len(LABELS), seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(method: nn.Module, labels: torch.Tensor = LABELS, at: int = 0, seed: int = 0):
    x = images(len(labels), seed)
    return method([x], torch.arange(len(labels)), labels, Progress(at, 0.0, 0.0, step_generator(0, at)))


# Each paper's loss in loops: z (n, d), y a list, the proxies (C, d) or the logits.


def triples(z, y):
    d = torch.cdist(z, z)
    for a in range(len(y)):
        near = [d[a, p] for p in range(len(y)) if p != a and y[p] == y[a]]
        far = [d[a, n] for n in range(len(y)) if y[n] != y[a]]
        yield torch.stack(near), torch.stack(far)


def hard_triplets(z, y, method):
    worst = [near.max() - far.min() for near, far in triples(z, y)]
    return torch.stack([(1 + w.exp()).log() for w in worst]).mean()


def n_pairs(z, y, method):
    out = []
    for a in range(len(y)):
        far = [z[a] @ z[n] for n in range(len(y)) if y[n] != y[a]]
        near = [z[a] @ z[p] for p in range(len(y)) if p != a and y[p] == y[a]]
        each = [(1 + sum((f - p).exp() for f in far)).log() for p in near]
        out.append(sum(each) / len(each) + method.config.l2 * z[a] @ z[a])
    return torch.stack(out).mean()


def margins(z, y, method):
    m = method.config.margin
    return torch.stack([(near**2 / 2).mean() + ((m - far).clamp(min=0) ** 2 / 2).mean()
                        for near, far in triples(z, y)]).mean()  # fmt: skip


def pairs(z, y, method):
    u, c = F.normalize(z, dim=1), method.config
    out = []
    for a in range(len(y)):
        for b in range(len(y)):
            if a != b:
                same = torch.tensor(float(y[a] == y[b]), dtype=torch.float64)
                logit = u[a] @ u[b] / c.temperature + c.bias
                out.append(F.binary_cross_entropy_with_logits(logit, same))
    return torch.stack(out).mean()


def anchors(z, y, method):
    c, p = method.config, F.normalize(method.proxies.proxies, dim=1)
    cos = F.normalize(z, dim=1) @ p.T
    with_rows = sorted(set(y))
    drawn = [(1 + sum((-c.alpha * (cos[i, k] - c.margin)).exp() for i in range(len(y)) if y[i] == k)).log()
             for k in with_rows]  # fmt: skip
    pushed = [(1 + sum((c.alpha * (cos[i, k] + c.margin)).exp() for i in range(len(y)) if y[i] != k)).log()
              for k in range(len(p))]  # fmt: skip
    return sum(drawn) / len(with_rows) + sum(pushed) / len(p)


def angles(z, y, method):
    c = method.config
    cos = F.normalize(z, dim=1) @ F.normalize(method.proxies.proxies, dim=1).T
    logits = []
    for row, k in zip(cos, y):
        theta = row[k].acos()
        own = (theta + c.margin).cos() if theta <= math.pi - c.margin else row[k] - c.margin * math.sin(c.margin)
        logits.append(torch.stack([own if i == k else x for i, x in enumerate(row)]))
    return F.cross_entropy(c.scale * torch.stack(logits), torch.tensor(y))


def plain(z, y, method):
    return F.cross_entropy(z, torch.tensor(y))


PAPERS = {"supervised": plain, "triplet": hard_triplets, "n-pair": n_pairs, "margin-contrastive": margins,
          "logistic": pairs, "proxy-anchor": anchors, "arcface": angles}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_papers(name):
    method = build(name)
    out = step(method)
    z = method.project(method.encoder(images()))
    torch.testing.assert_close(out.projections, z.detach())
    want = PAPERS[name](z, LABELS.tolist(), method)
    torch.testing.assert_close(out.loss, want, rtol=1e-6, atol=1e-8)  # τ itself is learnt in float32
    used = [p for n, p in method.named_parameters() if not n.startswith("temperature.")]
    for a, b in zip(torch.autograd.grad(out.loss, used, retain_graph=True), torch.autograd.grad(want, used)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_of_one_view_by_labels(name):
    method = build(name)
    out = step(method)
    assert methods.module(name).SUPERVISED
    assert method.views == 1
    assert out.features.shape == (10, 8)
    assert out.projections.shape == (10, 3 if name == "supervised" else 6)
    assert torch.equal(out.groups, LABELS)
    assert not out.features.requires_grad
    assert not out.projections.requires_grad
    assert getattr(method, "per_class", 0) == {"triplet": 4, "n-pair": 2, "margin-contrastive": 4, "logistic": 4}.get(
        name, 0
    )
    for value in out.stats.values():
        assert torch.as_tensor(value).ndim == 0


# What the loss is where nothing is told apart: the same embedding for every image.


class Same(nn.Module):
    """The same row for every image, and nothing else to learn."""

    def __init__(self, row: torch.Tensor) -> None:
        super().__init__()
        self.row = row

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.row.expand(len(h), -1)


@pytest.mark.parametrize("settings", [{}, {"soft": False}, {"soft": False, "margin": 0.7, "mining": "all"},
                                      {"soft": False, "mining": "semi-hard", "unit": True}])  # fmt: skip
def test_chance_of_triplets(settings):
    method = build("triplet", **settings)
    method.projector = Same(torch.ones(6, dtype=torch.float64))
    out = step(method)
    assert float(out.loss.detach()) == pytest.approx(out.stats["chance"], abs=1e-9)


def test_chance_of_classes():
    method = build("supervised")
    nn.init.zeros_(method.projector.weight)
    nn.init.zeros_(method.projector.bias)
    out = step(method, torch.arange(3).repeat(4))
    assert float(out.loss.detach()) == pytest.approx(out.stats["chance"])


@pytest.mark.parametrize("settings", [{}, {"scale": 8.0}, {"margin": 3.0}, {"scale": 2000.0}, {"margin": 0.0}])
def test_chance_of_arcface(settings):
    method = build("arcface", **settings)
    row = torch.eye(6, dtype=torch.float64)[0]
    method.projector = Same(row)
    opposite = settings.get("margin", 0.5) > 2
    method.proxies.proxies.data.copy_(row.expand(3, -1) * (-1 if opposite else 1))
    out = step(method)
    assert float(out.loss.detach()) == pytest.approx(out.stats["chance"], rel=1e-9)
    with torch.no_grad():  # and no other centres would do better
        for seed in range(20):
            turned = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            method.proxies.proxies.copy_(turned)
            balanced = step(method, torch.arange(3).repeat(4))
            assert float(balanced.loss.detach()) >= balanced.stats["chance"] - 1e-9


def test_chance_of_n_pairs():
    method = build("n-pair")
    method.projector = Same(torch.zeros(6, dtype=torch.float64))
    out = step(method)
    assert float(out.loss.detach()) == pytest.approx(float(out.stats["chance"]))


def test_chance_of_margins():
    """Corners of a simplex are all as far apart: no distance does better than half the margin."""
    method = build("margin-contrastive", margin=0.8, depth=0)

    def loss(distance: float) -> tuple[float, float]:
        corners = torch.eye(10, dtype=torch.float64) * distance / math.sqrt(2)
        method.encoder = nn.Identity()
        out = method([corners], torch.arange(10), LABELS, Progress(0, 0.0))
        return float(out.loss.detach()), out.stats["chance"]

    best, chance = loss(0.4)
    assert best == pytest.approx(chance)
    assert all(loss(d)[0] > chance for d in (0.01, 0.3, 0.5, 0.9, 2.0))


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_chance_of_pairs(weight):
    n = len(LABELS)
    share = sum(int(LABELS[i] == LABELS[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    logit = math.log(weight * share / (1 - share))

    def loss(at: float) -> tuple[float, float]:
        method = build("logistic", learn=False, temperature=1.0, bias=at - 1, positive_weight=weight)
        method.projector = Same(torch.ones(6, dtype=torch.float64))
        out = step(method)
        return float(out.loss.detach()), float(out.stats["chance"])

    best, chance = loss(logit)
    assert best == pytest.approx(chance, rel=1e-5)
    assert loss(logit - 0.5)[0] > chance
    assert loss(logit + 0.5)[0] > chance


def test_temperature_and_bias_are_learnt_or_given():
    method = build("logistic", temperature=0.2, bias=-3.0)
    out = step(method)
    out.loss.backward()
    assert float(method.temperature.log_scale.grad.abs()) > 0
    assert float(method.temperature.bias.grad.abs()) > 0
    assert float(out.stats["temperature"]) == pytest.approx(0.2)
    assert float(out.stats["bias"]) == pytest.approx(-3.0)
    assert {"temperature.log_scale", "temperature.bias"} <= set(method.state_dict())
    given = build("logistic", temperature=0.2, bias=-3.0, learn=False)
    assert not any(n.startswith("temperature") for n in given.state_dict())
    torch.testing.assert_close(step(given).loss, out.loss, rtol=1e-6, atol=1e-9)


def test_proxies_learn_at_their_own_rate():
    method = build("proxy-anchor")
    groups = optim.build(optim.Optim(lr=1e-4), method).param_groups
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    for name, p in method.named_parameters():
        assert rates[id(p)] == pytest.approx(1e-2 if name == "proxies.proxies" else 1e-4), name


def test_distances_are_weighed_by_the_steps_own_draws():
    method = build("triplet", mining="distance-weighted", soft=False, margin=1.0)
    a, b, other = (float(step(method, at=at).loss.detach()) for at in (3, 3, 4))
    assert a == b != other


@pytest.mark.parametrize("name", ["triplet", "n-pair", "margin-contrastive", "logistic", "proxy-anchor"])
def test_heads_of_any_depth_and_norm(name):
    for settings in ({"depth": 0}, {"depth": 1, "last_norm": True}, {"depth": 2, "norm": "layer"},
                     {"depth": 3, "norm": "none", "last_norm": True}):  # fmt: skip
        out = step(build(name, **settings))
        assert out.projections.shape == (10, 6 if settings["depth"] else 8)
        assert bool(out.loss.isfinite())


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(name):
    method = build(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = method([images().float()], torch.arange(10), LABELS, Progress(0, 0.0))
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert bool(out.loss.isfinite())
    exact = step(build(name)).loss.detach()
    assert float(out.loss.detach()) == pytest.approx(float(exact), rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_classes_that_the_images_lack_break_nothing(name):
    method = build(name, classes=100)
    for labels in (LABELS, torch.tensor([7, 99, 7, 99, 50, 50]), torch.full((4,), 3)):
        out = step(method, labels)
        out.loss.backward()
        assert bool(out.loss.isfinite())
        for key, p in method.named_parameters():
            assert p.grad is None or bool(p.grad.isfinite().all()), key


# Several processes are one: unequal parts, a few steps, all weights.


def train(name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    method = build(name)
    model = method
    mine = split(len(LABELS), dist.world())[dist.rank()]
    if dist.world() > 1:
        model = nn.parallel.DistributedDataParallel(synchronise(method), forward_sync_buffers=False)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for at in range(4):
        x = images(seed=at)[mine]
        progress = Progress(at, at / 4, 0.0, step_generator(0, at))
        out = model([x], torch.arange(len(LABELS))[mine], LABELS[mine], progress)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        method.after_step(progress)
        losses += [float(out.loss.detach()), float(out.stats.get("chance", 0))]
    return losses, method.state_dict()


def train_all(names: list[str]) -> dict:
    return {name: train(name) for name in names}


@pytest.mark.parametrize("world", [2, 3])
def test_processes_are_one(world):
    one = train_all(NAMES)
    for rank, got in enumerate(spawn(world, train_all, NAMES)):
        for name, (losses, held) in one.items():
            np.testing.assert_allclose(got[name][0], losses, rtol=1e-9, err_msg=f"{name}, process {rank}")
            for key, value in held.items():
                there = got[name][1][key]
                wide = value.dtype == torch.float64
                assert torch.allclose(there.double(), value.double(), rtol=1e-9, atol=1e-10 if wide else 1e-6), key


# What is wrong is one line.


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_classes_are_refused(name, classes):
    with pytest.raises(ValueError, match=f"{name} tells classes apart: give labels of two or more, got {classes}"):
        build(name, classes=classes)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_class_is_one_line(name, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        nearfar.train((x, np.zeros(40, int)), method=name, out=tmp_path / "r", batch=8, steps=2, holdout=0)
    assert "all labels of array are the same" in str(error.value)


@pytest.mark.parametrize("name", PAIRED)
def test_one_image_of_a_class_makes_no_pair(name):
    with pytest.raises(ValueError, match="per_class 1 makes no pairs of a class: give 2 or more"):
        recipes.of(name, settings={"per_class": 1})


@pytest.mark.parametrize(("name", "settings", "said"), [
    ("supervised", {"label_smoothing": 1.5}, "label_smoothing 1.5 must lie between 0 and 1"),
    ("triplet", {"mining": "semihard"}, "unknown mining 'semihard'; did you mean 'semi-hard'"),
    ("triplet", {"metric": "cosine"}, "unknown metric 'cosine'; did you mean 'cosine-distance'"),
    ("triplet", {"margin": 0.0}, "margin 0.0 must be above 0"),
    ("n-pair", {"l2": -1.0}, "l2 -1.0 must not be negative"),
    ("margin-contrastive", {"margin": 2.5, "unit": True}, "margin 2.5: embeddings of length one are at most 2 apart"),
    ("logistic", {"temperature": 0.0}, "temperature 0.0 must be above 0"),
    ("logistic", {"bias": math.nan}, "bias nan must be a number"),
    ("logistic", {"temperature": 0.001}, "temperature 0.001 is under 0.01, the least that is learnt"),
    ("proxy-anchor", {"proxy_rate": 0.0}, "proxy_rate 0.0 must be above 0"),
    ("arcface", {"margin": 28.6}, "margin 28.6 is in radians"),
])  # fmt: skip
def test_settings_out_of_range(name, settings, said):
    with pytest.raises(ValueError, match=said):
        recipes.of(name, settings=settings)
