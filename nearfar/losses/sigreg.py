"""How far embeddings are from the standard normal, by their projections on random directions: LeJEPA's SIGReg."""

from __future__ import annotations

import math
import numbers

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses.features import checked_views, shared_seed


def sigreg(
    z: Tensor, *, generator: torch.Generator, slices: int = 1024, points: int = 17, reach: float = 5.0
) -> Tensor:  # fmt: skip
    r"""SIGReg: along random directions the embeddings' characteristic function is drawn to the standard normal's.

    .. math:: L = \frac1S\sum_{s=1}^S N\int_{-r}^{r}\left|\frac1N\sum_n e^{it\,a_s^\top z_n}-e^{-t^2/2}\right|^2
              e^{-t^2/2}\,dt

    Balestriero & LeCun 2025 (arXiv:2511.08544), definition 2 with the statistic of Epps and Pulley, algorithm 1: the
    :math:`a_s` are uniform on the sphere and drawn anew at each call, the integral is by the trapezoid rule. N counts
    the rows of all processes, and the mean in the modulus is over all of them. A sample of the normal itself gives
    :math:`\sqrt{2\pi}\,(1-1/\sqrt3)\approx1.06` on average, whatever N; rows that all are 0 give 0.41 N. The paper
    takes each view of a batch by itself and averages.

    Args:
        z: (N, d) embeddings, not normalised; bfloat16 and float16 are taken to float32. N · slices · points values
            are held.
        generator: draws the directions; the first process's decides.
        slices: S, how many directions.
        points: knots of the integral, an odd number: it is even in t, so half of them are computed. Knots h apart do
            not tell x from x + 2π/h, which is 10 at the defaults (the paper's) and 20 with ``points=33``.
        reach: r, where the integral ends.

    Raises ``UserError`` for no rows at all, NaN or infinite values, or options that are out of range.

    >>> g = torch.Generator().manual_seed(0)
    >>> z = torch.randn(512, 8, generator=g)
    >>> loss = sigreg(z, generator=g), sigreg(2 * z, generator=g), sigreg(0 * z, generator=g)
    >>> [round(float(v)) for v in loss]
    [1, 120, 209]
    """
    (z,) = checked_views(("z",), (z,))
    _check(generator, slices, points, reach)
    n = sum(c for (c,) in dist.exchange([len(z)], z.device))
    if n == 0:
        raise UserError("sigreg needs at least one row over all processes, got 0")
    seeded = torch.Generator().manual_seed(shared_seed(generator, z.device))
    a = F.normalize(torch.randn(z.shape[1], slices, dtype=torch.float64, generator=seeded), dim=0).to(z)  # (d, S)
    with torch.autocast(z.device.type, enabled=False):
        t, normal, weight = _knots(points, reach, z)  # (T,) each
        x = (z @ a)[:, :, None] * t  # (N, S, T)
        real, imaginary = dist.total(torch.stack([x.cos().sum(0), x.sin().sum(0)])) / n  # (S, T) each
        return n * (((real - normal).square() + imaginary.square()) @ weight).mean()


def _knots(points: int, reach: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The knots from 0 on, the normal's characteristic function there, and the weights of both halves together."""
    t = torch.linspace(0, reach, points // 2 + 1, dtype=torch.float64)  # (T,)
    normal = torch.exp(-t.square() / 2)
    weight = torch.full_like(t, 2 * reach / (points // 2))
    weight[0] /= 2  # one knot for both halves
    weight[-1] /= 2  # an end
    return t.to(like), normal.to(like), (weight * normal).to(like)


def _check(generator: object, slices: int, points: int, reach: float) -> None:
    if not isinstance(generator, torch.Generator):
        raise UserError("the directions are drawn at random: give a generator, torch.Generator().manual_seed(…)")
    for name, value, least in (("slices", slices, 1), ("points", points, 3)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if points % 2 == 0:
        raise UserError(f"points must be odd, so that one knot is at 0, got {points}")
    if isinstance(reach, bool) or not isinstance(reach, numbers.Real) or not 0 < reach < math.inf:
        raise UserError(f"reach must be a number above 0, got {reach!r}")
