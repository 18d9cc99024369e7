"""SwAV: from one view, foretell which prototypes the other view is assigned to; small crops foretell too.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, *Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments* (arXiv:2006.09882). Scores are cosines of z = g(f(x̃)) with K prototypes; Sinkhorn-Knopp turns
the large views' scores into assignments that use all prototypes alike (equations 3 to 5), with a queue of past rows
where batches are small; every other view is to foretell them (equations 1, 2 and 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.losses import swav
from nearfar.losses.rows import widened
from nearfar.methods.parts import Progress, Prototypes, Step, encoded, positive, usage

SUPERVISED = False
POLICY = ("swav", "simclr-small")
_PAPER = {"encoder": "torchvision:resnet50", "image_size": 224, "policy": "swav"}
PRESETS = {
    # two views: in a short training on small pictures small crops cost more than they gave (docs/methods.md)
    "small": {"settings": {"hidden": 512, "prototypes": 100, "epsilon": 0.03, "frozen_epochs": 0.1}},
    "small-crops": {"policy": "swav-small",
                    "settings": {"hidden": 512, "prototypes": 100, "epsilon": 0.03, "frozen_epochs": 0.1}},
    # facebookresearch/swav, swav_800ep_pretrain.sh: no queue
    "paper": _PAPER | {"batch": 4096, "epochs": 800.0,
                       "optim": {"name": "lars", "lr": 4.8, "weight_decay": 1e-6, "warmup": 0.0125, "lr_end": 0.001}},
    # swav_200ep_bs256_pretrain.sh: a small batch, with the queue from epoch 15 on
    "queue": _PAPER | {"batch": 256, "epochs": 200.0, "settings": {"queue": 3840, "queue_from": 15.0},
                       "optim": {"name": "lars", "lr": 0.6, "weight_decay": 1e-6, "warmup": 0.0, "lr_end": 0.001}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    prototypes: int = 3000
    """K, how many"""
    prototype_temperature: float = 0.1
    """τ of the softmax over prototypes"""
    epsilon: float = 0.05
    """ε of Sinkhorn-Knopp: the smaller, the harder the assignment"""
    iterations: int = 3
    """rounds of Sinkhorn-Knopp"""
    queue: int = 0
    """past rows that take part in the assignment, all processes' together; 0: none"""
    queue_from: float = 15.0
    """epochs before the queue takes part"""
    frozen_epochs: float = 1.0
    """epochs in which the prototypes stand still"""
    depth: int = 2
    """linear layers of the projector"""
    hidden: int = 2048
    """width of the projector's hidden layers"""
    dim: int = 128
    """dimensions of the space of the prototypes"""
    norm: str = "batch"
    """normalisation in the projector: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "prototypes", "prototype_temperature", "epsilon", "iterations", "depth", "hidden", "dim")


class Method(nn.Module):
    views = 2
    small_views = True

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.projector = mlp(encoder.features, config.hidden, config.dim, depth=config.depth, norm=config.norm)
        self.prototypes = Prototypes(config.dim, config.prototypes)
        if config.queue:
            self.register_buffer("queue", torch.zeros(2, config.queue, config.dim))  # a queue a large view
            self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self.fresh: Tensor | None = None

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c, b = self.config, len(index)
        h = encoded(self.encoder, views)  # (B·V, d)
        z = widened(self.project(h), unit=True)  # (B·V, dim)
        scores = list(self.prototypes(z).split(b))  # V of (B, K)
        queued = None
        if c.queue and int(self.queued) == c.queue and progress.epoch >= c.queue_from:
            with torch.no_grad():
                queued = [self.prototypes(rows) for rows in self.queue]  # 2 of (Q, K)
        loss = swav(scores, temperature=c.prototype_temperature, epsilon=c.epsilon, iterations=c.iterations,
                    queue_scores=queued)  # fmt: skip
        large = z[: 2 * b].detach()
        self.fresh = large
        nearest = F.one_hot(scores[0].detach().argmax(1), c.prototypes).float()  # (B, K)
        stats = {"chance": math.log(c.prototypes), "prototype_usage": usage(nearest)}
        return Step(loss, h[: 2 * b].detach(), large, index.repeat(2), stats)

    def before_step(self, progress: Progress) -> None:
        if progress.epoch < self.config.frozen_epochs:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        self.prototypes.normalise()
        if self.config.queue:
            rows = [dist.gather(part) for part in self.fresh.chunk(2)]  # of all processes
            n = min(len(rows[0]), self.config.queue)
            new = torch.stack([part[:n] for part in rows])  # (2, n, dim)
            self.queue.copy_(torch.cat([new.to(self.queue), self.queue], 1)[:, : self.config.queue])
            self.queued.copy_((self.queued + n).clamp(max=self.config.queue))
