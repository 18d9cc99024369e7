"""An augmentation policy is data: named, printed, put in the recipe, edited there. No torch in this file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nearfar.errors import UserError


@dataclass(frozen=True)
class ImagePolicy:
    """What is drawn for one view of one image. Probabilities in [0, 1]; amplitudes as in torchvision.

    Colour operations on other than three channels: brightness, contrast, solarise, posterise and equalise apply;
    saturation, hue and grey are left out (asked for by name, they are refused: see :func:`check_channels`).
    """

    count: int = 1
    """views of this kind (small crops: as many as are given; others: one for each kind, in turn)"""
    size: float = 1.0
    """side of the view: up to 1 a share of the image's, above it pixels; below 1, a small crop of multi-crop"""
    crop_min: float = 0.2
    """smallest area of the crop, as a share of the image"""
    crop_max: float = 1.0
    """largest area of the crop"""
    crop_ratio: float = 4 / 3
    """the crop's width / height, against the image's own, is log-uniform in [1/ratio, ratio]"""
    bicubic: bool = False
    """resample with a cubic kernel in place of the triangle (both antialiased)"""
    flip: float = 0.5
    """probability of a horizontal flip"""
    flip_vertical: float = 0.0
    """probability of a vertical flip"""
    rotate: float = 0.0
    """angle uniform in [-rotate, rotate] degrees"""
    shear: float = 0.0
    """horizontal shear uniform in [-shear, shear] degrees"""
    translate: float = 0.0
    """shift along each axis uniform in [-translate, translate] of the view; edges are repeated"""
    zoom: float = 0.0
    """scale uniform in [1 - zoom, 1 + zoom]"""
    perspective: float = 0.0
    """distortion: each corner moves inwards by up to this share of half a side"""
    perspective_p: float = 0.5
    """probability of it"""
    colour: float = 0.8
    """probability that brightness, contrast, saturation and hue change at all"""
    brightness: float = 0.4
    """factor uniform in [max(0, 1 - b), 1 + b]"""
    contrast: float = 0.4
    """factor uniform in [max(0, 1 - c), 1 + c], about the crop's mean grey"""
    saturation: float = 0.4
    """factor uniform in [max(0, 1 - s), 1 + s], about each pixel's grey"""
    hue: float = 0.1
    """turn of the hue uniform in [-h, h] of the full circle"""
    grey: float = 0.2
    """probability of grey"""
    blur: float = 0.0
    """probability of a Gaussian blur"""
    blur_min: float = 0.1
    """smallest sigma of the blur, in pixels of the view"""
    blur_max: float = 2.0
    """largest sigma of the blur"""
    solarise: float = 0.0
    """probability that values from the threshold on are inverted"""
    solarise_from: float = 0.5
    """that threshold, of the unit range"""
    posterise: float = 0.0
    """probability that values are cut to fewer bits"""
    posterise_bits: int = 4
    """bits that are left"""
    equalise: float = 0.0
    """probability that each channel's histogram is made flat"""
    erase: float = 0.0
    """probability that one rectangle is filled with the view's mean (cutout)"""
    erase_min: float = 0.02
    """smallest area of that rectangle, as a share of the view"""
    erase_max: float = 0.33
    """largest area of it"""
    noise: float = 0.0
    """standard deviation of Gaussian noise, drawn uniform in [0, noise] a view, of the unit range"""
    exact: bool = False
    """colour operations one after another in a drawn order, clamped between, hue in HSV, blur last: as torchvision"""

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"views.{name} = {getattr(self, name)} is no probability: give 0 to 1")
        for name in ("brightness", "contrast", "saturation", "shear", "rotate", "noise", "blur_max", "translate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"views.{name} = {getattr(self, name)} must be a number from 0 up")
        for name, low, high, what in _RANGES:
            if not low <= getattr(self, name) <= high:
                raise UserError(f"views.{name} = {getattr(self, name)} must lie in {what}")
        if not 0 < self.crop_min <= self.crop_max <= 1:
            raise UserError(
                f"views.crop_min = {self.crop_min}, views.crop_max = {self.crop_max}: "
                "give 0 < crop_min <= crop_max <= 1"
            )
        if not 1 <= self.crop_ratio < float("inf"):
            raise UserError(f"views.crop_ratio = {self.crop_ratio} must be at least 1")
        if not 0 < self.blur_min <= self.blur_max and self.blur > 0:
            raise UserError(f"views.blur_min = {self.blur_min} must lie in (0, blur_max = {self.blur_max}]")
        if not 0 < self.erase_min <= self.erase_max < 1:
            raise UserError(f"views.erase_min = {self.erase_min}, views.erase_max = {self.erase_max}: "
                            "give 0 < erase_min <= erase_max < 1")  # fmt: skip

    def side(self, n: int) -> int:
        """Pixels of a view's side where the image's has ``n``."""
        return max(1, round(self.size * n)) if self.size <= 1 else round(self.size)

    @property
    def small(self) -> bool:
        """Whether this is multi-crop's small kind of view."""
        return self.size < 1


_PROBABILITIES = ("flip", "flip_vertical", "perspective_p", "colour", "grey", "blur", "solarise", "posterise",
                  "equalise", "erase")  # fmt: skip
_RANGES = (
    ("count", 1, 64, "1 to 64"),
    ("size", 0.01, 4096, "0.01 to 4096"),
    ("zoom", 0, 0.99, "0 to 0.99"),
    ("perspective", 0, 0.99, "0 to 0.99"),
    ("hue", 0, 0.5, "0 to 0.5 of the circle"),
    ("solarise_from", 0, 1, "0 to 1"),
    ("posterise_bits", 1, 8, "1 to 8 bits"),
)

Views = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Values of a policy by name: for every kind of view, or a list of one for each."""

Plan = tuple[ImagePolicy, ...]
"""The kinds of views that a policy's name stands for: one, two that differ, or large and small ones."""


def as_plan(policy: ImagePolicy | Iterable[ImagePolicy]) -> Plan:
    return (policy,) if isinstance(policy, ImagePolicy) else tuple(policy)


def lay_out(plan: Plan, large: int, small: bool = False) -> Plan:
    """One policy for each view: ``large`` ones, the large kinds in turn, then the small kinds where they are wanted.

    >>> plan = (ImagePolicy(blur=1.0), ImagePolicy(blur=0.1), ImagePolicy(size=0.5, count=3))
    >>> [p.blur for p in lay_out(plan, 2)]
    [1.0, 0.1]
    >>> [p.side(224) for p in lay_out(plan, 2, small=True)]
    [224, 224, 112, 112, 112]
    """
    big = [p for p in plan if not p.small] or [replace(plan[0], size=1.0)]
    out = [big[i % len(big)] for i in range(large)]
    return (*out, *(p for p in plan if p.small and small for _ in range(p.count)))


def as_views(plan: Plan) -> Views:
    """The plan's values as a recipe holds them: one table for one kind of view, else one a kind."""
    tables = tuple(asdict(p) for p in plan)
    return tables[0] if len(tables) == 1 else tables


def for_channels(plan: Plan, channels: int) -> Plan:
    """The plan without what other than three channels do not have, so that it says what is done."""
    return plan if channels == 3 else tuple(replace(p, saturation=0.0, hue=0.0, grey=0.0) for p in plan)


def check_channels(changes: Views, channels: int) -> None:
    """Refuse colour that was asked for by name where the images have no three channels to turn."""
    for table in (changes,) if isinstance(changes, Mapping) else changes:
        name = next((k for k in ("saturation", "hue", "grey") if channels != 3 and table.get(k, 0) > 0), None)
        if name:
            raise UserError(f"views.{name} = {table[name]} needs 3 channels, the images have {channels}: leave it out")
