"""What is drawn for a view, as numbers: one row a view, one column a parameter. NumPy, on the CPU, always.

Everything random about a view is in its row, so a batch may be split, moved to a device or handed to any number of
workers, and its views stay the same.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nearfar.views.policy import ImagePolicy, Plan

FIELDS = (
    "centre_y", "centre_x",  # of the crop, in [0, 1] of the image
    "height", "width",  # of the crop, as shares of the image's
    "flip_y", "flip_x",  # 0 or 1
    "angle",  # radians
    "shear",  # tangent
    "y0", "x0", "y1", "x1", "y2", "x2", "y3", "x3",  # perspective: how far the corners move in, of half a side
    "brightness", "contrast", "saturation",  # factors; 1 leaves as it is
    "hue",  # radians
    "grey",  # 0 or 1
    "order",  # of brightness, contrast, saturation and hue: which of 24 (used by the exact form alone)
    "sigma",  # of the blur, in pixels of the view; 0 is none
    "solarise",  # threshold in the unit range; above 1 is none
    "bits",  # 8 is all
    "equalise",  # 0 or 1
    "top", "left", "bottom", "right",  # of the erased rectangle, in [0, 1]; all zero is none
    "noise",  # standard deviation
    "seed",  # of the noise: a whole number below 2**24
    "bicubic", "exact",  # 0 or 1
)  # fmt: skip
_COLUMN = {name: i for i, name in enumerate(FIELDS)}
UNIFORMS = 40  # drawn for each view, whatever the policy: an edit of one value moves nothing else
_ALL_24 = 24


class Drawn:
    """What was drawn for N views: ``table`` (N, fields) float32; a column is an attribute, ``drawn.angle`` (N,).

    No dataclass and no tuple, so that who converts the tensors of a model's inputs passes it on as it is.
    """

    __slots__ = ("table",)

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getattr__(self, name: str) -> Tensor:
        if name not in _COLUMN:
            raise AttributeError(name)
        return self.table[:, _COLUMN[name]]

    def __getitem__(self, rows: Tensor | slice) -> Drawn:
        return Drawn(self.table[rows])

    def to(self, device: torch.device | str) -> Drawn:
        return Drawn(self.table.to(device, non_blocking=True))

    def changed(self, **values: object) -> Drawn:
        """The same with whole columns replaced: numbers, or (N,)."""
        table = self.table.clone()
        for name, value in values.items():
            table[:, _COLUMN[name]] = torch.as_tensor(value, dtype=torch.float32)
        return Drawn(table)

    @property
    def corners(self) -> Tensor:
        """Perspective: how far each corner moves in. (N, 4, 2): top left, top right, bottom right, bottom left; y, x"""
        at = _COLUMN["y0"]
        return self.table[:, at : at + 8].view(-1, 4, 2)

    @property
    def erased(self) -> Tensor:
        """(N, 4): top, left, bottom, right."""
        at = _COLUMN["top"]
        return self.table[:, at : at + 4]

    @property
    def turned(self) -> Tensor:
        """Where the map does not keep rows and columns. (N,) bool"""
        return (self.angle != 0) | (self.shear != 0) | (self.corners != 0).flatten(1).any(1)

    @property
    def coloured(self) -> Tensor:
        """Where brightness, contrast, saturation, hue or grey change anything. (N,) bool"""
        return ((self.brightness != 1) | (self.contrast != 1) | (self.saturation != 1) | (self.hue != 0)
                | (self.grey != 0))  # fmt: skip

    def describe(self, i: int) -> str:
        """What was done to view ``i``, in words."""
        v = {name: float(value) for name, value in zip(FIELDS, self.table[i])}
        area = v["height"] * v["width"]
        said = [f"crop {area:.0%}"] if area < 0.995 else []
        said += ["flip"] if v["flip_x"] else []
        said += ["upside down"] if v["flip_y"] else []
        said += [f"turn {math.degrees(v['angle']):+.0f}°"] if abs(v["angle"]) > 0.01 else []
        said += [f"shear {math.degrees(math.atan(v['shear'])):+.0f}°"] if abs(v["shear"]) > 0.01 else []
        said += ["perspective"] if bool((self.corners[i] != 0).any()) else []
        said += [f"{name} ×{v[name]:.2f}" for name in ("brightness", "contrast", "saturation")
                 if abs(v[name] - 1) > 0.01]  # fmt: skip
        said += [f"hue {math.degrees(v['hue']):+.0f}°"] if abs(v["hue"]) > 0.01 else []
        said += ["grey"] if v["grey"] else []
        said += [f"blur σ {v['sigma']:.1f}"] if v["sigma"] > 0 else []
        said += [f"solarise from {v['solarise']:.2f}"] if v["solarise"] <= 1 else []
        said += [f"{v['bits']:.0f} bits"] if v["bits"] < 8 else []
        said += ["equalise"] if v["equalise"] else []
        said += ["erased"] if bool(self.erased[i].any()) else []
        said += [f"noise {v['noise']:.2f}"] if v["noise"] > 0.005 else []
        return ", ".join(said) or "as it is"


def still(n: int) -> Drawn:
    """What does nothing to ``n`` views."""
    table = torch.zeros(n, len(FIELDS))
    rest = {"centre_y": 0.5, "centre_x": 0.5, "height": 1, "width": 1, "brightness": 1, "contrast": 1,
            "saturation": 1, "solarise": 2, "bits": 8}  # fmt: skip
    return Drawn(table).changed(**rest)


@lru_cache(maxsize=64)
def _ratios(p: ImagePolicy) -> tuple[np.ndarray, np.ndarray]:
    """The distribution of log(width / height) among crops that fit: its grid, and the cumulative share there.

    Area uniform in [crop_min, crop_max] and log-ratio uniform, drawn again until the crop fits the image: a crop of
    area a and log-ratio l fits where a <= exp(-|l|), so l's density is the length of the areas that fit.
    """
    grid = np.linspace(-math.log(p.crop_ratio), math.log(p.crop_ratio), 2049)  # 0 is one of them
    largest = np.exp(-np.abs(grid))
    one_area = p.crop_max - p.crop_min < 1e-9
    fits = 1.0 * (largest >= p.crop_min - 1e-9) if one_area else np.minimum(p.crop_max, largest) - p.crop_min
    fits = np.maximum(fits, 0.0)
    mass = np.concatenate([[0.0], np.cumsum((fits[1:] + fits[:-1]) / 2)])
    return grid, mass / mass[-1]


def _crop(p: ImagePolicy, u: np.ndarray) -> tuple[np.ndarray, ...]:
    """Centre and size of a crop in shares of the image. u (N, 4) -> 4 × (N,)

    The distribution of torchvision's RandomResizedCrop on square images (it gives up after ten tries; this never has
    to try again). Of other images the ratio is taken against the image's own, so that what fits is not bent.
    """
    log = np.interp(u[:, 1], *_ratios(p)[::-1]) if p.crop_ratio > 1 else np.zeros(len(u))
    area = p.crop_min + np.maximum(np.minimum(p.crop_max, np.exp(-np.abs(log))) - p.crop_min, 0) * u[:, 0]
    height, width = np.minimum(np.sqrt(area * np.exp(-log)), 1.0), np.minimum(np.sqrt(area * np.exp(log)), 1.0)
    return height / 2 + u[:, 2] * (1 - height), width / 2 + u[:, 3] * (1 - width), height, width


def _geometry(p: ImagePolicy, u: np.ndarray) -> dict[str, np.ndarray]:
    """Crop, shift, scale, flips, turn, shear, perspective. u (N, 20)"""
    cy, cx, height, width = _crop(p, u[:, :4])
    both = lambda k, amplitude: (2 * u[:, k] - 1) * amplitude  # noqa: E731
    zoom = 1 + both(4, p.zoom)
    moved = u[:, 11:19] * p.perspective * (u[:, 10:11] < p.perspective_p)
    return {
        "centre_y": cy - both(5, p.translate) * height, "centre_x": cx - both(6, p.translate) * width,
        "height": height / zoom, "width": width / zoom,
        "flip_x": u[:, 7] < p.flip, "flip_y": u[:, 8] < p.flip_vertical,
        "angle": np.deg2rad(both(9, p.rotate)), "shear": np.tan(np.deg2rad(both(19, p.shear))),
    } | {name: moved[:, i] for i, name in enumerate(FIELDS[_COLUMN["y0"] : _COLUMN["y0"] + 8])}  # fmt: skip


def _appearance(p: ImagePolicy, u: np.ndarray) -> dict[str, np.ndarray]:
    """Colour and what follows it. u (N, 20)"""
    on = u[:, 0] < p.colour
    uniform = lambda k, low, high: low + (high - low) * u[:, k]  # noqa: E731
    factor = lambda k, s: np.where(on, uniform(k, max(0.0, 1 - s), 1 + s), 1.0)  # noqa: E731
    area, ratio = uniform(13, p.erase_min, p.erase_max), np.exp(uniform(14, -1.2, 1.2))
    h, w = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    top, left, erase = u[:, 15] * (1 - h), u[:, 16] * (1 - w), u[:, 12] < p.erase
    return {
        "brightness": factor(1, p.brightness), "contrast": factor(2, p.contrast),
        "saturation": factor(3, p.saturation), "hue": np.where(on, uniform(4, -p.hue, p.hue) * 2 * math.pi, 0.0),
        "grey": u[:, 5] < p.grey, "order": np.floor(u[:, 6] * _ALL_24),
        "sigma": uniform(8, p.blur_min, p.blur_max) * (u[:, 7] < p.blur),
        "solarise": np.where(u[:, 9] < p.solarise, p.solarise_from, 2.0),
        "bits": np.where(u[:, 10] < p.posterise, p.posterise_bits, 8), "equalise": u[:, 11] < p.equalise,
        "top": top * erase, "left": left * erase, "bottom": (top + h) * erase, "right": (left + w) * erase,
        "noise": uniform(17, 0.0, p.noise), "seed": np.floor(u[:, 18] * 2**24),
        "bicubic": np.full(len(u), p.bicubic), "exact": np.full(len(u), p.exact),
    }  # fmt: skip


def draw(plan: Plan, n: int, generator: torch.Generator) -> Drawn:
    """Draw the parameters of ``len(plan)`` views of each of ``n`` images.

    Row ``i · len(plan) + v`` is view v of image i. The generator is drawn from image by image, so drawing for n and
    then for m images gives what drawing for n + m gives.
    """
    views = len(plan)
    u = torch.rand(n, views, UNIFORMS, generator=generator).numpy().astype(np.float64)  # (n, views, 40)
    table = np.empty((n, views, len(FIELDS)), np.float32)
    for policy in dict.fromkeys(plan):  # views of one policy at once
        which = [v for v in range(views) if plan[v] == policy]
        rows = u[:, which].reshape(-1, UNIFORMS)  # (n · k, 40)
        held = _geometry(policy, rows[:, :20]) | _appearance(policy, rows[:, 20:])
        table[:, which] = np.stack([held[name] for name in FIELDS], 1).reshape(n, len(which), -1)
    return Drawn(torch.from_numpy(table.reshape(n * views, -1)))
