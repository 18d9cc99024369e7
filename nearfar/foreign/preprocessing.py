"""From images as a source gives them to what a model takes, a batch at once: channels, size, range."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.errors import UserError
from nearfar.foreign.spec import Choices


def with_channels(x: Tensor, wanted: int, name: str) -> Tensor:
    """Grey images three times over where three channels are wanted, any where 0 are. -> (B, wanted, H, W)"""
    have = x.shape[1]
    if have == (wanted or have):
        return x
    if have != 1:
        raise UserError(f"{name} takes images of {wanted} channel{'s' * (wanted > 1)}, these have {have}")
    return x.expand(-1, wanted, -1, -1)


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop about the centre, normalise: ``preprocessing(x)``, (B, C, H, W) -> (B, channels, h, w) float32.

    Images are uint8, or float32 in [0, 1]. Bytes stay bytes while they are resized, as in Pillow, from whose pixels
    they then differ by one level at most. Where the crop is larger than the image, the border is the mean's colour.

    Args:
        channels: how many it takes; 0: any.
        resize: (h, w), or None for images as they are.
        fit: "cover" it, at the images' own proportions; be "inside" it; or "squash" to it.
        crop: (h, w), or None.
        interpolation: "bilinear", "bicubic" (both antialiased) or "nearest".
        mean, std: of each channel, of pixels in [0, 1].
    """

    channels: int
    resize: tuple[int, int] | None = None
    fit: str = "cover"
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, x: Tensor, name: str = "the model") -> Tensor:
        x = self._resized(x)
        x = x.float() / 255 if x.dtype == torch.uint8 else x.clamp(0, 1)  # bicubic overshoots
        x = with_channels(x, self.channels, name)
        mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.std))
        return _centred((x - mean) / std, self.crop)

    def _resized(self, x: Tensor) -> Tensor:
        size = self._size(*x.shape[2:])
        if size == tuple(x.shape[2:]):
            return x
        smooth = {} if self.interpolation == "nearest" else {"antialias": True}
        return F.interpolate(x, size, mode=self.interpolation, **smooth)

    def _size(self, h: int, w: int) -> tuple[int, int]:
        if self.resize is None:
            return h, w
        if self.fit == "squash":
            return self.resize
        grow = [self.resize[0] / h, self.resize[1] / w]
        if self.fit == "inside":
            return max(1, round(h * min(grow))), max(1, round(w * min(grow)))
        return (self.resize[0], max(self.resize[1], int(w * self.resize[0] / h))) if grow[0] >= grow[1] else (
            max(self.resize[0], int(h * self.resize[1] / w)), self.resize[1])  # fmt: skip

    def changed(self, choices: Choices, name: str) -> Preprocessing:
        """With what was asked for in its place."""
        new = self
        for field in ("mean", "std"):
            values = tuple(getattr(choices, field))
            if values and len(values) not in (1, self.channels or 3):
                raise UserError(f"--{field} {values}: {name} takes {self.channels or 3} channels: give 1 value or "
                                "as many")  # fmt: skip
            new = dataclasses.replace(new, **{field: values}) if values else new
        if not all(s > 0 for s in new.std):
            raise UserError(f"--std {new.std}: give values above 0")
        side = choices.input_size
        if side < 0:
            raise UserError(f"--input-size {side}: give 1 or more")
        if not side:
            return new
        old, resize = self.crop or self.resize or (side, side), self.resize or (side, side)
        resize = tuple(max(side, round(r * side / o)) for r, o in zip(resize, old))
        return dataclasses.replace(new, resize=resize, crop=(side, side))

    def describe(self) -> str:
        """What is done, in words.

        >>> Preprocessing(3, (256, 256), crop=(224, 224)).describe()
        'resized to cover 256×256 (bilinear, antialiased), centre 224×224, [0, 1]'
        """
        parts = []
        if self.resize:
            how = {"cover": "resized to cover", "inside": "resized to fit inside", "squash": "squashed to"}[self.fit]
            smooth = "" if self.interpolation == "nearest" else ", antialiased"
            parts.append(f"{how} {_by(self.resize)} ({self.interpolation}{smooth})")
        if self.crop:
            parts.append(f"centre {_by(self.crop)}")
        plain = set(self.mean) == {0} and set(self.std) == {1}
        said = [", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std)]
        return ", ".join([*parts, "[0, 1]" if plain else f"mean {said[0]}, standard deviation {said[1]}"])


def _by(size: Sequence[int]) -> str:
    return "×".join(map(str, size))


def _centred(x: Tensor, crop: tuple[int, int] | None) -> Tensor:
    """The middle of each image, with a border of zeros where it is too small. (B, C, H, W) -> (B, C, *crop)"""
    if crop is None:
        return x
    lack = [max(0, want - have) for want, have in zip(crop, x.shape[2:])]
    if any(lack):
        (top, left) = (n // 2 for n in lack)
        x = F.pad(x, (left, lack[1] - left, top, lack[0] - top))
    top, left = (round((have - want) / 2) for want, have in zip(crop, x.shape[2:]))
    return x[..., top : top + crop[0], left : left + crop[1]]
