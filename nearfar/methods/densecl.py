"""DenseCL: MoCo on whole pictures and on the feature map's cells: each must find its place again in the other view.

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
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.errors import UserError, nearest
from nearfar.losses import CrossBatchMemory, info_nce, prototype_cross_entropy
from nearfar.losses.rows import widened
from nearfar.methods.parts import Progress, Step, follow, positive, shares, shuffled, twin
from nearfar.views.geometry import places
from nearfar.views.image import View

SUPERVISED = False
CONTENT = "image"
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


def most_alike(a: Tensor, b: Tensor) -> Tensor:
    """For each cell of a the cell of b whose feature is most like its own. (B, S, d), (B, S, d) -> (B, S)"""
    return (F.normalize(a.float(), dim=2) @ F.normalize(b.float(), dim=2).mT).argmax(2)


def encoded(parts: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder, projector and dense projector in one pass -> (B, d), (B, dim), cells (B, S, dim), map (B, d, y, x)"""
    encoder, projector, dense = parts
    maps = list(encoder.maps(x).values())[-1]  # (B, d, y, x)
    h = maps.mean((2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))  # (B, d)
    rows = maps.flatten(2).mT  # (B, S, d)
    return h, projector(h), dense(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]), maps


class Method(nn.Module):
    batch_norm = "own"  # as in MoCo, keys are dealt anew among the processes instead
    views = 2
    wants_maps = True

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        if not hasattr(getattr(encoder, "backbone", encoder), "maps"):
            raise UserError("densecl needs the encoder's feature maps: give --encoder cnn, resnet18 or "
                            "torchvision:resnet50")  # fmt: skip
        self.encoder, self.config = encoder, config
        d, rest = encoder.features, {"depth": config.depth, "norm": config.norm}
        self.projector = mlp(d, config.hidden or d, config.dim, **rest)
        self.dense = mlp(d, config.hidden or d, config.dim, **rest)  # 1×1 convolutions: cells are its rows
        self.twin = twin(nn.ModuleList([encoder, self.projector, self.dense]))
        self.queue, self.dense_queue = (CrossBatchMemory(config.queue, config.dim) for _ in range(2))
        self.fresh: list[tuple[Tensor, Tensor, Tensor]] = []  # keys of this step, to be enqueued after it

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[View], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c, n = self.config, len(index)
        pairs = [tuple(views), tuple(views[::-1])][: 1 + c.symmetric]  # query, key
        h, q, cells, maps = encoded([self.encoder, self.projector, self.dense], torch.cat([a.pixels for a, _ in pairs]))
        with torch.no_grad():
            packed = shuffled(self._packed, torch.cat([b.pixels for _, b in pairs]), progress.generator)
            k, rest = packed[:, : c.dim], packed[:, c.dim :].unflatten(1, (cells.shape[1], -1))
            k, k_cells, k_maps = widened(k, unit=True), rest[:, :, : c.dim], rest[:, :, c.dim :]
        losses, matched, self.fresh = [], [], []
        for v, (a, b) in enumerate(pairs):
            part = slice(v * n, (v + 1) * n)
            if c.match == "place":
                which = same_place(a, b, maps.shape[2:])  # (B, S)
            else:
                which = most_alike(maps[part].flatten(2).mT.detach(), k_maps[part])  # (B, S)
            whole = info_nce(q[part], index, *self.queue(k[part], index), temperature=c.temperature)
            pooled = widened(k_cells[part].mean(1), unit=True)  # (B, dim)
            local = self._cells(cells[part], k_cells[part], which, pooled, index)
            losses.append((1 - c.dense) * whole + c.dense * local)
            matched.append((which >= 0).float().mean())
            self.fresh.append((k[part], pooled, index))
        groups = index.repeat(1 + c.symmetric)
        if not c.symmetric:  # the twin's rows stand for the other view, to be watched
            q, groups = torch.cat([q, k.to(q.dtype)]), index.repeat(2)
        chance = math.log(dist.world() * n + len(self.queue))  # of both losses
        stats = {"chance": chance, "matched": torch.stack(matched).mean()}
        return Step(torch.stack(losses).mean(), h.detach(), q.detach(), groups, stats)

    def _packed(self, x: Tensor) -> Tensor:
        """The twin's keys, of the whole and of the cells, as one row a picture. -> (B, dim + S·(dim + d))"""
        _, k, cells, maps = encoded(self.twin, x)
        if self.config.match == "features":
            cells = torch.cat([cells, maps.flatten(2).mT], 2)  # (B, S, dim + d)
        return torch.cat([k, cells.flatten(1)], 1)

    def _cells(self, q: Tensor, k: Tensor, which: Tensor, pooled: Tensor, index: Tensor) -> Tensor:
        """InfoNCE of cells. q, k (B, S, dim), which (B, S): positives or -1, pooled (B, dim): the new keys -> ()"""
        picture, cell = (which >= 0).nonzero(as_tuple=True)  # (n,)
        q = widened(q[picture, cell], unit=True)  # (n, dim)
        k = widened(k[picture, which[picture, cell]], unit=True)
        keys, ids = self.dense_queue(pooled, index)  # (M, dim), (M,)
        own = ids == index[picture][:, None]  # (n, M) of the same picture, now or in an epoch past: no negatives
        scores = torch.cat([(q * k).sum(1, keepdim=True), (q @ keys.T).masked_fill(own, -1e4)], 1)  # (n, 1 + M)
        return prototype_cross_entropy(scores, torch.zeros_like(picture), temperature=self.config.temperature)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        follow(self.twin, nn.ModuleList([self.encoder, self.projector, self.dense]), self.config.momentum)
        for k, pooled, index in self.fresh:
            self.queue.push(k, index)  # of all processes
            self.dense_queue.push(pooled, index)
        self.fresh.clear()
