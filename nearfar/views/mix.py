"""Mixing two pictures of a batch, for methods that want it: MixUp and CutMix. Who with whom, and how much, is returned.

Both give the mixed views, the partner's row and the share of the own picture, so that a loss l(z, own) becomes
``share * l(z, own) + (1 - share) * l(z, partner)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.errors import UserError


def mixup(x: Tensor, generator: torch.Generator, alpha: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """``share * x + (1 - share) * x[partner]``, share ~ Beta(alpha, alpha) for each picture.

    Zhang et al. 2018 (arXiv:1710.09412). x (B, C, h, w) -> mixed (B, C, h, w), partner (B,) int64, share (B,)
    """
    partner, share = _drawn(x, generator, alpha)
    by = share[:, None, None, None].to(x.dtype)
    return torch.lerp(x[partner], x, by), partner, share


def cutmix(x: Tensor, generator: torch.Generator, alpha: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """A rectangle of the partner's pixels in each picture; share is what is left of its own, counted in pixels.

    Yun et al. 2019 (arXiv:1905.04899): the rectangle's sides are sqrt(1 - λ) of the picture's, λ ~ Beta(alpha, alpha),
    its middle uniform, cut at the border. x (B, C, h, w) -> mixed (B, C, h, w), partner (B,) int64, share (B,)
    """
    partner, lam = _drawn(x, generator, alpha)
    height, width = x.shape[2:]
    half = (1 - lam).sqrt() / 2  # (B,)
    middle = torch.rand(len(x), 2, generator=generator).to(x.device)
    inside = []
    for axis, n in enumerate((height, width)):
        centre = (middle[:, axis] * n).floor()
        low, high = (centre - (half * n).floor()).clamp(min=0), (centre + (half * n).floor()).clamp(max=n)
        at = torch.arange(n, device=x.device)
        inside.append((at >= low[:, None]) & (at < high[:, None]))  # (B, n)
    box = inside[0][:, :, None] & inside[1][:, None, :]  # (B, h, w)
    share = 1 - box.float().mean((1, 2))
    return torch.where(box[:, None], x[partner], x), partner, share


def _drawn(x: Tensor, generator: torch.Generator, alpha: float) -> tuple[Tensor, Tensor]:
    """Partners, a permutation of the batch, and Beta(alpha, alpha), from the CPU's generator. (B,), (B,)"""
    if not alpha > 0:
        raise UserError(f"alpha = {alpha} must be above 0")
    gamma = torch._standard_gamma(torch.full((2, len(x)), float(alpha), dtype=torch.double), generator=generator)
    partner = torch.randperm(len(x), generator=generator)
    share = (gamma[0] / gamma.sum(0)).nan_to_num(0.5)  # both underflow where alpha is tiny
    return partner.to(x.device), share.float().to(x.device)
