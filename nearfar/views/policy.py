"""An augmentation policy is data: named, printed, put in the recipe, edited there. No torch in this file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from nearfar.errors import UserError, nearest


@dataclass(frozen=True)
class ImagePolicy:
    """What is drawn for one view of one image. Probabilities in [0, 1]; amplitudes as in torchvision.

    Colour operations on other than three channels: brightness and contrast apply, saturation, hue and grey
    are left out.
    """

    crop_min: float = 0.2
    """smallest area of the crop, as a share of the image"""
    crop_max: float = 1.0
    """largest area of the crop"""
    crop_ratio: float = 4 / 3
    """the crop's aspect is log-uniform in [1/ratio, ratio]"""
    flip: float = 0.5
    """probability of a horizontal flip"""
    flip_vertical: float = 0.0
    """probability of a vertical flip"""
    rotate: float = 0.0
    """angle uniform in [-rotate, rotate] degrees"""
    shear: float = 0.0
    """horizontal shear uniform in [-shear, shear] degrees"""
    colour: float = 0.8
    """probability that brightness, contrast, saturation and hue change at all"""
    brightness: float = 0.4
    """factor uniform in [1 - b, 1 + b]"""
    contrast: float = 0.4
    """factor uniform in [1 - c, 1 + c], about the crop's mean grey"""
    saturation: float = 0.4
    """factor uniform in [1 - s, 1 + s], about each pixel's grey"""
    hue: float = 0.1
    """turn of the hue uniform in [-h, h] of the full circle"""
    grey: float = 0.2
    """probability of grey"""
    blur: float = 0.0
    """probability of a Gaussian blur"""
    blur_min: float = 0.1
    """smallest sigma of the blur, in output pixels"""
    blur_max: float = 2.0
    """largest sigma of the blur"""
    erase: float = 0.0
    """probability that one rectangle is filled with the image's mean"""
    erase_max: float = 0.33
    """largest area of that rectangle"""
    noise: float = 0.0
    """standard deviation of Gaussian noise, drawn uniform in [0, noise] a view, of the unit range"""

    def __post_init__(self) -> None:
        for name in ("flip", "flip_vertical", "colour", "grey", "blur", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"views.{name} = {getattr(self, name)} is no probability: give 0 to 1")
        if not 0 < self.crop_min <= self.crop_max <= 1:
            raise UserError(
                f"views.crop_min = {self.crop_min}, views.crop_max = {self.crop_max}: "
                "give 0 < crop_min <= crop_max <= 1"
            )
        if self.crop_ratio < 1:
            raise UserError(f"views.crop_ratio = {self.crop_ratio} must be at least 1")
        for name in ("brightness", "contrast", "saturation", "shear", "rotate", "noise", "blur_max"):
            if getattr(self, name) < 0:
                raise UserError(f"views.{name} = {getattr(self, name)} must not be negative")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"views.hue = {self.hue} must lie in 0 to 0.5 of the circle")
        if not 0 < self.blur_min <= self.blur_max and self.blur > 0:
            raise UserError(f"views.blur_min = {self.blur_min} must lie in (0, blur_max = {self.blur_max}]")
        if not 0 < self.erase_max < 1:
            raise UserError(f"views.erase_max = {self.erase_max} must lie in (0, 1)")


_STILL: dict[str, Any] = dict(
    crop_min=1.0, crop_ratio=1.0, flip=0.0, colour=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0,
    grey=0.0,
)  # fmt: skip

POLICIES: dict[str, ImagePolicy] = {
    # SimCLR (Chen 2020, appendix A): strength s = 1, blur with kernel a tenth of the image at 224 pixels.
    "simclr": ImagePolicy(
        crop_min=0.08, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5
    ),
    # SimCLR on CIFAR (appendix B.9): strength s = 0.5, no blur.
    "simclr-small": ImagePolicy(crop_min=0.2),
    # Things photographed from the front in grey (clothes, products): flips, crops, brightness and contrast.
    "objects-grey": ImagePolicy(
        crop_min=0.5, brightness=0.5, contrast=0.5, saturation=0.0, hue=0.0, grey=0.0
    ),
    # Writing: never mirrored; slant, small turns, crops that keep most of the sign, strokes lighter and darker.
    "digits": ImagePolicy(
        crop_min=0.5, crop_ratio=1.3, flip=0.0, rotate=15.0, shear=15.0, brightness=0.4, contrast=0.4,
        saturation=0.0, hue=0.0, grey=0.0,
    ),
    # Seen from above or through a microscope: no up or down, any angle.
    "aerial": ImagePolicy(crop_min=0.3, flip_vertical=0.5, rotate=180.0, grey=0.0, saturation=0.2, hue=0.05),
    "none": ImagePolicy(**_STILL),
}  # fmt: skip


# What else suits a policy's images: settings of a method (where it has them) that were not given.
SUITS: dict[str, dict[str, float]] = {
    # few kinds, much alike: half of a batch's "negatives" are of an anchor's own kind, and a sharp softmax
    # would push them apart hardest (docs/results.md has the figures)
    "digits": {"temperature": 0.5},
    # the same, more mildly: 0.5 is better at few labels, 0.2 at kNN and linear, 0.3 between them in each
    "objects-grey": {"temperature": 0.3},
}


def choose(shape: tuple[int, int, int], hint: str | None) -> str:
    """The policy that ``auto`` stands for, from the image's (H, W, C) and what the source says of itself."""
    if hint:
        return hint
    height, width, channels = shape
    if channels != 3:
        return "objects-grey" if max(height, width) >= 16 else "digits"
    return "simclr-small" if max(height, width) < 65 else "simclr"


def named(name: str, **changes: float) -> ImagePolicy:
    """A policy by name, with single values changed.

    >>> named("simclr-small", crop_min=0.3).crop_min
    0.3
    """
    if name not in POLICIES:
        raise UserError(f"unknown policy {name!r}{nearest(name, POLICIES)}")
    known = [field.name for field in fields(ImagePolicy)]
    for key in changes:
        if key not in known:
            raise UserError(f"unknown key views.{key}{nearest(key, known)}")
    return replace(POLICIES[name], **changes)
