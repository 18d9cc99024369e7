"""DINO: a student foretells, over K classes that nobody named, how a slowly moving teacher sees another view.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin 2021, *Emerging Properties in Self-Supervised Vision
Transformers* (arXiv:2104.14294). Student and teacher are encoder, projector and a weight-normalised last layer; the
teacher sees the large views, the student all, and each view's softmax is to be the teacher's of another view
(equations 1 to 3). The teacher follows the student. Its outputs are sharpened, by a low temperature, and centred, by
their moving mean (equation 4): the first alone would end in one class for all, the second alone in all alike
(section 5.3); ``centring=False`` shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from nearfar.errors import UserError
from nearfar.losses import dino, update_centre
from nearfar.losses.rows import widened
from nearfar.methods.parts import Progress, Step, cosine, encoded, follow, positive, shares, twin, usage

SUPERVISED = False
POLICY = ("dino", "simclr-small")
_PAPER = {"encoder": "timm:vit_small_patch16_224", "image_size": 224, "policy": "dino"}
_ADAMW = {"name": "adamw", "weight_decay": 0.04, "weight_decay_end": 0.4, "beta2": 0.999, "clip": 3.0}
_SMALL = {"prototypes": 1024, "hidden": 512, "dim": 128, "norm": "batch", "momentum": 0.95,
          "teacher_temperature": 0.04, "frozen_epochs": 0.1}  # fmt: skip
PRESETS = {
    # two views and a teacher that follows within a short run; chosen on CIFAR-10's training images
    "small": {"optim": {"lr": 0.002}, "settings": _SMALL},
    "small-crops": {"policy": "dino-small", "optim": {"lr": 0.002}, "settings": _SMALL},
    # facebookresearch/dino, README, "boosting": 300 epochs on 16 × 64 images, 0.0005 · 1024/256, ten of warm-up, down
    # to 10⁻⁶. There each parameter's gradient is clipped at 3, here all of them together
    "paper": _PAPER | {"batch": 1024, "epochs": 300.0, "settings": {"lengths": True},
                       "optim": _ADAMW | {"lr": 0.002, "warmup": 1 / 30, "lr_end": 0.0005}},
    # the same, "vanilla": 100 epochs on 8 × 64 images, one temperature
    "vanilla": _PAPER | {"batch": 512, "epochs": 100.0, "settings": {"teacher_temperature": 0.04},
                         "optim": _ADAMW | {"lr": 0.001, "warmup": 0.1, "lr_end": 0.001}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    prototypes: int = 65536
    """K, outputs of the last layer"""
    student_temperature: float = 0.1
    """τ_s of the student's softmax"""
    teacher_temperature: float = 0.07
    """τ_t of the teacher's, once warm"""
    start_temperature: float = 0.04
    """τ_t at the start"""
    warmup_epochs: float = 30.0
    """epochs in which τ_t rises from its start"""
    centring: bool = True
    """take the moving mean off the teacher's outputs; false breaks the method, to see why"""
    centre_momentum: float = 0.9
    """how much of the centre stays at each step"""
    momentum: float = 0.996
    """how much of the teacher stays at each step, at the start; 1 at the end"""
    frozen_epochs: float = 1.0
    """epochs in which the last layer stands still"""
    lengths: bool = False
    """let the last layer's rows learn their lengths, which are 1 else; better and less stable"""
    depth: int = 3
    """linear layers of the projector"""
    hidden: int = 2048
    """width of the projector's hidden layers"""
    dim: int = 256
    """dimensions before the last layer"""
    norm: str = "none"
    """normalisation in the projector: batch or none (the paper's, with transformers)"""

    def __post_init__(self) -> None:
        positive(self, "prototypes", "student_temperature", "teacher_temperature", "start_temperature", "depth",
                 "hidden", "dim")  # fmt: skip
        shares(self, "centre_momentum", "momentum")
        if self.norm not in ("batch", "none"):
            raise UserError(f"norm {self.norm!r}: give batch or none")


def projector(n_in: int, c: Config) -> nn.Sequential:
    """Linear layers with GELU between them, as the authors begin them. (B, n_in) -> (B, dim)"""
    widths = [n_in, *[c.hidden] * (c.depth - 1), c.dim]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(a, b))
        nn.init.trunc_normal_(layers[-1].weight, std=0.02)
        nn.init.zeros_(layers[-1].bias)
        if i < c.depth - 1:
            layers += [nn.BatchNorm1d(b)] * (c.norm == "batch") + [nn.GELU()]
    return nn.Sequential(*layers)


def last_layer(c: Config) -> nn.Module:
    """K rows whose lengths are parameters of their own. (B, dim) -> (B, K)"""
    layer = weight_norm(nn.Linear(c.dim, c.prototypes, bias=False))
    length = layer.parametrizations.weight.original0  # (K, 1)
    nn.init.ones_(length)
    length.requires_grad_(c.lengths)
    return layer


class Method(nn.Module):
    views = 2
    small_views = True

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.projector = projector(encoder.features, config)
        self.prototypes = last_layer(config)
        self.twin = twin(self._parts())
        self.register_buffer("centre", torch.zeros(config.prototypes))  # (K,)
        self.fresh: list[Tensor] = []  # the teacher's outputs of this step, which move the centre after it

    def _parts(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.projector, self.prototypes])

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c, b = self.config, len(index)
        h = encoded(self.encoder, views)  # (V·B, d)
        z = widened(self.project(h), unit=True)  # (V·B, dim)
        student = self.prototypes(z).split(b)  # V of (B, K)
        with torch.no_grad():
            encoder, projector, prototypes = self.twin
            t = prototypes(widened(projector(encoder(torch.cat(views[:2]))), unit=True))  # (2·B, K)
        temperature = self.teacher_temperature(progress.epoch)
        teacher = list(widened(t, unit=False).split(b))  # 2 of (B, K)
        loss = dino(student, teacher, self.centre, student_temperature=c.student_temperature,
                    teacher_temperature=temperature)  # fmt: skip
        self.fresh = teacher
        assigned = ((torch.cat(teacher) - self.centre) / temperature).softmax(1)  # (2·B, K)
        stats = {"chance": math.log(c.prototypes), "prototype_usage": usage(assigned)}
        return Step(loss, h[: 2 * b].detach(), z[: 2 * b].detach(), index.repeat(2), stats)

    def teacher_temperature(self, epoch: float) -> float:
        c = self.config
        warm = min(1.0, epoch / c.warmup_epochs) if c.warmup_epochs > 0 else 1.0
        return c.start_temperature + (c.teacher_temperature - c.start_temperature) * warm

    def before_step(self, progress: Progress) -> None:
        if progress.epoch < self.config.frozen_epochs:
            for p in self.prototypes.parameters():
                p.grad = None

    def after_step(self, progress: Progress) -> None:
        follow(self.twin, self._parts(), cosine(self.config.momentum, 1.0, progress.share))
        if self.config.centring:
            self.centre.copy_(update_centre(self.centre, self.fresh, self.config.centre_momentum))  # equation 4
