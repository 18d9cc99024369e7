"""Image augmentation as matrices: a whole batch at once, on the batch's device.

Geometry (crop, flip, rotation, shear) is one map a sample, sampled once from the original pixels: as two small
matrix products with an antialiased triangle kernel where the map keeps rows and columns, as one bilinear
gather where it turns them. Colour (brightness, contrast, saturation, hue, grey) is one affine map of the
channels a sample, applied once and clamped once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.views.policy import ImagePolicy

# Rec. 601 luma, as Pillow and torchvision take it; and the YIQ basis in which a turn of hue is a rotation.
_LUMA = torch.tensor([0.299, 0.587, 0.114])
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_FROM_YIQ = torch.linalg.inv(_TO_YIQ.double()).float()
_MAX_OVERSAMPLING = 4


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one view of each of B images; every field is ``(B,)``."""

    centre_y: Tensor  # of the crop, in [0, 1] of the image
    centre_x: Tensor
    height: Tensor  # of the crop, as a share of the image's height
    width: Tensor
    flip_y: Tensor  # bool
    flip_x: Tensor
    angle: Tensor  # radians
    shear: Tensor  # tangent
    brightness: Tensor  # factors; 1 leaves as it is
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # radians
    grey: Tensor  # bool
    sigma: Tensor  # output pixels; 0 is no blur
    erase: Tensor  # (B, 4): y0, x0, y1, x1 in [0, 1]; all zero is none
    noise: Tensor  # standard deviation

    def describe(self, i: int) -> str:
        """What was done to image ``i``, in words."""
        area = float(self.height[i] * self.width[i])
        said = [f"crop {area:.0%}"] if area < 0.995 else []
        if self.flip_x[i]:
            said.append("flip")
        if self.flip_y[i]:
            said.append("upside down")
        if abs(float(self.angle[i])) > 0.01:
            said.append(f"turn {math.degrees(float(self.angle[i])):+.0f}°")
        if abs(float(self.shear[i])) > 0.01:
            said.append(f"shear {math.degrees(math.atan(float(self.shear[i]))):+.0f}°")
        for name in ("brightness", "contrast", "saturation"):
            factor = float(getattr(self, name)[i])
            if abs(factor - 1) > 0.01:
                said.append(f"{name} ×{factor:.2f}")
        if abs(float(self.hue[i])) > 0.01:
            said.append(f"hue {math.degrees(float(self.hue[i])):+.0f}°")
        if self.grey[i]:
            said.append("grey")
        if self.sigma[i] > 0:
            said.append(f"blur σ {float(self.sigma[i]):.1f}")
        if self.erase[i].any():
            said.append("erased")
        if self.noise[i] > 0.005:
            said.append(f"noise {float(self.noise[i]):.2f}")
        return ", ".join(said) or "as it is"


def draw(policy: ImagePolicy, n: int, generator: torch.Generator) -> Drawn:
    """Draw one view's parameters for ``n`` images.

    Crop: area uniform in [crop_min, crop_max], aspect log-uniform about the image's own, cut to the image,
    position uniform (torchvision's RandomResizedCrop on square images, which tries ten times where this cuts).
    """
    u = torch.rand(n, 24, generator=generator)  # one draw for all, so that a policy's edit moves nothing else
    p = policy
    uniform = lambda k, low, high: low + (high - low) * u[:, k]  # noqa: E731
    area = uniform(0, p.crop_min, p.crop_max)
    ratio = torch.exp(uniform(1, -math.log(p.crop_ratio), math.log(p.crop_ratio)))  # against the image's aspect
    height = (area / ratio).sqrt().clamp(max=1.0)
    width = (area * ratio).sqrt().clamp(max=1.0)
    on = u[:, 4] < p.colour
    factor = lambda k, s: torch.where(on, uniform(k, max(0.0, 1 - s), 1 + s), 1.0)  # noqa: E731
    erase_area, erase_ratio = uniform(16, 0.02, max(p.erase_max, 0.02)), torch.exp(uniform(17, -1.2, 1.2))
    eh, ew = (erase_area * erase_ratio).sqrt().clamp(max=1), (erase_area / erase_ratio).sqrt().clamp(max=1)
    y0, x0 = u[:, 18] * (1 - eh), u[:, 19] * (1 - ew)
    erase = torch.stack([y0, x0, y0 + eh, x0 + ew], 1) * (u[:, 15:16] < p.erase)
    sigma = uniform(14, p.blur_min, p.blur_max) * (u[:, 13] < p.blur)
    return Drawn(
        centre_y=height / 2 + u[:, 2] * (1 - height),
        centre_x=width / 2 + u[:, 3] * (1 - width),
        height=height,
        width=width,
        flip_y=u[:, 5] < p.flip_vertical,
        flip_x=u[:, 6] < p.flip,
        angle=torch.deg2rad(uniform(7, -p.rotate, p.rotate)),
        shear=torch.tan(torch.deg2rad(uniform(8, -p.shear, p.shear))),
        brightness=factor(9, p.brightness),
        contrast=factor(10, p.contrast),
        saturation=factor(11, p.saturation),
        hue=torch.where(on, uniform(12, -p.hue, p.hue) * 2 * math.pi, 0.0),
        grey=u[:, 20] < p.grey,
        sigma=sigma,
        erase=erase,
        noise=uniform(21, 0.0, p.noise),
    )


def _resampling(centre: Tensor, extent: Tensor, flip: Tensor, n_in: int, n_out: int) -> Tensor:
    """The matrix that resamples a crop of a line of ``n_in`` pixels to ``n_out``: rows sum to one. (B, out, in)

    A triangle kernel as wide as the larger of an input and an output pixel (antialiased bilinear).
    """
    scale = extent * n_in / n_out  # (B,) input pixels an output pixel
    steps = torch.arange(n_out, device=centre.device) + 0.5 - n_out / 2  # (out,)
    steps = torch.where(flip[:, None], -steps, steps)  # (B, out)
    at = centre[:, None] * n_in - 0.5 + steps * scale[:, None]  # (B, out) in input pixels
    reach = scale.clamp(min=1.0)[:, None, None]
    pixels = torch.arange(n_in, device=centre.device)
    weight = (1 - (pixels - at[:, :, None]).abs() / reach).clamp_(min=0)  # (B, out, in)
    return weight / weight.sum(-1, keepdim=True).clamp_(min=1e-6)


def _resample(x: Tensor, drawn: Drawn, size: tuple[int, int]) -> Tensor:
    """Crop and flip as two matrix products. (B, H, C, W) -> (B, C, h, w)"""
    b, height, channels, width = x.shape
    rows = _resampling(drawn.centre_y, drawn.height, drawn.flip_y, height, size[0])  # (B, h, H)
    columns = _resampling(drawn.centre_x, drawn.width, drawn.flip_x, width, size[1])  # (B, w, W)
    y = torch.bmm(rows, x.reshape(b, height, channels * width))  # (B, h, C·W)
    y = torch.bmm(y.reshape(b, size[0] * channels, width), columns.transpose(1, 2))  # (B, h·C, w)
    return y.reshape(b, size[0], channels, size[1]).transpose(1, 2).contiguous()  # (B, C, h, w)


def _gather(x: Tensor, drawn: Drawn, size: tuple[int, int]) -> Tensor:
    """Crop, flip, rotation and shear as one bilinear gather. (B, H, C, W) -> (B, C, h, w)

    Where the map shrinks the picture, it is gathered on a finer grid and averaged (antialiasing).
    """
    b, height, channels, width = x.shape
    sign_y = torch.where(drawn.flip_y, -1.0, 1.0)
    sign_x = torch.where(drawn.flip_x, -1.0, 1.0)
    cos, sin = drawn.angle.cos(), drawn.angle.sin()
    aspect = (drawn.width * width) / (drawn.height * height)  # turn in pixels, not in shares
    # input = centre + crop · R(angle) · shear · flip · output, everything in [-1, 1]
    xx, xy = cos * sign_x, (cos * drawn.shear - sin) * sign_y / aspect
    yx, yy = sin * sign_x * aspect, (sin * drawn.shear + cos) * sign_y
    theta = torch.stack(
        [
            torch.stack([xx * drawn.width, xy * drawn.width, 2 * drawn.centre_x - 1], 1),
            torch.stack([yx * drawn.height, yy * drawn.height, 2 * drawn.centre_y - 1], 1),
        ],
        1,
    )  # (B, 2, 3)
    shrink = max(float((drawn.height * height / size[0]).max()), float((drawn.width * width / size[1]).max()))
    fine = min(max(math.ceil(shrink - 0.01), 1), _MAX_OVERSAMPLING)
    grid = F.affine_grid(theta, [b, channels, size[0] * fine, size[1] * fine], align_corners=False)
    planes = x.transpose(1, 2)  # (B, C, H, W)
    y = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(y, fine) if fine > 1 else y


def colour_map(drawn: Drawn, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, saturation, hue and grey as ``x -> M x + t``. mean (B, C) -> (B, C, C), (B, C)

    Composed in that order; the means that contrast and grey need are linear in the crop's channel means, so
    the composition is exact but for the clamping between operations, which is done once, at the end.
    Hue turns the chroma plane of YIQ (torchvision turns the hue of HSV).
    """
    b, channels = mean.shape
    eye = torch.eye(channels, device=mean.device).expand(b, -1, -1)
    luma = _LUMA.to(mean.device) if channels == 3 else torch.full((channels,), 1 / channels, device=mean.device)
    m = eye * drawn.brightness[:, None, None]
    grey_mean = torch.einsum("c,bcd,bd->b", luma, m, mean)
    m = m * drawn.contrast[:, None, None]
    t = ((1 - drawn.contrast) * grey_mean)[:, None].expand(b, channels)
    if channels == 3:
        to_grey = luma.expand(3, 3)  # every output channel is the luma
        s = drawn.saturation[:, None, None]
        cos, sin = drawn.hue.cos(), drawn.hue.sin()
        turn = torch.zeros(b, 3, 3, device=mean.device)
        turn[:, 0, 0] = 1
        turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
        turn = _FROM_YIQ.to(mean.device) @ turn @ _TO_YIQ.to(mean.device)  # (B, 3, 3)
        a = turn @ (s * eye + (1 - s) * to_grey)
        a = torch.where(drawn.grey[:, None, None], to_grey @ a, a)
        m, t = a @ m, torch.einsum("bij,bj->bi", a, t)
    return m, t


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a sigma a sample, as two matrix products with reflected borders. (B, C, h, w)"""
    for axis in (2, 3):
        n = x.shape[axis]
        at = torch.arange(n, device=x.device)
        reach = min(n - 1, max(1, math.ceil(3 * float(sigma.max()))))
        offsets = torch.arange(-reach, reach + 1, device=x.device)
        kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (B, k)
        kernel = kernel / kernel.sum(1, keepdim=True)
        source = (at[:, None] + offsets).abs()  # (n, k), reflected at both ends
        source = torch.where(source > n - 1, 2 * (n - 1) - source, source)
        matrix = torch.zeros(len(x), n, n, device=x.device)
        matrix.scatter_add_(2, source.expand(len(x), -1, -1), kernel[:, None].expand(-1, n, -1))
        flat = x.transpose(axis, 3)  # the axis last
        y = torch.bmm(flat.reshape(len(x), -1, n), matrix.transpose(1, 2))
        x = y.reshape(flat.shape).transpose(axis, 3)
    return x.contiguous()


def apply(x: Tensor, drawn: Drawn, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    """One view of each image. x (B, H, C, W) in [0, 1] -> (B, C, h, w) in [0, 1]"""
    turned = bool((drawn.angle != 0).any() or (drawn.shear != 0).any())
    y = _gather(x, drawn, size) if turned else _resample(x, drawn, size)  # (B, C, h, w)
    b, channels = y.shape[:2]
    mean = y.mean((2, 3))  # (B, C)
    m, t = colour_map(drawn, mean)
    if channels == 1:
        y = y * m[:, :, :, None] + t[:, :, None, None]
    else:
        y = torch.baddbmm(t[:, :, None], m, y.reshape(b, channels, -1)).reshape(y.shape)
    if bool((drawn.sigma > 0).any()):
        index = (drawn.sigma > 0).nonzero()[:, 0]
        y[index] = blur(y[index], drawn.sigma[index])
    if bool(drawn.erase.any()):
        row = (torch.arange(size[0], device=y.device) + 0.5) / size[0]
        column = (torch.arange(size[1], device=y.device) + 0.5) / size[1]
        y0, x0, y1, x1 = drawn.erase.T[:, :, None]
        inside = ((row > y0) & (row < y1))[:, :, None] & ((column > x0) & (column < x1))[:, None, :]
        y = torch.where(inside[:, None], mean[:, :, None, None], y)
    if generator is not None and bool((drawn.noise > 0).any()):
        y = y + torch.randn(y.shape, generator=generator).to(y.device) * drawn.noise[:, None, None, None]
    return y.clamp_(0, 1)


def to_lines(content: np.ndarray | Tensor, low: float, high: float, device: torch.device | str = "cpu") -> Tensor:
    """Raw pixels to the unit range, rows outermost. (B, H, W, C) -> (B, H, C, W) float32"""
    x = torch.as_tensor(np.ascontiguousarray(content)) if isinstance(content, np.ndarray) else content
    x = x.to(device).transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    return x.sub_(low).mul_(1 / (high - low)).clamp_(0, 1)


def plain(content: np.ndarray | Tensor, low: float, high: float, device: torch.device | str = "cpu") -> Tensor:
    """The image as the encoder sees it in use: no augmentation. (B, H, W, C) -> (B, C, H, W) in [0, 1]"""
    return to_lines(content, low, high, device).transpose(1, 2)


class ImageViews:
    """``views(content, generator)``: ``n`` views of each image of a batch, drawn from one policy.

    Args:
        policy: what is drawn.
        size: (h, w) of a view.
        low, high: the raw values that stand for 0 and 1.
        n: views an image.
        rank, world: with several processes each draws for the global batch and keeps its own rows, so that
            P processes see the views that one would have seen.

    Returns ``n`` tensors (B, C, h, w) in [0, 1]. The same generator state gives the same views.
    """

    def __init__(
        self, policy: ImagePolicy, size: tuple[int, int], low: float, high: float, n: int = 2, rank: int = 0,
        world: int = 1,
    ) -> None:  # fmt: skip
        self.policy, self.size, self.low, self.high = policy, size, low, high
        self.n, self.rank, self.world = n, rank, world

    def draws(self, n: int, generator: torch.Generator) -> list[Drawn]:
        """What each view of ``n`` images gets."""
        rows = slice(self.rank * n, (self.rank + 1) * n)
        drawn = [draw(self.policy, n * self.world, generator) for _ in range(self.n)]
        if self.world == 1:
            return drawn
        return [Drawn(**{k: v[rows] for k, v in vars(d).items()}) for d in drawn]

    def __call__(
        self, content: np.ndarray, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        x = to_lines(content, self.low, self.high, device)  # (B, H, C, W)
        drawn = self.draws(len(content), generator)
        moved = [Drawn(**{k: v.to(device) for k, v in vars(d).items()}) for d in drawn]
        return [apply(x, d, self.size, generator) for d in moved]
