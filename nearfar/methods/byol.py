"""BYOL: from one view foretell how a slowly moving twin sees the other; no negatives.

Grill, Strub, Altché, Tallec, Richemond, Buchatskaya, Doersch, Avila Pires, Guo, Gheshlaghi Azar, Piot, Kavukcuoglu,
Munos, Valko 2020, *Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning* (arXiv:2006.07733). Online:
encoder f, projector g, predictor q; the target f', g' follows f, g by equation 1. Both are normalised and the squared
distance of q(g(f(x_a))) and g'(f'(x_b)) is taken (equation 2), both ways. The target moves ever more slowly: τ goes
from its start to 1 along half a cosine. What keeps all from becoming one point is the predictor with the twin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar.encoders.project import mlp
from nearfar.losses import byol
from nearfar.methods.parts import Progress, Step, cosine, follow, positive, shares, twin

SUPERVISED = False
POLICY = ("byol", "simclr-small")
PRESETS = {
    # a twin that follows within a short run, projections normalised over the batch (else they keep a large part in
    # common for most of it), a slower rate; chosen on CIFAR-10's training images
    "small": {"optim": {"lr": 0.001},
              "settings": {"hidden": 1024, "predictor_hidden": 1024, "dim": 256, "momentum": 0.9, "last_norm": True}},
    # google-deepmind/deepmind-research, byol/configs/byol.py, 1000 epochs: LARS, 0.2 · 4096/256, ten of warm-up
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 4096, "epochs": 1000.0, "policy": "byol",
              "optim": {"name": "lars", "lr": 3.2, "weight_decay": 1.5e-6, "warmup": 0.01}},
    # the same file, 300 epochs: 0.3 · 4096/256
    "300": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 4096, "epochs": 300.0, "policy": "byol",
            "optim": {"name": "lars", "lr": 4.8, "weight_decay": 1e-6, "warmup": 1 / 30},
            "settings": {"momentum": 0.99}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    momentum: float = 0.996
    """τ of the twin at the start: how much of it stays at each step; 1 at the end"""
    hidden: int = 4096
    """width of the projector's hidden layer"""
    predictor_hidden: int = 4096
    """width of the predictor's hidden layer"""
    dim: int = 256
    """dimensions of the space in which the loss is taken"""
    norm: str = "batch"
    """normalisation in projector and predictor: batch, layer or none"""
    last_norm: bool = False
    """also normalise the projector's output; the paper does not"""

    def __post_init__(self) -> None:
        positive(self, "hidden", "predictor_hidden", "dim")
        shares(self, "momentum")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        norm, last = config.norm, config.last_norm
        self.projector = mlp(encoder.features, config.hidden, config.dim, norm=norm, last_norm=last)
        self.predictor = mlp(config.dim, config.predictor_hidden, config.dim, norm=norm)
        self.twin = twin(nn.Sequential(encoder, self.projector))  # f', g'

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        # one view after the other, as the authors' code does: BatchNorm takes each view's own statistics
        h = [self.encoder(x) for x in views]  # 2 of (B, features)
        z = [self.project(h_v) for h_v in h]  # 2 of (B, dim)
        p = [self.predictor(z_v) for z_v in z]  # 2 of (B, dim)
        with torch.no_grad():
            t = [self.twin(x) for x in views]  # 2 of (B, dim)
        loss = byol(p[0], t[1]) + byol(p[1], t[0])  # equation 2, and the views exchanged
        return Step(loss, torch.cat(h).detach(), torch.cat(z).detach(), index.repeat(2))

    def after_step(self, progress: Progress) -> None:
        momentum = cosine(self.config.momentum, 1.0, progress.share)
        follow(self.twin, nn.Sequential(self.encoder, self.projector), momentum)  # equation 1
