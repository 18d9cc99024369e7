"""Proxy-Anchor: a learnt proxy for each class draws its images and pushes all others, the hardest the most.

Kim, Kim, Cho, Kwak 2020, *Proxy Anchor Loss for Deep Metric Learning* (arXiv:2003.13911), equation 4, on cosines of
embeddings and proxies, whose learning rate is a hundred times the network's. Batches are drawn at random: the
classes meet through their proxies, and one that the batch lacks is pushed off all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nearfar.encoders.project import mlp
from nearfar.losses import ProxyAnchor
from nearfar.methods.parts import Progress, Rate, Step, positive, several_classes

SUPERVISED = True
PRESETS = {
    # softer, and proxies not quite as fast, at thirty times the paper's rate (trials on CIFAR-10's training images)
    "small": {"settings": {"alpha": 8.0, "proxy_rate": 10.0, "dim": 128}},
    # tjddus9597/Proxy-Anchor-CVPR2020, code/train.py and the README's CUB-200 on ResNet-50: AdamW, batch 120, 60
    # epochs, the rate halved every 5 (a cosine here), from ImageNet's weights with BatchNorm frozen and 5 epochs of
    # the head alone; crops and flips
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 120, "epochs": 60.0, "policy": "simclr",
              "views": {"bicubic": False, "colour": 0.0, "grey": 0.0, "blur": 0.0},
              "optim": {"lr": 1e-4, "weight_decay": 1e-4, "beta2": 0.999, "warmup": 0.0}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    alpha: float = 32.0
    """α, how much the hardest weigh"""
    margin: float = 0.1
    """δ, in cosine"""
    proxy_rate: float = 100.0
    """factor of the proxies' learning rate"""
    depth: int = 1
    """linear layers of the embedding head (0: none)"""
    hidden: int = 0
    """width of the head's hidden layers; 0: as wide as the features"""
    dim: int = 512
    """dimensions of the embedding"""
    norm: str = "batch"
    """normalisation in the head: batch, layer or none"""
    last_norm: bool = False
    """normalise the embedding too, which then has no common part"""

    def __post_init__(self) -> None:
        positive(self, "alpha", "proxy_rate", "dim")


class Method(nn.Module):
    views = 1

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        several_classes("proxy-anchor", classes)
        self.encoder, self.config = encoder, config
        d = encoder.features
        out = config.dim if config.depth else d
        self.projector = mlp(d, config.hidden or d, out, depth=config.depth, norm=config.norm,
                             last_norm=config.last_norm)  # fmt: skip
        self.proxies = ProxyAnchor(classes, out, alpha=config.alpha, margin=config.margin)
        self.rates = {"proxies.": Rate(scale=config.proxy_rate)}

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor, progress: Progress) -> Step:
        h = self.encoder(views[0])  # (B, features)
        z = self.project(h)  # (B, dim)
        return Step(self.proxies(z, labels), h.detach(), z.detach(), labels)

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
