"""LeJEPA: every view foretells the middle of its picture's large views, and the embeddings are a standard normal's.

Balestriero & LeCun 2025, *LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics*
(arXiv:2511.08544). z = g(f(x̃)) of large and small views; the squared distance of each from the mean of the large ones
(section 5.1), and SIGReg (definition 2), the statistic of Epps and Pulley along random directions, of each view;
1 - λ and λ weigh them (algorithm 2). No twin, no stopped gradient, no prediction network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.losses import sigreg
from nearfar.losses.rows import widened
from nearfar.methods.parts import Progress, Step, encoded, positive, shares

SUPERVISED = False
POLICY = ("lejepa", "simclr-small")
PRESETS = {
    # four large views in place of two and six small ones, and a smaller weight; chosen on CIFAR-10's training images
    "small": {"settings": {"hidden": 512, "dim": 64, "slices": 256, "weight": 0.01, "large": 4}},
    # rbalestr-lab/lejepa, README (rate, decay, views); table 1: 100 epochs, batch 512, projection to 64 dimensions;
    # the warm-up is not told there: one of its minimal example's epochs would be 0.01
    "paper": {"encoder": "timm:vit_large_patch14_224", "image_size": 224, "batch": 512, "epochs": 100.0,
              "policy": "lejepa",
              "optim": {"lr": 5e-4, "weight_decay": 0.05, "beta2": 0.999, "warmup": 0.01, "lr_end": 0.001}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    weight: float = 0.05
    """λ: the weight of SIGReg, against 1 - λ of the prediction"""
    slices: int = 1024
    """random directions a step"""
    points: int = 17
    """knots of the statistic's integral, an odd number"""
    reach: float = 5.0
    """where that integral ends"""
    large: int = 2
    """large views a picture; what small ones there are, the policy says"""
    depth: int = 3
    """linear layers of the projector"""
    hidden: int = 2048
    """width of the projector's hidden layers"""
    dim: int = 64
    """dimensions of the space in which the loss is taken"""
    norm: str = "batch"
    """normalisation in the projector: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "slices", "points", "reach", "large", "depth", "hidden", "dim")
        shares(self, "weight")


class Method(nn.Module):
    small_views = True

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, self.views = encoder, config, config.large
        self.projector = mlp(encoder.features, config.hidden, config.dim, depth=config.depth, norm=config.norm)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c, b = self.config, len(index)
        h = encoded(self.encoder, views)  # (V·B, d)
        z = widened(self.project(h), unit=False).unflatten(0, (len(views), b))  # (V, B, dim)
        middle = z[: c.large].mean(0)  # (B, dim) of the large views, with its gradient
        n = sum(rows for (rows,) in dist.exchange([b], index.device))
        apart = dist.total((z - middle).square().mean((0, 2)).sum()) / n  # section 5.1
        normal = [sigreg(z_v, slices=c.slices, points=c.points, reach=c.reach, generator=progress.generator)
                  for z_v in z]  # fmt: skip
        normality, rows = torch.stack(normal).mean(), c.large * b
        loss = (1 - c.weight) * apart + c.weight * normality
        # where all pictures are one point, the views agree and SIGReg is 0.41 a row at best
        stats = {"chance": c.weight * 0.409 * n, "prediction": apart.detach(), "sigreg": normality.detach()}
        return Step(loss, h[:rows].detach(), z[: c.large].flatten(0, 1).detach(), index.repeat(c.large), stats)

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
