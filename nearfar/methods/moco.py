"""MoCo: each view must find its picture's other view, encoded by a slowly moving twin, among a queue of past ones.

He, Fan, Wu, Xie, Girshick 2020, *Momentum Contrast for Unsupervised Visual Representation Learning*
(arXiv:1911.05722): v1, a linear projector and τ = 0.07. Chen, Fan, Girshick, He 2020 (arXiv:2003.04297): v2, a
projector of two layers, τ = 0.2, blur and a cosine schedule. q = g(f(x_a)), k = g'(f'(x_b)); InfoNCE (equation 1)
of q with k and the queue; f', g' follow f, g by equation 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.losses import CrossBatchMemory, info_nce
from nearfar.losses.rows import widened
from nearfar.methods.parts import Progress, Step, follow, positive, shares, shuffled, twin

SUPERVISED = False
POLICY = ("moco-v2", "simclr-small")
_PAPER = {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 256, "epochs": 200.0, "policy": "moco-v2"}
_SGD = {"name": "sgd", "lr": 0.03, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": False, "warmup": 0.0}
PRESETS = {
    # a queue of 16 batches and a twin that follows within a short run; both directions, as each view is there anyway
    "small": {"settings": {"queue": 4096, "momentum": 0.99, "temperature": 0.1, "symmetric": True, "norm": "batch"}},
    "paper": _PAPER | {"optim": _SGD},
    "v1": _PAPER | {"policy": "moco-v1", "optim": _SGD | {"schedule": "step"},
                    "settings": {"temperature": 0.07, "depth": 1}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.2
    """τ of InfoNCE (v1: 0.07, v2: 0.2)"""
    queue: int = 65536
    """keys that are kept"""
    momentum: float = 0.999
    """m of the twin: how much of it stays at each step"""
    symmetric: bool = False
    """let both views be query and key in turn; the papers take the first as the query"""
    depth: int = 2
    """linear layers of the projector (v1: 1, v2: 2)"""
    hidden: int = 0
    """width of the projector's hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the space in which the loss is taken"""
    norm: str = "none"
    """normalisation in the projector: batch, layer or none (the papers)"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "queue", "depth", "dim")
        shares(self, "momentum")


class Method(nn.Module):
    batch_norm = "own"  # section 3.3: keys are dealt anew among the processes instead
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        d = encoder.features
        self.projector = mlp(d, config.hidden or d, config.dim, depth=config.depth, norm=config.norm)
        self.twin = twin(nn.Sequential(encoder, self.projector))  # f', g'
        self.queue = CrossBatchMemory(config.queue, config.dim)
        self.fresh: list[tuple[Tensor, Tensor]] = []  # keys of this step, to be enqueued after it

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        a, b = views
        both = self.config.symmetric
        h = self.encoder(torch.cat([a, b]) if both else a)  # (B or 2B, features)
        q = self.project(h)  # (B or 2B, dim)
        with torch.no_grad():
            x = torch.cat([b, a]) if both else b
            k = widened(shuffled(self.twin, x, progress.generator), unit=True)  # (B or 2B, dim)
        pairs = list(zip(q.chunk(1 + both), k.chunk(1 + both)))
        # equation 1; the other pictures' new keys are negatives too, and a picture's keys of past epochs positives
        losses = [info_nce(q_v, index, *self.queue(k_v, index), temperature=self.config.temperature)
                  for q_v, k_v in pairs]  # fmt: skip
        self.fresh = [(k_v, index) for _, k_v in pairs]
        groups = index.repeat(1 + both)
        chance = math.log(dist.world() * len(index) + len(self.queue))
        if not both:  # the twin's rows stand for the other view, to be watched
            q, groups = torch.cat([q, k.to(q.dtype)]), index.repeat(2)
        return Step(torch.stack(losses).mean(), h.detach(), q.detach(), groups, {"chance": chance})

    def after_step(self, progress: Progress) -> None:
        follow(self.twin, nn.Sequential(self.encoder, self.projector), self.config.momentum)  # equation 2
        for k, groups in self.fresh:
            self.queue.push(k, groups)  # of all processes
        self.fresh.clear()
