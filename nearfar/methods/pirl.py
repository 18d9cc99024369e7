"""PIRL: a picture and its patches in any order are to be found by the same row of a memory bank.

Misra, van der Maaten 2020, *Self-Supervised Learning of Pretext-Invariant Representations* (arXiv:1912.01991). f(v_I)
is a linear map of a picture's features; g(v_It) that of its patches' features, mapped one by one and put together in
random order. Both are held against m_I, the bank's moving average of f, among other pictures' rows, and weighed by λ
(equation 5). For either term the paper has noise-contrastive estimation (equation 4); here it is InfoNCE, the first
part of that equation, as facebookresearch/vissl has it by choice (``loss_type: cross_entropy``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import info_nce
from nearfar.methods.inst_disc import Memory
from nearfar.methods.parts import Progress, Step, head, positive, shares, unmeasured

SUPERVISED = False
CONTENT = "image"
POLICY = ("moco-v1", "simclr-small")
_VIEWS = [{}, {"crop_min": 0.6}]  # appendix A.1: patches come from a crop that keeps most of the picture
PRESETS = {
    # as inst_disc.py's, for the same reasons
    "small": {"views": _VIEWS, "optim": {"lr": 0.0005},
              "settings": {"negatives": 0, "random_start": False, "last_norm": True, "depth": 2, "temperature": 0.1}},
    # section 3 and appendix A, and vissl's pirl_jigsaw_4node_resnet50.yaml; colour there is drawn for each patch
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 1024, "epochs": 800.0, "policy": "moco-v1",
              "views": [{"crop_min": 0.08}, _VIEWS[1]],
              "optim": {"name": "sgd", "lr": 0.12, "lr_end": 0.001, "weight_decay": 1e-4, "momentum": 0.9,
                        "nesterov": False, "warmup": 0.0}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.07
    """τ of both terms"""
    weight: float = 0.5
    """λ of equation 5: the patches' share of the loss"""
    grid: int = 3
    """patches a side"""
    keep: float = 0.75
    """share of a patch's cell, along each side, that is cut out of it at random (64 of 85 pixels)"""
    zoom: float = 1.0
    """factor by which patches are enlarged before they are encoded"""
    negatives: int = 32000
    """rows of the bank that are drawn for a batch; 0: all of them"""
    momentum: float = 0.5
    """how much of a row of the bank stays when its picture is seen"""
    random_start: bool = True
    """rows begin as random directions; else as their pictures' first embeddings, and count from then on"""
    depth: int = 1
    """linear layers of the projector of pictures, and of that of single patches"""
    hidden: int = 0
    """width of their hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the bank's rows"""
    norm: str = "batch"
    """normalisation in their hidden layers: batch, layer or none"""
    last_norm: bool = False
    """the same normalisation of their output: rows written at different times then have a centre in common"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "grid", "keep", "zoom", "depth", "dim")
        shares(self, "weight", "keep", "momentum")
        if self.negatives < 0 or self.hidden < 0:
            raise UserError(f"negatives {self.negatives} and hidden {self.hidden} must not be negative")


def cut(x: Tensor, grid: int, keep: float, draws: Tensor) -> Tensor:
    """One patch out of each cell of a grid, in random order. (B, C, H, W) -> (B·grid², C, h, w)

    ``draws`` (B, grid², 3) in [0, 1): their order is the patches', and where in its cell each patch lies.
    """
    line, order, at = torch.arange(grid * grid, device=x.device), draws[..., 0].argsort(1), []
    for i, (side, cell) in enumerate(zip(x.shape[2:], (line // grid, line % grid))):
        whole = max(1, side // grid)
        size = max(1, round(keep * whole))
        start = cell * side // grid + (draws[..., 1 + i] * (whole - size + 1)).long()  # (B, grid²)
        at.append(start.gather(1, order)[..., None] + torch.arange(size, device=x.device))  # (B, grid², size)
    picture = torch.arange(len(x), device=x.device)[:, None, None, None]
    patches = x.movedim(1, -1)[picture, at[0][..., :, None], at[1][..., None, :]]  # (B, grid², h, w, C)
    return patches.flatten(0, 1).movedim(-1, 1)


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, c = encoder, config, config
        self.projector = head(encoder.features, c)  # f
        self.patch_projector = head(encoder.features, c)
        self.together = nn.Linear(c.grid**2 * c.dim, c.dim)  # g, with the above
        self.memory = Memory(images, c.dim, c.negatives, c.momentum, c.random_start)

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def patches(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A batch's patches; what is drawn is drawn for all processes' pictures. (B, C, H, W) -> (B·grid², C, h, w)"""
        c, rows = self.config, [n for (n,) in dist.exchange([len(x)], x.device)]
        first = sum(rows[: dist.rank()])
        draws = torch.rand(sum(rows), c.grid**2, 3, generator=generator)[first : first + len(x)]
        out = cut(x, c.grid, c.keep, draws.to(x.device))
        size = [max(1, round(c.zoom * side)) for side in out.shape[2:]]
        return out if c.zoom == 1 else F.interpolate(out, size, mode="bilinear", align_corners=False)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c = self.config
        h = self.encoder(views[0])  # (B, features)
        f = self.project(h)  # (B, dim)
        with unmeasured(self.encoder):  # running statistics are those of whole pictures
            parts = self.encoder(self.patches(views[1], progress.generator))  # (B·grid², features)
        g = self.together(self.patch_projector(parts).view(len(index), -1))  # (B, dim)
        keys, numbers = self.memory(f.detach(), index, progress.generator)
        of_patches, of_picture = (info_nce(z, index, keys, numbers, temperature=c.temperature) for z in (g, f))
        loss = c.weight * of_patches + (1 - c.weight) * of_picture  # equation 5
        stats = {"chance": math.log(len(keys)), "patches": of_patches.detach(), "picture": of_picture.detach()}
        return Step(loss, h.detach(), torch.cat([f, g]).detach(), index.repeat(2), stats)

    def after_step(self, progress: Progress) -> None:
        self.memory.write()
