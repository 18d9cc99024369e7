"""DeepCluster-v2: every view must tell which cluster its picture fell into when all pictures were last clustered.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, *Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments* (arXiv:2006.09882), section 5.1 and facebookresearch/swav, main_deepclusterv2.py. The last embeddings of
both large views are kept for every picture; once an epoch each head clusters one of the two banks by spherical k-means.
Its centroids become the head's prototypes and stand still until the next time; all views, small crops too, are held
against them by cross-entropy with the picture's cluster as the class, and the heads' losses are averaged.

The authors pass over all pictures once, without learning, before the first clustering. Here the first epoch learns: the
pictures seen so far are clustered after the first step and whenever they have doubled, and those that have no cluster
yet are dealt to the prototypes alike by Sinkhorn-Knopp, as in SwAV (given to the nearest, the embedding collapses).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.losses import prototype_cross_entropy, sinkhorn, spherical_kmeans
from nearfar.losses.rows import widened
from nearfar.methods.parts import Bank, Progress, Step, encoded, positive, usage

SUPERVISED = False
POLICY = ("swav", "simclr-small")
_PAPER = {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 4096, "policy": "swav",
          "optim": {"name": "lars", "lr": 4.8, "weight_decay": 1e-6, "warmup": 0.0125, "lr_end": 0.001}}  # fmt: skip
PRESETS = {
    # without last_norm all embeddings come to lie in a narrow cone, in which clusters say little
    "small": {"settings": {"hidden": 512, "prototypes": 256, "every": 0.5, "last_norm": True}},
    # facebookresearch/swav, deepclusterv2_800ep_pretrain.sh
    "paper": _PAPER | {"epochs": 800.0},
}
_ROWS = 4  # pictures to a cluster, at the least: where there are fewer, there are fewer clusters


@dataclass(frozen=True)
class Config:
    heads: int = 3
    """clusterings, each with prototypes of its own"""
    prototypes: int = 3000
    """K of each of them; fewer where there are fewer than four pictures to each"""
    prototype_temperature: float = 0.1
    """τ of the softmax over prototypes"""
    every: float = 1.0
    """epochs from one clustering to the next"""
    iterations: int = 10
    """rounds of k-means"""
    depth: int = 2
    """linear layers of the projector"""
    hidden: int = 2048
    """width of the projector's hidden layers"""
    dim: int = 128
    """dimensions of the space of the prototypes"""
    norm: str = "batch"
    """normalisation in the projector: batch, layer or none"""
    last_norm: bool = False
    """normalise the projector's output too (the authors do not)"""

    def __post_init__(self) -> None:
        positive(self, "heads", "prototypes", "prototype_temperature", "every", "iterations", "depth", "hidden", "dim")


class Method(nn.Module):
    views = 2
    small_views = True

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.projector = mlp(encoder.features, config.hidden, config.dim, depth=config.depth, norm=config.norm,
                             last_norm=config.last_norm)  # fmt: skip
        self.banks = nn.ModuleList(Bank(images, config.dim) for _ in range(2))  # one for each large view
        self.register_buffer("prototypes", torch.zeros(config.heads, config.prototypes, config.dim))
        self.register_buffer("assignments", torch.full((config.heads, images), -1))  # -1: in no cluster yet
        self.register_buffer("clusters", torch.zeros((), dtype=torch.int64))  # prototypes that there are, of each head
        self.register_buffer("clustered", torch.zeros((), dtype=torch.int64))  # pictures, the last time
        self.register_buffer("due", torch.zeros((), dtype=torch.float64))  # the epoch of the next time
        self.register_buffer("used", torch.ones(()))  # share of prototypes that pictures were assigned to
        self.fresh: tuple[Tensor, Tensor] | None = None

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        b, k = len(index), int(self.clusters)
        h = encoded(self.encoder, views)  # (B·V, d)
        z = widened(self.project(h), unit=True)  # (B·V, dim)
        large = z[: 2 * b].detach()
        self.fresh = index, large
        losses = [0 * z.sum()]
        if k:
            losses = [self._loss(head, z, index, progress.epoch < 1) for head in range(self.config.heads)]
        stats = {"chance": math.log(k), "prototype_usage": self.used.clone()} if k else {}
        return Step(torch.stack(losses).mean(), h[: 2 * b].detach(), large, index.repeat(2), stats)

    def _loss(self, head: int, z: Tensor, index: Tensor, first: bool) -> Tensor:
        """Cross-entropy of all views with the clusters of one head. z (B·V, dim), index (B,) -> ()"""
        b = len(index)
        scores = z @ self.prototypes[head, : int(self.clusters)].to(z.dtype).T  # (B·V, K)
        y = self.assignments[head, index]  # (B,)
        if first:
            view = scores[head % 2 * b :][:b].detach()  # (B, K) of the view whose bank this head clusters
            y = torch.where(y < 0, sinkhorn(view).argmax(1), y)
        return prototype_cross_entropy(scores, y.repeat(len(z) // b), temperature=self.config.prototype_temperature)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        index, large = self.fresh
        for bank, z in zip(self.banks, large.chunk(2)):
            bank.write(index, z)
        seen = self.banks[0].seen.nonzero()[:, 0]  # (N',) in the first epoch not all
        if progress.epoch >= float(self.due) or len(seen) >= 2 * int(self.clustered):
            self._cluster(seen, progress)

    def _cluster(self, seen: Tensor, progress: Progress) -> None:
        """k-means of the pictures in ``seen``, cut over the processes."""
        c = self.config
        k = max(1, min(c.prototypes, len(seen) // _ROWS))
        counts = torch.zeros(c.heads, k, device=seen.device)
        for head in range(c.heads):
            mine = self.banks[head % 2].rows[seen.tensor_split(dist.world())[dist.rank()]]  # (N'/P, dim)
            centroids, y = spherical_kmeans(mine, k, iterations=c.iterations, generator=progress.generator)
            self.prototypes[head, :k] = centroids
            self.assignments[head, seen] = dist.gather(y)
            counts[head] = self.assignments[head, seen].bincount(minlength=k)
        self.used.copy_(torch.stack([usage(row[None]) for row in counts]).mean())
        self.clusters.fill_(k)
        self.clustered.fill_(len(seen))
        self.due.fill_((math.floor(progress.epoch / c.every) + 1) * c.every)
