"""The pair losses as their papers write them, in float64 loops, and the settings they are tested at."""

import math
from functools import partial

import torch
from torch import Tensor

from nearfar.losses.neighbourhood import circle, lifted_structure, multi_similarity, nca, soft_nearest_neighbour
from nearfar.losses.pairs import alignment, alignment_uniformity, logistic, margin_contrastive, spectral, uniformity


class Naive:
    """Pairs in loops. ``q`` against ``k``, or against itself where k is None."""

    def __init__(self, q: Tensor, g: Tensor, k: Tensor | None = None, h: Tensor | None = None) -> None:
        self.itself = k is None
        self.q, self.k = q, q if k is None else k
        self.g, self.h = g.tolist(), (g if h is None else h).tolist()
        self.zero = self.q.sum() * 0 + self.k.sum() * 0

    def positives(self, i: int) -> list[int]:
        return [j for j in range(len(self.k)) if self.h[j] == self.g[i] and not (self.itself and i == j)]

    def negatives(self, i: int) -> list[int]:
        return [j for j in range(len(self.k)) if self.h[j] != self.g[i]]

    def repellers(self, j: int) -> list[int]:
        """The anchors that are negatives of candidate j."""
        return [i for i in range(len(self.q)) if self.g[i] != self.h[j]]

    def cos(self, i: int, j: int) -> Tensor:
        return self.q[i] @ self.k[j] / (self.q[i].norm() * self.k[j].norm())

    def square(self, i: int, j: int) -> Tensor:
        return (self.q[i] - self.k[j]).square().sum()

    def sphere(self, i: int, j: int) -> Tensor:
        return (self.q[i] / self.q[i].norm() - self.k[j] / self.k[j].norm()).square().sum()

    def distance(self, metric: str, i: int, j: int) -> Tensor:
        if metric == "cosine-distance":
            return 1 - self.cos(i, j)
        return self.square(i, j) if metric == "squared" else self.square(i, j).sqrt()

    def mean(self, values: list[Tensor]) -> Tensor:
        return sum(values, self.zero) / max(1, len(values))

    def over_anchors(self, value, needs) -> Tensor:
        return self.mean([value(i) for i in range(len(self.q)) if needs(i)])


def naive_margin(n: Naive, margin: float, metric: str) -> Tensor:
    def value(i):
        near = n.mean([0.5 * n.distance(metric, i, p) ** 2 for p in n.positives(i)])
        return near + n.mean([0.5 * (margin - n.distance(metric, i, j)).relu() ** 2 for j in n.negatives(i)])

    return n.over_anchors(value, lambda i: n.positives(i) or n.negatives(i))


def naive_logistic(n: Naive, temperature: float, bias: float, positive_weight: float) -> Tensor:
    def value(i):
        terms = [positive_weight * torch.log1p((-n.cos(i, p) / temperature - bias).exp()) for p in n.positives(i)]
        terms += [torch.log1p((n.cos(i, j) / temperature + bias).exp()) for j in n.negatives(i)]
        return n.mean(terms)

    return n.over_anchors(value, lambda i: n.positives(i) or n.negatives(i))


def naive_spectral(n: Naive) -> Tensor:
    def value(i):
        pull = n.mean([n.q[i] @ n.k[p] for p in n.positives(i)])
        return n.mean([(n.q[i] @ n.k[j]) ** 2 for j in n.negatives(i)]) - 2 * pull

    return n.over_anchors(value, n.positives)


def naive_alignment(n: Naive, alpha: float) -> Tensor:
    return n.mean([n.sphere(i, p) ** (alpha / 2) for i in range(len(n.q)) for p in n.positives(i)])


def naive_uniformity(n: Naive, t: float) -> Tensor:
    terms = [(-t * n.sphere(i, j)).exp() for i in range(len(n.q)) for j in n.negatives(i)]
    return n.mean(terms).log() if terms else n.zero


def naive_both(n: Naive, alpha: float, t: float, weight: float) -> Tensor:
    return naive_alignment(n, alpha) + weight * naive_uniformity(n, t)


def naive_multi_similarity(n: Naive, alpha: float, beta: float, base: float, epsilon: float | None) -> Tensor:
    def value(i):
        positives = [n.cos(i, p) for p in n.positives(i)]
        negatives = [n.cos(i, j) for j in n.negatives(i)]
        if epsilon is not None:
            farthest, closest = min(s.item() for s in positives), max([-math.inf, *(s.item() for s in negatives)])
            positives = [s for s in positives if s.item() < closest + epsilon]
            negatives = [s for s in negatives if s.item() > farthest - epsilon]
        pull = sum(((-alpha * (s - base)).exp() for s in positives), n.zero)
        push = sum(((beta * (s - base)).exp() for s in negatives), n.zero)
        return torch.log1p(pull) / alpha + torch.log1p(push) / beta

    return n.over_anchors(value, n.positives)


def naive_circle(n: Naive, margin: float, scale: float) -> Tensor:
    def value(i):
        push = pull = 0
        for s in (n.cos(i, j) for j in n.negatives(i)):
            push = push + (scale * (s.detach() + margin).relu() * (s - margin)).exp()
        for s in (n.cos(i, p) for p in n.positives(i)):
            pull = pull + (-scale * (1 + margin - s.detach()).relu() * (s - (1 - margin))).exp()
        return torch.log1p(push * pull)

    return n.over_anchors(value, lambda i: n.positives(i) and n.negatives(i))


def naive_log_chance(n: Naive, i: int, temperature: float, metric: str) -> Tensor:
    weigh = lambda js: torch.stack([-n.distance(metric, i, j) / temperature for j in js]).logsumexp(0)  # noqa: E731
    return weigh(n.positives(i)) - weigh(n.positives(i) + n.negatives(i))


def naive_snn(n: Naive, temperature: float, metric: str) -> Tensor:
    return n.over_anchors(lambda i: -naive_log_chance(n, i, temperature, metric), n.positives)


def naive_nca(n: Naive, objective: str) -> Tensor:
    value = (lambda x: -x) if objective == "log" else (lambda x: -x.exp())
    return n.over_anchors(lambda i: value(naive_log_chance(n, i, 1.0, "squared")), n.positives)


def naive_lifted(n: Naive, margin: float) -> Tensor:
    d = partial(n.distance, "euclidean")
    pairs = []
    for i in range(len(n.q)):
        for j in n.positives(i):
            total = sum(((margin - d(i, k)).exp() for k in n.negatives(i)), n.zero)
            total = total + sum((margin - d(m, j)).exp() for m in n.repellers(j))
            pairs.append(((total.log() + d(i, j)).relu() ** 2 / 2) if total.item() else n.zero)
    return n.mean(pairs)


def naive_generalised(n: Naive, margin: float) -> Tensor:
    def value(i):
        if not n.negatives(i):
            return n.zero
        far = sum(n.distance("euclidean", i, p).exp() for p in n.positives(i))
        return (far.log() + sum((margin - n.distance("euclidean", i, j)).exp() for j in n.negatives(i)).log()).relu()

    return n.over_anchors(value, n.positives)


TEMPERATURES = (0.01, 0.1, 1.0, 10.0)
CASES: dict[str, tuple] = {  # name: (loss, formula, settings)
    "margin": (margin_contrastive, naive_margin, {"margin": 2.5, "metric": "euclidean"}),
    "margin cosine": (margin_contrastive, naive_margin, {"margin": 0.7, "metric": "cosine-distance"}),
    "logistic weighted": (logistic, naive_logistic, {"temperature": 0.5, "bias": -2.0, "positive_weight": 7.0}),
    "spectral": (spectral, naive_spectral, {}),
    "alignment": (alignment, naive_alignment, {"alpha": 2.0}),
    "alignment 1": (alignment, naive_alignment, {"alpha": 1.0}),
    "uniformity": (uniformity, naive_uniformity, {"t": 2.0}),
    "alignment uniformity": (alignment_uniformity, naive_both, {"alpha": 3.0, "t": 0.5, "weight": 0.3}),
    "multi-similarity": (multi_similarity, naive_multi_similarity, dict(alpha=2.0, beta=50.0, base=0.5, epsilon=0.1)),
    "multi-similarity all": (
        multi_similarity, naive_multi_similarity, {"alpha": 3.0, "beta": 20.0, "base": 1.0, "epsilon": None},
    ),
    "circle": (circle, naive_circle, {"margin": 0.4, "scale": 80.0}),
    "circle faces": (circle, naive_circle, {"margin": 0.25, "scale": 5.0}),
    "snn euclidean": (soft_nearest_neighbour, naive_snn, {"temperature": 0.5, "metric": "euclidean"}),
    "snn cosine": (soft_nearest_neighbour, naive_snn, {"temperature": 0.1, "metric": "cosine-distance"}),
    "nca": (nca, naive_nca, {"objective": "log"}),
    "nca expected": (nca, naive_nca, {"objective": "expected"}),
    "lifted": (lifted_structure, naive_lifted, {"margin": 1.0}),
    "lifted wide": (lifted_structure, naive_lifted, {"margin": 3.0}),
}  # fmt: skip
CASES["lifted generalised"] = (partial(lifted_structure, form="generalised"), naive_generalised, {"margin": 1.0})
for t in TEMPERATURES:
    CASES[f"logistic {t}"] = (logistic, naive_logistic, {"temperature": t, "bias": 0.3, "positive_weight": 1.0})
    CASES[f"snn {t}"] = (soft_nearest_neighbour, naive_snn, {"temperature": t, "metric": "squared"})
LOSSES = {name: partial(loss, **how) for name, (loss, _, how) in CASES.items()}


def sample(seed: int, n: int = 10, d: int = 4, kinds: int = 4) -> tuple[Tensor, Tensor]:
    r = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=r), torch.randint(0, kinds, (n,), generator=r)


def slope(loss, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Value, and the gradient by each input of floats."""
    inputs = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    value = loss(*inputs)
    return value.detach(), torch.autograd.grad(value, [x for x in inputs if x.requires_grad])
