"""What methods share: the record of a step, a twin that follows, a bank of the data set's rows, BatchNorm's shuffle."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.errors import UserError


class Step(NamedTuple):
    """What one forward gives: the loss to go down, features and projections to watch, numbers to log.

    ``stats`` are numbers or tensors of one value, read only where a row is logged. A few names mean something to
    whoever watches (training/doctor.py): ``chance``, the loss of an encoder that tells nothing apart;
    ``prototype_usage``, the share of prototypes that are in use.
    """

    loss: Tensor  # ()
    features: Tensor  # (B·views, features), detached
    projections: Tensor  # (B·views, out), detached
    groups: Tensor  # (B·views,) group ids of both
    stats: Mapping[str, float | Tensor] = {}


class Progress(NamedTuple):
    """Where training stands, and what a step may draw with."""

    step: int
    share: float  # of the budget, in [0, 1]
    epoch: float = 0.0  # passes over the training images so far
    generator: torch.Generator = torch.Generator()


class Rate(NamedTuple):
    """How some of a method's parameters differ from the others: see :func:`nearfar.training.optim.build`."""

    scale: float = 1.0  # factor of the learning rate
    constant: bool = False  # no schedule: always at the peak


def positive(config: object, *names: str) -> None:
    """One line where a setting that must be above 0 is not."""
    for name in names:
        if not getattr(config, name) > 0:
            raise UserError(f"{name} {getattr(config, name)} must be above 0")


def shares(config: object, *names: str) -> None:
    """One line where a setting that lies from 0 to 1 does not."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{name} {getattr(config, name)} must lie between 0 and 1")


def pairs_of_a_class(config: object) -> None:
    """One line where batches of P classes with K images each would hold no pair of a class."""
    if config.per_class < 2:
        raise UserError(f"per_class {config.per_class} makes no pairs of a class: give 2 or more")


def several_classes(method: str, classes: int) -> None:
    """One line where there are no classes to tell apart."""
    if classes < 2:
        raise UserError(f"{method} tells classes apart: give labels of two or more, got {classes}")


def pair_ids(index: Tensor, views: int) -> Tensor:
    """Group ids of anchors, positives and explicit negatives, one after the other. index (B,) -> (views·B,)

    Row i's anchor and positive have the id i; each of its explicit negatives, from the third view on, one of its own.

    >>> pair_ids(torch.tensor([5, 7]), 3)
    tensor([ 5,  7,  5,  7, -6, -8])
    """
    others = views - 2
    return torch.cat([index, index, *(-1 - (index * others + k) for k in range(others))])


def ids_of(method: str, views: list[Tensor], index: Tensor, labels: Tensor | None) -> Tensor:
    """Group ids for methods that learn from labelled items or from given pairs and triplets: labels, or pair ids."""
    if len(views) == 1:
        return labels  # (B,)
    if labels is not None and labels.is_floating_point():
        raise UserError(f"{method} does not learn from scores: use --method cosent, angle, logistic or "
                        "margin-contrastive")  # fmt: skip
    return pair_ids(index, len(views))  # (V·B,)


def head(features: int, config: object) -> nn.Sequential:
    """The projector of a config with depth, hidden, dim, norm and last_norm. (B, features) -> (B, dim)

    A ``hidden`` of 0 is as wide as the features; a ``depth`` of 0 gives them as they are.
    """
    out = config.dim if config.depth else features
    return mlp(features, config.hidden or features, out, depth=config.depth, norm=config.norm,
               last_norm=config.last_norm)  # fmt: skip


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from one value to another, for momenta. share in [0, 1]

    >>> cosine(0.996, 1.0, 0.0), cosine(0.996, 1.0, 1.0)
    (0.996, 1.0)
    """
    return end - (end - start) * (1 + math.cos(math.pi * share)) / 2


def twin(module: nn.Module) -> nn.Module:
    """A copy that takes no gradient and moves by :func:`follow` alone."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(twin: nn.Module, module: nn.Module, momentum: float) -> None:
    """twin ← m·twin + (1 - m)·module, parameter by parameter; BatchNorm's statistics are each one's own."""
    torch._foreach_lerp_(list(twin.parameters()), list(module.parameters()), 1 - momentum)


class Prototypes(nn.Linear):
    """K directions of length one. (B, dim), normalised here -> (B, K) cosines

    The weights are brought back to length one by :meth:`normalise`, after every step.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count, bias=False)
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(F.normalize(z, dim=1).to(self.weight.dtype))


@torch.no_grad()
def usage(assignments: Tensor) -> Tensor:
    """Which share of K prototypes is in use: the exponential of the entropy of their mean assignment, over K.

    assignments (B, K), rows that sum to one -> () from 1/K, all on one, to 1, all alike
    """
    mean = dist.total(assignments.sum(0))  # (K,)
    p = mean / mean.sum()
    return torch.exp(-torch.special.xlogy(p, p).sum()) / len(p)


class Bank(nn.Module):
    """A row for each training image: its last embedding, of length one, on all processes alike.

    Args:
        images: N, of the training set.
        width: d.

    Rows begin as random directions (InstDisc does); ``seen`` says which have been written since.
    """

    def __init__(self, images: int, width: int) -> None:
        super().__init__()
        if images < 1:
            raise UserError("this method keeps a row for each training image: give Method the number of images")
        self.register_buffer("rows", F.normalize(torch.randn(images, width), dim=1))  # (N, d)
        self.register_buffer("seen", torch.zeros(images, dtype=torch.bool))  # (N,)

    def write(self, index: Tensor, z: Tensor, momentum: float = 0.0) -> None:
        """rows[index] ← normalised m·rows[index] + (1 - m)·z, from all processes. index (B,), z (B, d)"""
        with torch.no_grad():
            index, z = dist.gather(index), dist.gather(F.normalize(z.detach().to(self.rows.dtype), dim=1))
            was = self.rows[index] if momentum else 0.0
            self.rows[index] = F.normalize(momentum * was + (1 - momentum) * z, dim=1)
            self.seen[index] = True


def encoded(encoder: nn.Module, views: list[Tensor]) -> Tensor:
    """Features of all views, those of one size in one pass, as multi-crop has it. V of (B, C, h, w) -> (V·B, d)

    The views of a size stand next to each other: the large first, then the small. Tokens (B, L) are of one size.
    """
    sizes = dict.fromkeys(v.shape[-2:] for v in views)
    return torch.cat([encoder(torch.cat([v for v in views if v.shape[-2:] == size])) for size in sizes])


@contextmanager
def unmeasured(module: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch as ever, but leaves its running statistics alone: for parts of pictures."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, momenta):
            m.momentum = momentum


def shuffled(encode: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
    """``encode(x)`` with the rows of all processes dealt anew among them meanwhile: MoCo's shuffled BatchNorm.

    What a query and its key have in common with their processes' BatchNorm statistics would give the key away
    (He et al. 2020, section 3.3). No gradient. In one process ``encode(x)``. x (B, …) -> (B, d)
    """
    if dist.world() == 1:
        return encode(x)
    rows, widths = zip(*dist.exchange([len(x), x.shape[-1]], x.device))
    if not x.is_floating_point():  # tokens: the texts of another process may be longer
        x = F.pad(x, (0, max(widths) - x.shape[-1]), value=-1)  # (B, L)
    order = torch.randperm(sum(rows), generator=generator).to(x.device)
    first, mine = sum(rows[: dist.rank()]), len(x)
    with torch.no_grad():
        dealt = dist.gather(x, list(rows))[order[first : first + mine]]
        z = dist.gather(encode(dealt), list(rows))  # (ΣB, d) in the dealt order
        return z[order.argsort()[first : first + mine]]
