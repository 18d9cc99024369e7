"""What follows geometry and colour, each on the views that have it: solarise, posterise, equalise, erase, noise."""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.views.draw import Drawn
from nearfar.views.geometry import gaussian


def blur(y: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a sigma a view, borders reflected, as two products. y (N, C, h, w), sigma (N,) in pixels"""
    n, channels, h, w = y.shape
    y = torch.bmm(y.reshape(n, channels * h, w), gaussian(sigma, w, y.device).transpose(1, 2))  # (N, C·h, w)
    y = y.view(n, channels, h, w).transpose(1, 2).reshape(n, h, channels * w)
    y = torch.bmm(gaussian(sigma, h, y.device), y)  # (N, h, C·w)
    return y.view(n, h, channels, w).transpose(1, 2).contiguous()


def solarise(y: Tensor, threshold: Tensor) -> Tensor:
    """Invert what is at the threshold or above. y (N, C, h, w) in [0, 1], threshold (N,)"""
    return torch.where(y >= threshold[:, None, None, None], 1 - y, y)


def posterise(y: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper bits of eight. y (N, C, h, w) in [0, 1], bits (N,) from 1 to 8"""
    step = 2 ** (8 - bits)[:, None, None, None]
    return (y * 255).round_().div_(step).floor_().mul_(step / 255)


def equalise(y: Tensor) -> Tensor:
    """Make each channel's histogram flat, on 256 levels, as Pillow and torchvision do. y (N, C, h, w) in [0, 1]

    With the cumulative histogram c, s = (number of pixels - count of the brightest level present) // 255, level v
    goes to (c(v - 1) + s // 2) // s; a channel with s = 0 stays.
    """
    n, channels, h, w = y.shape
    level = (y * 255).round_().clamp_(0, 255).long().view(n * channels, -1)  # (N·C, h·w)
    count = torch.zeros(len(level), 256, dtype=torch.long, device=y.device)
    count.scatter_add_(1, level, torch.ones_like(level))  # (N·C, 256)
    total = count.cumsum(1)
    brightest = count.gather(1, level.amax(1, keepdim=True))
    step = (total[:, -1:] - brightest) // 255  # (N·C, 1)
    table = ((total - count + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    out = torch.where(step > 0, table.gather(1, level), level)
    return out.view(n, channels, h, w) / 255


def erase(y: Tensor, box: Tensor, fill: Tensor) -> Tensor:
    """Fill one rectangle. y (N, C, h, w), box (N, 4) top, left, bottom, right in [0, 1], fill (N, C)

    A pixel is inside where its middle is.
    """
    row = (torch.arange(y.shape[2], device=y.device) + 0.5) / y.shape[2]
    column = (torch.arange(y.shape[3], device=y.device) + 0.5) / y.shape[3]
    top, left, bottom, right = box.T[:, :, None]  # (N, 1) each
    inside = ((row > top) & (row < bottom))[:, :, None] & ((column > left) & (column < right))[:, None, :]  # (N, h, w)
    return torch.where(inside[:, None], fill[:, :, None, None], y)


def gaussian_noise(seed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that is a function of a seed and the pixel alone, on any device. seed (N,) -> (N, *shape)

    Murmur3's finaliser over a counter, its halves through Box-Muller: 32 bits a pixel, so |noise| < 4.86.
    """
    at = torch.arange(torch.Size(shape).numel(), device=seed.device)
    x = (at * 0x9E3779B1 + seed.long()[:, None] * 0x85EBCA77) & _32  # (N, pixels)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & _32
    x = x ^ (x >> 16)
    radius = (((x >> 16) + 0.5) / 65536).log_().mul_(-2).sqrt_()
    return radius.mul_(((x & 65535) * (2 * torch.pi / 65536)).cos_()).view(-1, *shape)


_32 = 0xFFFFFFFF


def finish(y: Tensor, drawn: Drawn) -> Tensor:
    """What a view has of it, in this order. y (N, C, h, w) in [0, 1], may be changed; the blur is not done here"""
    steps = (
        (drawn.solarise <= 1, lambda part, d: solarise(part, d.solarise)),
        (drawn.bits < 8, lambda part, d: posterise(part, d.bits)),
        (drawn.equalise > 0, lambda part, d: equalise(part)),
        (drawn.erased.any(1), lambda part, d: erase(part, d.erased, part.mean((2, 3)))),
        (drawn.noise > 0, lambda part, d: _noisy(part, d)),
    )
    for where, step in steps:
        rows = where.nonzero()[:, 0]
        if len(rows) == len(y):
            y = step(y, drawn.to(y.device))
        elif len(rows):
            there = rows.to(y.device, non_blocking=True)
            y[there] = step(y[there], drawn[rows].to(y.device))
    return y


def _noisy(y: Tensor, drawn: Drawn) -> Tensor:
    return (y + gaussian_noise(drawn.seed, y.shape[1:]) * drawn.noise[:, None, None, None]).clamp_(0, 1)
