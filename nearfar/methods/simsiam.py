"""SimSiam: from one view foretell the other, whose side takes no gradient; no negatives and no twin.

Chen & He 2021, *Exploring Simple Siamese Representation Learning* (arXiv:2011.10566). z = g(f(x̃)), p = h(z); the
negative cosine of p of one view with z of the other (equation 1), both ways, halved (equations 2 to 4). z is held
still in it, stopgrad: without that all pictures become one point (section 4.1), as ``stop_gradient=False`` shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar.encoders.project import mlp
from nearfar.losses import simsiam
from nearfar.methods.parts import Progress, Rate, Step, positive

SUPERVISED = False
POLICY = ("simsiam", "simclr-small")
PRESETS = {
    # a slower rate, chosen on CIFAR-10's training images (SGD at 0.1 is level)
    "small": {"optim": {"lr": 0.001},
              "settings": {"hidden": 1024, "predictor_hidden": 256, "dim": 1024}},
    # facebookresearch/simsiam, main_simsiam.py with --fix-pred-lr: 0.05 · 512/256, no warm-up
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 512, "epochs": 100.0, "policy": "simsiam",
              "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": False,
                        "warmup": 0.0}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    stop_gradient: bool = True
    """hold the other view's side still; false breaks the method, to see why"""
    depth: int = 3
    """linear layers of the projector (the paper: 3 on ImageNet, 2 on CIFAR-10)"""
    hidden: int = 0
    """width of the projector's hidden layers; 0: as wide as the features"""
    predictor_hidden: int = 512
    """width of the predictor's hidden layer, a bottleneck"""
    dim: int = 2048
    """dimensions of the space in which the loss is taken"""
    norm: str = "batch"
    """normalisation in projector and predictor, and of the projector's output: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "depth", "predictor_hidden", "dim")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.rates = {"predictor.": Rate(constant=True)}  # h follows z better with a rate that does not fall
        d, norm = encoder.features, config.norm
        self.projector = mlp(d, config.hidden or d, config.dim, depth=config.depth, norm=norm, last_norm=True)
        self.predictor = mlp(config.dim, config.predictor_hidden, config.dim, norm=norm)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        # one view after the other, as the authors' code does: BatchNorm takes each view's own statistics
        h = [self.encoder(x) for x in views]  # 2 of (B, features)
        z = [self.project(h_v) for h_v in h]  # 2 of (B, dim)
        p = [self.predictor(z_v) for z_v in z]  # 2 of (B, dim)
        loss = (self._apart(p[0], z[1]) + self._apart(p[1], z[0])) / 2  # equation 4
        return Step(loss, torch.cat(h).detach(), torch.cat(z).detach(), index.repeat(2))

    def _apart(self, p: Tensor, z: Tensor) -> Tensor:
        """Equation 3; equation 1 where the gradient is not stopped."""
        loss = simsiam(p, z)
        if self.config.stop_gradient:
            return loss
        back = simsiam(z, p)  # -cos is the same both ways: this is the gradient to z alone
        return loss + back - back.detach()

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
