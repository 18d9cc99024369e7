"""MoCo v3: each view foretells its picture's other view, encoded by a slowly moving twin, among those of the batch.

Chen, Xie, He 2021, *An Empirical Study of Training Self-Supervised Vision Transformers* (arXiv:2104.02057). No queue
any more: q = p(g(f(x_a))) with a predictor p, k = g'(f'(x_b)) from the twin; 2τ · InfoNCE of q with the k of the whole
batch, both ways, summed. f', g' follow f, g with a momentum that rises to 1 along half a cosine. Vision transformers
train steadily where their patches' embedding is left as it was drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.losses import info_nce
from nearfar.methods.parts import Progress, Step, cosine, follow, positive, shares, twin

SUPERVISED = False
POLICY = ("moco-v3", "simclr-small")
_PAPER = {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 4096, "policy": "moco-v3"}
PRESETS = {
    # τ of the paper's transformers; heads as wide as small features want them
    "small": {"settings": {"hidden": 1024, "temperature": 0.2}},
    # facebookresearch/moco-v3, CONFIG.md and main_moco.py: 0.6 · 4096/256, ten epochs of warm-up
    "paper": _PAPER | {"epochs": 100.0,
                       "optim": {"name": "lars", "lr": 9.6, "weight_decay": 1e-6, "warmup": 0.1}},
    # CONFIG.md: 1000 epochs, 0.3 · 4096/256
    "long": _PAPER | {"epochs": 1000.0, "settings": {"momentum": 0.996},
                      "optim": {"name": "lars", "lr": 4.8, "weight_decay": 1.5e-6, "warmup": 0.01}},
    # CONFIG.md: ViT-Small, 1.5e-4 · 4096/256, crops from 0.08 on, a projector of three layers; AdamW's β are PyTorch's
    "vit": _PAPER | {"encoder": "timm:vit_small_patch16_224", "epochs": 300.0, "views": {"crop_min": 0.08},
                     "settings": {"temperature": 0.2, "depth": 3, "frozen_patches": True},
                     "optim": {"lr": 0.0024, "weight_decay": 0.1, "beta2": 0.999, "warmup": 0.13333}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 1.0
    """τ of InfoNCE (ResNets: 1, vision transformers: 0.2)"""
    momentum: float = 0.99
    """m of the twin at the start: how much of it stays at each step; 1 at the end"""
    depth: int = 2
    """linear layers of the projector (ResNets: 2, vision transformers: 3); the predictor has 2"""
    hidden: int = 4096
    """width of the projector's and predictor's hidden layers"""
    dim: int = 256
    """dimensions of the space in which the loss is taken"""
    norm: str = "batch"
    """normalisation in both, their outputs too: batch, layer or none"""
    frozen_patches: bool = False
    """leave a vision transformer's patch embedding as it was drawn"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "depth", "hidden", "dim")
        shares(self, "momentum")


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, c = encoder, config, config
        self.projector = mlp(encoder.features, c.hidden, c.dim, depth=c.depth, norm=c.norm, last_norm=True)
        self.predictor = mlp(c.dim, c.hidden, c.dim, depth=2, norm=c.norm, last_norm=True)
        self.twin = twin(nn.Sequential(encoder, self.projector))  # f', g'
        if c.frozen_patches:
            for name, p in encoder.named_parameters():
                p.requires_grad_("patch_embed" not in name)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        # one view after the other, as the authors' code: the two are drawn differently, each has its own statistics
        h = [self.encoder(x) for x in views]  # 2 of (B, features)
        z = [self.project(h_v) for h_v in h]  # 2 of (B, dim)
        q = [self.predictor(z_v) for z_v in z]  # 2 of (B, dim)
        with torch.no_grad():
            k = [self.twin(x) for x in views]  # 2 of (B, dim)
        scale = 2 * self.config.temperature
        losses = [info_nce(q_v, index, k_v, index, temperature=self.config.temperature)
                  for q_v, k_v in zip(q, reversed(k))]  # fmt: skip
        chance = 2 * scale * math.log(dist.world() * len(index))
        both, out = torch.cat(h).detach(), torch.cat(z).detach()
        return Step(scale * (losses[0] + losses[1]), both, out, index.repeat(2), {"chance": chance})

    def after_step(self, progress: Progress) -> None:
        momentum = cosine(self.config.momentum, 1.0, progress.share)
        follow(self.twin, nn.Sequential(self.encoder, self.projector), momentum)
