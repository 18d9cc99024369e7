"""DenseCL: MoCo on whole pictures, and on the cells of the feature map: each must find the same place in the other view.

Wang, Zhang, Shen, Kong, Li 2021, *Dense Contrastive Learning for Self-Supervised Visual Pre-Training*
(arXiv:2011.09157), and WXinlong/DenseCL, openselfsup/models/densecl.py. Beside MoCo v2's projector of the pooled map
stands a dense one of 1×1 convolutions. A cell's InfoNCE has one positive, a cell of the twin's map of the other view,
and as negatives the pooled dense keys of other pictures, from a queue of their own; the loss is
(1 - λ)·(pooled) + λ·(mean over cells).

The authors take as a cell's positive the one whose backbone feature is most like its own (``match = "features"``).
Here the views' maps are known, so it can be the one that shows the same place (``match = "place"``); cells that the
other view does not show have none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.errors import UserError, nearest
from nearfar.losses import CrossBatchMemory, info_nce, prototype_cross_entropy
from nearfar.methods.parts import Progress, Step, follow, positive, shares, shuffled, twin
from nearfar.views.geometry import places
from nearfar.views.image import View

SUPERVISED = False
POLICY = ("moco-v2", "simclr-small")
PRESETS = {
    "small": {"settings": {"queue": 4096, "momentum": 0.99, "temperature": 0.1, "symmetric": True, "norm": "batch",
                           "match": "place"}},
    # configs/selfsup/densecl/densecl_imagenet_200ep.py
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 256, "epochs": 200.0, "policy": "moco-v2",
              "optim": {"name": "sgd", "lr": 0.03, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": False,
                        "warmup": 0.0}},
}  # fmt: skip
_MATCHES = ("features", "place")


@dataclass(frozen=True)
class Config:
    dense: float = 0.5
    """λ, the share of the cells' loss"""
    match: str = "features"
    """a cell's positive in the other view: the most alike (features, the paper) or of the same spot (place)"""
    temperature: float = 0.2
    """τ of both losses"""
    queue: int = 65536
    """keys that are kept, in each of both queues"""
    momentum: float = 0.999
    """m of the twin: how much of it stays at each step"""
    symmetric: bool = False
    """let both views be query and key in turn; the paper takes the first as the query"""
    depth: int = 2
    """layers of both projectors"""
    hidden: int = 0
    """width of the projectors' hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the space in which the loss is taken"""
    norm: str = "none"
    """normalisation in the projectors: batch, layer or none (the paper)"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "queue", "depth", "dim")
        shares(self, "dense", "momentum")
        if self.match not in _MATCHES:
            raise UserError(f"unknown match {self.match!r}{nearest(self.match, _MATCHES)}")


def same_place(a: View, b: View, cells: tuple[int, int]) -> Tensor:
    """For each cell of view a the cell of view b whose middle lies nearest to its own in the picture. -> (B, S)

    -1 where that is a cell's side away or more (of the larger cell of the two).
    """
    at = [places(v.to_image, v.pixels.shape[-2:], cells).flatten(1, 2) for v in (a, b)]  # 2 of (B, S, 2)
    side = [(torch.linalg.det(v.to_image) * v.pixels[0, 0].numel() / math.prod(cells)).abs().sqrt() for v in (a, b)]
    far, which = torch.cdist(*at).min(2)  # (B, S)
    return torch.where(far < torch.maximum(*side)[:, None], which, -1).to(a.pixels.device)


class Method(nn.Module):
    batch_norm = "own"  # as in MoCo, keys are dealt anew among the processes instead
    views = 2
    wants_maps = True

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        if not hasattr(getattr(encoder, "backbone", encoder), "maps"):
            raise UserError("densecl needs the encoder's feature maps: give --encoder cnn, resnet10 or resnet18")
        self.encoder, self.config = encoder, config
        d, rest = encoder.features, {"depth": config.depth, "norm": config.norm}
        self.projector = mlp(d, config.hidden or d, config.dim, **rest)
        self.dense = mlp(d, config.hidden or d, config.dim, **rest)  # on cells as rows: convolutions of 1×1
        self.twin = twin(nn.ModuleList([encoder, self.projector, self.dense]))
        self.queue, self.dense_queue = (CrossBatchMemory(config.queue, config.dim) for _ in range(2))
        self.fresh: tuple[Tensor, Tensor, Tensor] | None = None

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[View], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        a, b = views
        c, pairs = self.config, [(a, b), (b, a)][: 1 + self.config.symmetric]  # query and key
        h, q, q_cells, grid = self._encoded(self.online, torch.cat([x.pixels for x, _ in pairs]))
        with torch.no_grad():
            packed = shuffled(self._packed, torch.cat([y.pixels for _, y in pairs]), progress.generator)
            k, k_cells = packed.split([c.dim, packed.shape[1] - c.dim], 1)  # (n, dim), (n, S·width)
            k, k_cells = F.normalize(k, dim=1), k_cells.view(len(k), math.prod(grid), -1)  # (n, dim), (n, S, width)
        losses, matched = [], []
        for v, (x, y) in enumerate(pairs):
            rows = slice(v * len(index), (v + 1) * len(index))
            which = same_place(x, y, grid) if c.match == "place" else most_alike(q_cells)
            which = self.x
        ...
