"""CPC: from the patches of a picture seen so far, going down row by row, tell the patches of the rows to come.

van den Oord, Li, Vinyals 2018, *Representation Learning with Contrastive Predictive Coding* (arXiv:1807.03748),
section 3.2: a picture is cut into a grid of patches that overlap by half, each encoded by itself, z = f(x). A masked
convolutional network sums up a patch's own row and those above it, c; W_k c foretells the patch k rows below (equation
3), among all patches of the batch (equation 4). Hénaff et al. 2020 (arXiv:1905.09272), CPC v2: patches drawn with
colours of their own, several directions, and both sides brought to 64 dimensions (pseudo-code of the appendix).

The encoder is used on whole pictures afterwards. BatchNorm's running statistics are therefore taken from these: the
papers do without BatchNorm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.project import mlp
from nearfar.errors import UserError
from nearfar.losses import info_nce
from nearfar.methods.parts import Progress, Step, positive, shares, unmeasured

SUPERVISED = False
CONTENT = "image"
POLICY = ("simclr", "simclr-small")
_PLAIN = {"colour": 0.0, "grey": 0.0}  # a picture's own cast of colour would give its patches away
PRESETS = {
    # larger patches in a coarser grid: barely better than untrained features on CIFAR-10 within 150 steps, at most
    "small": {"views": _PLAIN | {"crop_min": 0.3},
              "settings": {"grid": 3, "directions": 4, "layers": 2, "hidden": 128, "jitter": 0.4, "patch_grey": 0.2,
                           "similarity": "cosine", "temperature": 0.1}},
    # section 3.2: 32 GPUs with 16 pictures each, Adam, grey pictures of 256 pixels cut from 300. How long, it does not
    # say; its ResNet-v2 has no BatchNorm, ours has; that each patch keeps 60 of 64 pixels is left out
    "paper": {"encoder": "torchvision:resnet101", "image_size": 256, "batch": 512, "epochs": 200.0, "policy": "simclr",
              "views": _PLAIN | {"grey": 1.0, "crop_min": 0.72, "crop_max": 0.73, "crop_ratio": 1.0, "blur": 0.0},
              "optim": {"name": "adamw", "lr": 2e-4, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0}},
}  # fmt: skip
_SIDE = 4  # pixels of a patch, at the least: smaller pictures have a coarser grid


@dataclass(frozen=True)
class Config:
    grid: int = 7
    """patches a side, each overlapping the next by half; fewer where they would be smaller than 4 pixels"""
    nearest: int = 2
    """rows down to the first that is foretold: the next one shares pixels"""
    directions: int = 1
    """ways to go through the picture: 1 down, 2 right, 3 up, 4 left (v2: all)"""
    temperature: float = 1.0
    """τ of InfoNCE"""
    similarity: str = "dot"
    """dot (equation 3) or cosine"""
    jitter: float = 0.0
    """each patch's own brightness and colour: channels by up to this share more or less"""
    patch_grey: float = 0.0
    """probability that a patch is grey"""
    layers: int = 5
    """residual blocks of the context network"""
    hidden: int = 256
    """their width"""
    depth: int = 1
    """linear layers of the projector of the patches that are to be found (v2: 1)"""
    norm: str = "batch"
    """normalisation in the projector, where it has several layers: batch, layer or none"""
    dim: int = 64
    """dimensions of the space in which the loss is taken"""

    def __post_init__(self) -> None:
        positive(self, "nearest", "temperature", "layers", "hidden", "depth", "dim")
        shares(self, "patch_grey", "jitter")
        if not 1 <= self.directions <= 4 or self.grid <= self.nearest:
            raise UserError(f"directions {self.directions} must be 1 to 4, and grid {self.grid} above nearest "
                            f"{self.nearest}")  # fmt: skip
        if self.similarity not in ("dot", "cosine"):
            raise UserError(f"similarity {self.similarity!r}: give 'dot' or 'cosine'")


class Context(nn.Module):
    """c of each cell from its row and those above: residual blocks of masked convolutions. (B, d, y, x) -> the same"""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1)),
                nn.ZeroPad2d((0, 0, 1, 0)), nn.Conv2d(hidden, hidden, (2, 1)), nn.ReLU(), nn.Conv2d(hidden, width, 1),
            )
            for _ in range(layers)
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = z + block(z)
        return z.relu()


def patches(x: Tensor, grid: int) -> Tensor:
    """The middle of each picture as overlapping patches, cell by cell. (B, C, H, W) -> (G·G·B, C, h, w)"""
    (h, top), (w, left) = ((n // (grid + 1), n % (grid + 1) // 2) for n in x.shape[2:])  # half a patch; what is over
    x = x[:, :, top : top + (grid + 1) * h, left : left + (grid + 1) * w]
    x = x.unfold(2, 2 * h, h).unfold(3, 2 * w, w)  # (B, C, G, G, h, w)
    return x.permute(2, 3, 0, 1, 4, 5).flatten(0, 2)  # (G·G·B, C, h, w)


class Method(nn.Module):
    views = 1

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        d, ways = encoder.features, config.directions
        self.projector = mlp(d, d, config.dim, depth=config.depth, norm=config.norm)
        self.contexts = nn.ModuleList(Context(d, config.hidden, config.layers) for _ in range(ways))
        self.predictors = nn.ModuleList(nn.Linear(d, (config.grid - config.nearest) * config.dim) for _ in range(ways))

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        (x,), c, b = views, self.config, len(index)
        g = min(c.grid, min(x.shape[2:]) * 2 // _SIDE - 1)
        if g <= c.nearest:
            raise UserError(f"cpc needs a grid of at least {c.nearest + 1} patches of {_SIDE} pixels: images of "
                            f"{x.shape[2]}×{x.shape[3]} have {max(g, 0)}")  # fmt: skip
        with torch.no_grad():
            self.encoder(x)  # measures BatchNorm on whole pictures
        with unmeasured(self.encoder):
            h = self.encoder(self._recoloured(patches(x, g), b, progress.generator))  # (G·G·B, d)
        z = self.project(h)  # (G·G·B, dim)
        ids = torch.arange(g * g, device=index.device)[:, None] + g * g * index  # (G·G, B): cell and picture
        foretold, wanted = self._foretold(h.unflatten(0, (g, g, b)), ids.unflatten(0, (g, g)))  # (n, dim), (n,)
        loss = info_nce(foretold, wanted, z, ids.flatten(), temperature=c.temperature, similarity=c.similarity)
        chance = math.log(dist.world() * len(z))
        return Step(loss, h.detach(), z.detach(), index.repeat(g * g), {"chance": chance})

    def _foretold(self, cells: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """W_k c for all patches there are, in every direction. (G, G, B, d), ids (G, G, B) -> (n, dim), ids (n,)"""
        out, wanted, c, g = [], [], self.config, len(ids)
        for way, (context, predictor) in enumerate(zip(self.contexts, self.predictors)):
            seen, names = torch.rot90(cells, way, (0, 1)), torch.rot90(ids, way, (0, 1))
            said = predictor(context(seen.permute(2, 3, 0, 1)).permute(2, 3, 0, 1))  # (G, G, B, K·dim)
            said = said.unflatten(3, (-1, c.dim))  # (G, G, B, K, dim)
            for k in range(c.nearest, g):
                out.append(said[: g - k, :, :, k - c.nearest].flatten(0, 2))  # ((G - k)·G·B, dim)
                wanted.append(names[k:].flatten())
        return torch.cat(out), torch.cat(wanted)

    def _recoloured(self, x: Tensor, pictures: int, generator: torch.Generator) -> Tensor:
        """Each patch with channels of its own strength, or grey. x (S·B, C, h, w) of B pictures -> the same"""
        c, cells, channels = self.config, len(x) // pictures, x.shape[1]
        rows = [n for (n,) in dist.exchange([pictures], x.device)]
        drawn = torch.rand(sum(rows), cells, channels + 1, generator=generator)[sum(rows[: dist.rank()]) :][:pictures]
        drawn = drawn.transpose(0, 1).flatten(0, 1).to(x)[:, :, None, None]  # (S·B, C + 1, 1, 1)
        x = torch.where(drawn[:, -1:] < c.patch_grey, x.mean(1, keepdim=True), x)
        return (x * (1 + c.jitter * (2 * drawn[:, :-1] - 1))).clamp(0, 1)

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but by gradient."""
