"""NNCLR: a view's nearest neighbour among past pictures is what the other view must be told apart by.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman 2021, *With a Little Help from My Friends: Nearest-Neighbor Contrastive
Learning of Visual Representations* (arXiv:2104.14548). z = g(f(x̃)) of both views, p = q(z) by a predictor; z of one
view is exchanged for its nearest neighbour in a support set, a queue of past z, and InfoNCE holds it against the p of
the other view, among the p of the batch; both ways round. So positives differ by more than augmentation can do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.losses import CrossBatchMemory, clip
from nearfar.losses.rows import widened
from nearfar.methods.parts import Progress, Step, positive

SUPERVISED = False
PRESETS = {
    "small": {"settings": {"queue": 4096, "hidden": 512, "predictor_hidden": 1024, "dim": 128}},
    # The heads are the paper's, as lightly's modules quote it; queue, τ, batch and optimiser could not be checked
    # against the paper, and are those of SimCLR's long runs (LARS, 0.3 · batch/256, ten epochs of warm-up)
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 4096, "epochs": 1000.0, "policy": "simclr",
              "optim": {"name": "lars", "lr": 4.8, "weight_decay": 1e-6, "warmup": 0.01}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.1
    """τ of InfoNCE"""
    queue: int = 98304
    """past rows among which the nearest neighbour is sought"""
    depth: int = 3
    """linear layers of the projector"""
    hidden: int = 2048
    """width of the projector's hidden layers"""
    dim: int = 256
    """dimensions of the space in which the loss is taken"""
    predictor_hidden: int = 4096
    """width of the predictor's hidden layer"""
    norm: str = "batch"
    """normalisation in both, the projector's output too: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "queue", "depth", "hidden", "dim", "predictor_hidden")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, c = encoder, config, config
        self.projector = mlp(encoder.features, c.hidden, c.dim, depth=c.depth, norm=c.norm, last_norm=True)
        self.predictor = mlp(c.dim, c.predictor_hidden, c.dim, depth=2, norm=c.norm)
        self.queue = CrossBatchMemory(c.queue, c.dim)  # Q, the support set
        self.fresh: tuple[Tensor, Tensor] | None = None

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """NN(z, Q): the row of the queue nearest to each of z, rows of length one. (n, dim) -> (n, dim)

        The paper's queue begins with random rows; ours begins empty, and a row is then its own neighbour.
        """
        held = self.queue()[0].to(z.dtype)  # (Q, dim)
        if not len(held):
            return z
        with torch.autocast(z.device.type, enabled=False):
            return held[torch.cat([(part @ held.T).argmax(1) for part in z.split(1024)])]

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        h = self.encoder(torch.cat(views))  # (2B, features)
        z = self.project(h)  # (2B, dim)
        p = self.predictor(z)  # (2B, dim)
        rows = widened(z.detach(), unit=True)
        friends = self.nearest(rows)  # (2B, dim), no gradient
        # the neighbour of one view picks the other's p among the batch's, and that p the neighbour among theirs
        losses = [clip(n_v, index, p_v, index, temperature=self.config.temperature)
                  for n_v, p_v in zip(friends.chunk(2), reversed(p.chunk(2)))]  # fmt: skip
        self.fresh = (rows[: len(index)], index)  # one view of each
        stats = {"chance": math.log(dist.world() * len(index)), "neighbour": (friends * rows).sum(1).mean()}
        return Step(torch.stack(losses).mean(), h.detach(), z.detach(), index.repeat(2), stats)

    def after_step(self, progress: Progress) -> None:
        self.queue.push(*self.fresh)  # of all processes
