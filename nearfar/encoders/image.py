"""Image encoders: small ones of our own, torchvision's and timm's by name, behind one module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nearfar.encoders.backbones import from_timm, from_torchvision
from nearfar.errors import UserError, nearest

_SMALL = 65  # images under this many pixels keep their resolution in the stem


def _conv(n_in: int, n_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(n_out)
    )


class SmallCNN(nn.Module):
    """A plain convolutional network for small machines: four 3×3 convolutions or more, with pooling between.

    The map is halved until it is about 4 pixels wide, width doubling from layer to layer; from 16 pixels on the
    last layer is wider still, since it costs little there and probes gain from it. (B, C, H, W) -> maps
    """

    def __init__(self, channels: int, size: tuple[int, int], width: int = 32) -> None:
        super().__init__()
        halvings = max(1, min(5, round(math.log2(max(size) / 4))))
        count = max(4, halvings + 1)
        pooled = {round((j + 1) * count / (halvings + 1)) for j in range(halvings)}  # layers with a pool before
        last = (16 if max(size) >= 16 else 8) * width
        layers, n = [], channels
        for i in range(count):
            m = last if i == count - 1 else width * min(2**i, 8)
            pool = [nn.MaxPool2d(2, ceil_mode=True)] if i in pooled else []  # ceil: one pixel high stays one
            layers.append(nn.Sequential(*pool, _conv(n, m), nn.ReLU(inplace=True)))
            n = m
        self.layers = nn.ModuleList(layers)
        self.features = n

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        out = {}
        for i, layer in enumerate(self.layers):
            x = out[f"layer{i + 1}"] = layer(x)
        return out


class _Block(nn.Module):
    """The basic residual block (He et al. 2016)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(n_in, n_out, 3, stride), _conv(n_out, n_out)
        self.short = _conv(n_in, n_out, 1, stride) if stride > 1 or n_in != n_out else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(x))) + self.short(x))


class ResNet(nn.Module):
    """ResNet with basic blocks; a 3×3 stem without pooling where images are under 65 pixels.

    ``blocks = (2, 2, 2, 2)`` with width 64 is ResNet-18; ``(1, 1, 1, 1)`` ResNet-10.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)
    ) -> None:
        super().__init__()
        act = nn.ReLU(inplace=True)
        if max(size) < _SMALL:
            self.stem = nn.Sequential(_conv(channels, width), act)
        else:
            self.stem = nn.Sequential(_conv(channels, width, 7, 2), act, nn.MaxPool2d(3, 2, 1))
        stages, n = [], width
        for i, count in enumerate(blocks):
            m = width * 2**i
            stages.append(nn.Sequential(*[_Block(n if j == 0 else m, m, 2 if i and j == 0 else 1)
                                          for j in range(count)]))  # fmt: skip
            n = m
        self.stages = nn.ModuleList(stages)
        self.features = n

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        x, out = self.stem(x), {}
        for i, stage in enumerate(self.stages):
            x = out[f"stage{i + 1}"] = stage(x)
        return out


def _initialise(module: nn.Module) -> None:
    """He's fan-out initialisation for convolutions, as torchvision's ResNets have it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


OURS = {
    "cnn": lambda c, size, w: SmallCNN(c, size, w or 32),
    "resnet10": lambda c, size, w: ResNet(c, size, w or 64, (1, 1, 1, 1)),
    "resnet18": lambda c, size, w: ResNet(c, size, w or 64),
}


class ImageEncoder(nn.Module):
    """Images in [0, 1] to features: normalise by the training set's statistics, run the backbone, pool.

    ``features`` is the width of the output; ``forward(x)`` (B, C, H, W) -> (B, features);
    ``maps(x)`` gives the feature maps by name, for dense heads (where the backbone has them).
    """

    def __init__(self, backbone: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.features: int = backbone.features
        self.register_buffer("mean", mean.float().view(1, -1, 1, 1))
        self.register_buffer("std", std.float().clamp(min=1e-3).view(1, -1, 1, 1))
        self.to(memory_format=torch.channels_last)

    def _prepare(self, x: Tensor) -> Tensor:
        x = torch.sub(x, self.mean).div_(self.std)
        if torch.is_autocast_enabled(x.device.type):  # one pass less than converting in every layer
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return x.contiguous(memory_format=torch.channels_last)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        make = getattr(self.backbone, "maps", None) or self.backbone.intermediates
        return make(self._prepare(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self._prepare(x)
        if hasattr(self.backbone, "pooled"):
            return self.backbone.pooled(x)
        last = list(self.backbone.maps(x).values())[-1]
        return last.mean((2, 3), dtype=torch.promote_types(last.dtype, torch.float32))  # (B, features)


def image_encoder(
    name: str, shape: tuple[int, int, int], mean: Tensor, std: Tensor, *, width: int = 0
) -> ImageEncoder:
    """Build an image encoder by name, with fresh weights.

    Args:
        name: ``cnn``, ``resnet10``, ``resnet18`` (ours), ``torchvision:NAME`` or ``timm:NAME``.
        shape: (H, W, C) of the images.
        mean, std: (C,) statistics of the training images in [0, 1].
        width: channels of our own encoders' first layer; 0 is their default.
    """
    height, wide, channels = shape
    library, _, rest = name.partition(":")
    if name in OURS:
        backbone = OURS[name](channels, (height, wide), width)
        _initialise(backbone)
    elif width:
        raise UserError(f"width {width} is for our own encoders ({', '.join(OURS)}), not for {name!r}")
    elif library == "torchvision" and rest:
        backbone = from_torchvision(rest, shape, small=max(height, wide) < _SMALL)
    elif library == "timm" and rest:
        backbone = from_timm(rest, shape, small=max(height, wide) < _SMALL)
    else:
        raise UserError(
            f"unknown encoder {name!r}{nearest(name, OURS)} (or torchvision:NAME, timm:NAME)"
        )
    return ImageEncoder(backbone, mean, std)
