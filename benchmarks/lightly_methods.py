"""Lightly's building blocks put together as its CIFAR-10 benchmark does, around any encoder, for peers.py.

From lightly-ai/lightly, docs/source/getting_started/benchmarks/cifar10_benchmark.py (2023-03-27): each view goes
through the encoder by itself; blur is off, colour at half strength (Barlow Twins: BYOL's two views as they are).
``config``, nearfar's own of the method, takes the place of temperatures and sizes where it is given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, NTXentLoss, SwaVLoss
from lightly.models import utils
from lightly.models.modules import heads
from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform, SimCLRTransform, SwaVTransform
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from PIL import Image
from torch import Tensor, nn, optim
from torch.utils.data import Dataset


class Pictures(Dataset):
    """Arrays (N, H, W, 3) uint8 as LightlyDataset wants a data set: PIL images, with the transform that it sets."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.transform = x, None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        return self.transform(Image.fromarray(self.x[i])), 0


_VIEWS = {"input_size": 32, "cj_strength": 0.5, "gaussian_blur": 0.0}


@dataclass
class Peer:
    """What is trained, its views of a PIL image, and a step in two parts: forward under autocast, loss in float32."""

    trained: nn.Module
    transform: Callable[[Any], list[Tensor]]
    forward: Callable[[list[Tensor]], list[Tensor]]  # views of (B, C, h, w) -> (B, d) each
    loss: Callable[[list[Tensor]], Tensor]
    optimiser: str = "sgd"

    def learner(self, batch: int, steps: int, per_epoch: int) -> tuple[optim.Optimizer, Callable[[int], object]]:
        """The optimiser, and what moves its schedule, to be called with the number of steps done."""
        parameters = self.trained.parameters()
        if self.optimiser == "lars":
            decayed, others = utils.get_weight_decay_parameters([self.trained])
            groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0, "lr": 0.0048 * batch / 256}]
            made = LARS(groups, lr=0.2 * batch / 256, momentum=0.9, weight_decay=1.5e-6)
            schedule = CosineWarmupScheduler(made, max(1, steps // 10), steps)
            return made, lambda done: schedule.step()
        if self.optimiser == "adam":
            made = optim.Adam(parameters, lr=1e-3 * batch / 128, weight_decay=1e-6)
        else:
            made = optim.SGD(parameters, lr=6e-2 * batch / 128, momentum=0.9, weight_decay=5e-4)
        schedule = optim.lr_scheduler.CosineAnnealingLR(made, -(-steps // per_epoch))  # by epochs
        return made, lambda done: done % per_epoch or schedule.step()


def simclr(encoder: Any, config: Any | None = None) -> Peer:
    c = config
    hidden, dim, t = (c.hidden or encoder.features, c.dim, c.temperature) if c else (512, 128, 0.5)
    model = nn.Sequential(encoder, heads.SimCLRProjectionHead(encoder.features, hidden, dim))
    loss = NTXentLoss(t)
    return Peer(model, SimCLRTransform(**_VIEWS), lambda views: [model(x) for x in views], lambda z: loss(*z))


def moco(encoder: Any, config: Any | None = None) -> Peer:
    """In both directions. The benchmark's BatchNorm in eight parts belongs to its ResNet and is left out."""
    c = config
    hidden, dim, t = (c.hidden or encoder.features, c.dim, c.temperature) if c else (512, 128, 0.1)
    momentum, queue = (c.momentum, c.queue) if c else (0.99, 4096)
    model = nn.Sequential(encoder, heads.MoCoProjectionHead(encoder.features, hidden, dim))
    twin = copy.deepcopy(model)
    utils.deactivate_requires_grad(twin)
    loss = NTXentLoss(t, memory_bank_size=(queue, dim))

    def step(query: Tensor, key: Tensor) -> list[Tensor]:
        key, order = utils.batch_shuffle(key)
        return [model(query), utils.batch_unshuffle(twin(key), order)]  # 2 of (B, dim)

    def forward(views: list[Tensor]) -> list[Tensor]:
        utils.update_momentum(model, twin, momentum)
        return step(*views) + step(*views[::-1])

    return Peer(model, SimCLRTransform(**_VIEWS), forward, lambda z: 0.5 * (loss(*z[:2]) + loss(*z[2:])))


def swav(encoder: Any, config: Any | None = None, small: Any | None = None) -> Peer:
    """``small``: a policy of nearfar's for small crops, of which the benchmark has none."""
    c = config
    hidden, dim, count = (c.hidden, c.dim, c.prototypes) if c else (512, 128, 512)
    head = heads.SwaVProjectionHead(encoder.features, hidden, dim)
    prototypes = heads.SwaVPrototypes(dim, count)
    loss = SwaVLoss(c.prototype_temperature, c.iterations, c.epsilon) if c else SwaVLoss()

    def forward(views: list[Tensor]) -> list[Tensor]:
        prototypes.normalize()
        return [prototypes(F.normalize(head(encoder(x)), dim=1)) for x in views]  # (B, count) each

    crops = [(32, 2, 0.14, 1.0)]  # pixels, how many, smallest and largest area
    if small is not None:
        crops.append((small.side(32), small.count, small.crop_min, small.crop_max))
    names = ("crop_sizes", "crop_counts", "crop_min_scales", "crop_max_scales")
    transform = SwaVTransform(**dict(zip(names, zip(*crops))), cj_strength=0.5, gaussian_blur=0.0)
    return Peer(nn.ModuleList([encoder, head, prototypes]), transform, forward, lambda z: loss(z[:2], z[2:]), "adam")


def barlow_twins(encoder: Any, config: Any | None = None) -> Peer:
    """With LARS and a warm-up, as in lightly's ImageNet benchmark (benchmarks/imagenet/resnet50/barlowtwins.py).

    The CIFAR-10 benchmark's SGD does not train the small CNN: the loss rises in the first steps and stays above where
    it began, in float32 as well.
    """
    d, c = encoder.features, config
    if c:
        head = heads.BarlowTwinsProjectionHead(d, c.hidden, c.dim)
    else:  # two layers on CIFAR-10
        head = heads.ProjectionHead([(d, 2048, nn.BatchNorm1d(2048), nn.ReLU(inplace=True)), (2048, 2048, None, None)])
    model = nn.Sequential(encoder, head)
    loss = BarlowTwinsLoss(c.off_diagonal) if c else BarlowTwinsLoss()
    views = [view(input_size=32, gaussian_blur=0.0) for view in (BYOLView1Transform, BYOLView2Transform)]
    return Peer(model, BYOLTransform(*views), lambda views: [model(x) for x in views], lambda z: loss(*z), "lars")
