"""PCL: MoCo, and each view must also find the prototypes of the clusters, coarse and fine, that its picture lies in.

Li, Zhou, Xiong, Hoi 2021, *Prototypical Contrastive Learning of Unsupervised Representations* (arXiv:2005.04966), and
salesforce/PCL, main_pcl.py. The E-step clusters the twin's embeddings of all pictures once an epoch, several times with
ever more clusters. The M-step adds ProtoNCE to InfoNCE: the cross-entropy of q·c/φ over prototypes c, averaged over the
clusterings. φ is a cluster's concentration, the mean distance of its n rows from c over log(n + α): a loose cluster
pulls less. At first, while embeddings mean little, InfoNCE acts alone.

Three things are not the authors': they encode all pictures anew, without augmentation, before they cluster, where here
the twin's last keys are kept; they cluster by Euclidean distance and bring centroids to length one after, here it is by
the cosine; they draw 16,384 prototypes as negatives, here all others are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.losses import CrossBatchMemory, info_nce, prototype_cross_entropy, spherical_kmeans
from nearfar.losses.rows import widened
from nearfar.methods.parts import Bank, Progress, Step, follow, positive, shares, shuffled, twin, usage

SUPERVISED = False
POLICY = ("moco-v2", "simclr-small")
_PAPER = {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 256, "epochs": 200.0}
_SGD = {"name": "sgd", "lr": 0.03, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": False, "warmup": 0.0}
PRESETS = {
    "small": {"settings": {"queue": 4096, "momentum": 0.99, "temperature": 0.1, "symmetric": True, "norm": "batch",
                           "prototypes": 250, "every": 0.5}},
    # salesforce/PCL with --mlp --aug-plus --cos, and without
    "paper": _PAPER | {"policy": "moco-v2", "optim": _SGD},
    "v1": _PAPER | {"policy": "moco-v1", "optim": _SGD | {"schedule": "step"}, "settings": {"depth": 1}},
}  # fmt: skip
_ALPHA = 10  # of the concentration: small clusters are not taken for dense ones
_ROWS = 4  # pictures to a cluster, at the least: where there are fewer, there are fewer clusters


@dataclass(frozen=True)
class Config:
    temperature: float = 0.2
    """τ of InfoNCE, and the mean of φ"""
    queue: int = 16384
    """keys that are kept"""
    momentum: float = 0.999
    """m of the twin: how much of it stays at each step"""
    symmetric: bool = False
    """let both views be query and key in turn; the paper takes the first as the query"""
    prototypes: int = 25000
    """clusters of the coarsest clustering; each further one has twice as many (the paper: 25, 50 and 100 thousand)"""
    granularities: int = 3
    """how many clusterings"""
    alone: float = 0.1
    """share of the training in which InfoNCE acts alone (the paper: 20 of 200 epochs)"""
    every: float = 1.0
    """epochs from one clustering to the next"""
    iterations: int = 20
    """rounds of k-means"""
    depth: int = 2
    """linear layers of the projector (v1: 1, v2: 2)"""
    hidden: int = 0
    """width of the projector's hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the space in which the loss is taken"""
    norm: str = "none"
    """normalisation in the projector: batch, layer or none (the paper)"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "queue", "prototypes", "granularities", "every", "iterations", "depth", "dim")
        shares(self, "momentum", "alone")


class Clusters(nn.Module):
    """One clustering of all pictures: prototypes, their concentrations, and who lies where.

    Args:
        images: N, of the training set. count: K, at most. width: d.
    """

    def __init__(self, images: int, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(count, width))  # (K, d)
        self.register_buffer("phi", torch.ones(count))  # (K,)
        self.register_buffer("assignments", torch.full((images,), -1))  # (N,), -1: in no cluster
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # clusters that there are
        self.register_buffer("used", torch.ones(()))  # share of them that are in use

    @torch.no_grad()
    def find(self, bank: Bank, iterations: int, temperature: float, generator: torch.Generator) -> None:
        """The E-step over the pictures seen so far, cut over the processes."""
        seen = bank.seen.nonzero()[:, 0]  # (N',)
        k = max(1, min(len(self.prototypes), len(seen) // _ROWS))
        mine = bank.rows[seen.tensor_split(dist.world())[dist.rank()]]  # (N'/P, d)
        centroids, y = spherical_kmeans(mine, k, iterations=iterations, generator=generator)
        far = torch.stack([(mine - centroids[y]).norm(dim=1), torch.ones_like(mine[:, 0])], 1)  # (N'/P, 2)
        far = dist.total(far.new_zeros(k, 2).index_add_(0, y, far))  # (K, 2): sum of distances, and n
        self.prototypes[:k], self.phi[:k] = centroids, concentration(*far.unbind(1), temperature)
        self.assignments[seen] = dist.gather(y)
        self.used.copy_(usage(far[None, :, 1]))
        self.count.fill_(k)

    def loss(self, q: Tensor, index: Tensor) -> Tensor:
        """ProtoNCE of one clustering. q (B, d) of length one, index (B,) -> ()"""
        k = int(self.count)
        scores = q @ self.prototypes[:k].to(q.dtype).T / self.phi[:k].to(q.dtype)  # (B, K)
        return prototype_cross_entropy(scores, self.assignments[index], temperature=1.0)


def concentration(distances: Tensor, n: Tensor, temperature: float) -> Tensor:
    """φ from the sums of distances to the prototypes and the numbers of rows, of mean τ. (K,), (K,) -> (K,)

    Clusters of a single row take the largest; beyond the 10th and 90th percentile all are alike, as in the code.
    """
    phi = distances / n.clamp(min=1) / (n + _ALPHA).log()
    phi = torch.where(n > 1, phi, torch.where(n > 1, phi, 0).max())
    phi = phi.clamp(phi.quantile(0.1), phi.quantile(0.9))
    return temperature * phi / phi.mean() if float(phi.min()) > 0 else torch.full_like(phi, temperature)


class Method(nn.Module):
    batch_norm = "own"  # as in MoCo, keys are dealt anew among the processes instead
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        d = encoder.features
        self.projector = mlp(d, config.hidden or d, config.dim, depth=config.depth, norm=config.norm)
        self.twin = twin(nn.Sequential(encoder, self.projector))
        self.queue = CrossBatchMemory(config.queue, config.dim)
        self.bank = Bank(images, config.dim)
        self.clusterings = nn.ModuleList(Clusters(images, config.prototypes * 2**m, config.dim)
                                         for m in range(config.granularities))  # fmt: skip
        self.register_buffer("due", torch.zeros((), dtype=torch.float64))  # the epoch of the next clustering
        self.fresh: tuple[Tensor, Tensor, torch.Generator] | None = None

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        a, b = views
        c, both = self.config, self.config.symmetric
        starts = progress.generator.clone_state()  # as several processes draw from it to deal keys, and one does not
        h = self.encoder(torch.cat([a, b]) if both else a)  # (B or 2B, features)
        q = widened(self.project(h), unit=True)  # (B or 2B, dim)
        with torch.no_grad():
            x = torch.cat([b, a]) if both else b
            k = widened(shuffled(self.twin, x, progress.generator), unit=True)  # (B or 2B, dim)
        groups = index.repeat(1 + both)
        loss = torch.stack([info_nce(q_v, index, *self.queue(k_v, index), temperature=c.temperature)
                            for q_v, k_v in zip(q.chunk(1 + both), k.chunk(1 + both))]).mean()  # fmt: skip
        chance, stats = math.log(dist.world() * len(index) + len(self.queue)), {}
        if int(self.clusterings[0].count):
            loss = loss + torch.stack([m.loss(q, groups) for m in self.clusterings]).mean()
            chance += sum(math.log(int(m.count)) for m in self.clusterings) / c.granularities
            stats["prototype_usage"] = torch.stack([m.used for m in self.clusterings]).mean()
        self.fresh = index, k, starts
        if not both:  # the twin's rows stand for the other view, to be watched
            q, groups = torch.cat([q, k.to(q.dtype)]), index.repeat(2)
        return Step(loss, h.detach(), q.detach(), groups, {"chance": chance} | stats)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        c, (index, k, starts) = self.config, self.fresh
        follow(self.twin, nn.Sequential(self.encoder, self.projector), c.momentum)
        for k_v in k.split(len(index)):
            self.queue.push(k_v, index)  # of all processes
        self.bank.write(index, k[: len(index)])
        if progress.share >= c.alone and progress.epoch >= float(self.due):
            for clustering in self.clusterings:
                clustering.find(self.bank, c.iterations, c.temperature, starts)
            self.due.fill_((math.floor(progress.epoch / c.every) + 1) * c.every)
