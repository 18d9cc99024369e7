"""SupCon: views of pictures with the same label attract, all others in the batch repel.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan 2020, *Supervised Contrastive Learning*
(arXiv:2004.11362). SimCLR's two views, encoder and projector, with the label in place of the picture's index as the
group: the loss is L_out of equation 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar.encoders.project import mlp
from nearfar.errors import UserError
from nearfar.losses import nt_xent
from nearfar.methods.parts import Progress, Step, positive

SUPERVISED = True
PRESETS = {
    "small": {},
    # HobbitLong/SupContrast, README and main_supcon.py, for CIFAR-10: SGD, cosine, ten epochs of warm-up, down to a
    # thousandth. The paper's own on ImageNet (LARS, batch 6144) is not published as code
    "paper": {"encoder": "torchvision:resnet50", "image_size": 32, "batch": 1024, "epochs": 1000.0,
              "policy": "simclr-small",
              "optim": {"name": "sgd", "lr": 0.5, "weight_decay": 1e-4, "nesterov": False, "warmup": 0.01,
                        "lr_end": 0.001},
              "settings": {"hidden": 2048, "dim": 128, "norm": "none", "temperature": 0.1}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.1
    """τ (the paper: 0.1)"""
    depth: int = 2
    """linear layers of the projector"""
    hidden: int = 0
    """width of the projector's hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the space in which the loss is taken"""
    norm: str = "batch"
    """normalisation in the projector: batch, layer or none"""

    def __post_init__(self) -> None:
        positive(self, "temperature")
        if self.dim < 1 or self.hidden < 0 or self.depth < 1:
            raise UserError(f"projector of depth {self.depth}, hidden {self.hidden}, dim {self.dim}: too small")


class Method(nn.Module):
    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, self.views = encoder, config, 2
        d = encoder.features
        self.projector = mlp(d, config.hidden or d, config.dim, depth=config.depth, norm=config.norm)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor, progress: Progress) -> Step:
        h = self.encoder(torch.cat(views))  # (2B, features)
        z = self.project(h)  # (2B, dim)
        groups = labels.repeat(len(views))  # the label: all views of a class belong together
        loss = nt_xent(z, groups, temperature=self.config.temperature)
        return Step(loss, h.detach(), z.detach(), groups)

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
