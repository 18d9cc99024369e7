"""An encoder's feature maps for dense heads: what levels there are, a feature pyramid, a finer last map."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nearfar.errors import require

_BLANK = 128  # pixels a side of the picture by which levels are found


class Level(NamedTuple):
    """One of an encoder's maps: its name, its channels, and how many pixels a cell is apart from the next."""

    name: str
    channels: int
    stride: int


def levels(encoder: nn.Module, channels: int) -> list[Level]:
    """The deepest map at each stride, finest first. Raises where the backbone gives no maps."""
    was = encoder.training
    device = next(encoder.parameters()).device
    with torch.no_grad():
        maps = encoder.eval().maps(torch.zeros(1, channels, _BLANK, _BLANK, device=device))
    encoder.train(was)
    found = {}
    for name, m in maps.items():
        if m.ndim == 4 and m.shape[2] <= _BLANK:
            stride = round(_BLANK / m.shape[2])
            found[stride] = Level(name, m.shape[1], stride)
    return [found[s] for s in sorted(found)]


class Pyramid(nn.Module):
    """An encoder under torchvision's feature pyramid (Lin et al. 2017, arXiv:1612.03144), as its detectors want it.

    (B, C, H, W) in [0, 1] -> ``OrderedDict`` of (B, width, H/s, W/s), finest first, float32: one a stride s of the
    encoder from ``finest`` on, then one at twice the stride, pooled.
    """

    def __init__(self, encoder: nn.Module, channels: int, *, width: int = 256, finest: int = 8) -> None:
        super().__init__()
        ops = require("torchvision.ops", "vision", "a feature pyramid")
        held = levels(encoder, channels)
        self.taken = [v for v in held if v.stride >= finest] or held[-1:]
        self.encoder, self.out_channels = encoder, width
        self.fpn = ops.FeaturePyramidNetwork([v.channels for v in self.taken], width,
                                             extra_blocks=ops.feature_pyramid_network.LastLevelMaxPool())  # fmt: skip

    @property
    def names(self) -> list[str]:
        return [v.name for v in self.taken]

    @property
    def strides(self) -> list[int]:
        """Of every map that is given, the pooled one too."""
        held = [v.stride for v in self.taken]
        return [*held, 2 * held[-1]]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.encoder.maps(x)
        out = self.fpn(OrderedDict((v.name, maps[v.name]) for v in self.taken))
        return OrderedDict((name, m.float()) for name, m in out.items())


def dilate(encoder: nn.Module, channels: int, stride: int = 8) -> nn.Module:
    """Let the last map of a ResNet keep cells ``stride`` pixels apart: later strides become dilations.

    Chen et al. 2017 (arXiv:1706.05587, §3.1), as torchvision's ``replace_stride_with_dilation``; weights stay. An
    encoder that has no strided convolutions beyond that stride is left as it is.
    """
    held = levels(encoder, channels)
    parts = dict(encoder.named_modules())
    for before, level in pairwise(held):
        if level.stride <= stride:
            continue
        stage = _stage(parts, level.name)
        factor = level.stride // max(before.stride, stride)  # by how much this stage alone went too far
        old = max(before.stride // stride, 1)
        for conv in stage.modules() if stage is not None else ():
            if not isinstance(conv, nn.Conv2d):
                continue
            strided = conv.stride[0] > 1
            grown = old if strided else old * factor
            conv.stride = (1, 1)
            if conv.kernel_size[0] > 1:
                conv.dilation = (grown, grown)
                conv.padding = (grown * (conv.kernel_size[0] // 2),) * 2
    return encoder


def _stage(parts: dict[str, nn.Module], name: str) -> nn.Module | None:
    """The module that makes a ResNet's map: ``stageN`` is ours ``stages.(N-1)``, torchvision's ``layerN``."""
    if not name.startswith("stage"):
        return None
    n = int(name.removeprefix("stage"))
    for path in (f"backbone.stages.{n - 1}", f"backbone.net.layer{n}"):
        if path in parts:
            return parts[path]
    return None
