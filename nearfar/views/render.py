"""From raw pixels and what was drawn to views: the order of the work, in as few passes over pixels as it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.views import geometry
from nearfar.views.colour import Colour, one_by_one
from nearfar.views.draw import Drawn
from nearfar.views.finish import blur, finish
from nearfar.views.scratch import scratch

_WINDOWED = 112 * 112  # pixels from which reading only the part of an image that a view sees is worth a copy each
_AT_ONCE = 16  # views of windowed images that share a window
_STEP = 32  # a window's sides are multiples of it: few shapes, rows that begin on a cache line
_MOST_BYTES = 9 * 2**22  # of a part's intermediate pixels on a CPU; 32 times that on other devices


@torch.no_grad()
def render(
    x: Tensor, drawn: Drawn, size: tuple[int, int], *, low: float = 0.0, high: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Views of images: N = B·V rows of ``drawn``, the V views of the first image first.

    Args:
        x: (B, H, W, C) raw pixels, uint8 or float32.
        drawn: what was drawn, on the CPU; it decides everything.
        size: (h, w) of a view.
        low, high: the raw values that stand for 0 and 1.
        dtype: of the resampling products. bfloat16 holds uint8 pixels exactly and rounds weights and sums to 8 bits:
            off by less than one level of 256 (docs/views.md), several times faster where the hardware multiplies it.

    Returns (N, C, h, w) float32 in [0, 1], the same inside ``torch.autocast``; no gradient flows to ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _rendered(x, drawn, size, low, high, dtype)


def _rendered(
    x: Tensor, drawn: Drawn, size: tuple[int, int], low: float, high: float, dtype: torch.dtype
) -> Tensor:
    out = torch.empty(len(drawn), x.shape[3], *size, device=x.device)
    if not len(drawn):
        return out
    if x.dtype is not torch.uint8:
        dtype = torch.float32
    colour = Colour(drawn, x.shape[3], 1 / (high - low), x.device)
    image = torch.arange(len(drawn)) // (len(drawn) // len(x))  # whose view each row is
    turned = drawn.turned
    if bool(turned.any()):
        for rows in turned.nonzero()[:, 0].split(_most(x, size)):
            _gathered(x, drawn[rows], image[rows], rows, colour, low, out)
        rows = (~turned).nonzero()[:, 0]
        if len(rows):
            _kept(x[image[rows].to(x.device)], drawn[rows], rows, colour, low, dtype, out)
    else:
        _kept(x, drawn, None, colour, low, dtype, out)
    exact = drawn.exact.nonzero()[:, 0]
    for rows in exact.split(_most(x, size)) if len(exact) else ():
        out[rows.to(x.device)] = _blurred(one_by_one(out[rows.to(x.device)], drawn[rows]), drawn.sigma[rows])
    return finish(out, drawn)


def _most(x: Tensor, size: tuple[int, int]) -> int:
    """Views that are worked on together: as many as keep the memory between raw pixels and views bounded."""
    most = _MOST_BYTES if x.device.type == "cpu" else 32 * _MOST_BYTES
    return max(1, most // (4 * x.shape[3] * (x.shape[1] * x.shape[2] + 2 * size[0] * size[1])))


def _lines(x: Tensor, low: float, dtype: torch.dtype) -> Tensor:
    """Raw pixels, rows outermost, less ``low``, in scratch memory. (B, H, W, C) -> (B, H, C, W)"""
    b, height, width, channels = x.shape
    y = scratch("lines", (b, height, channels, width), dtype, x.device).copy_(x.transpose(2, 3))
    return y.sub_(low) if low else y


def _gathered(
    x: Tensor, drawn: Drawn, image: Tensor, rows: Tensor, colour: Colour, low: float, out: Tensor
) -> None:
    """Views whose map turns rows and columns."""
    used, image = image.unique(return_inverse=True)
    planes = _lines(x[used.to(x.device)], low, torch.float32).transpose(1, 2)  # (B, C, H, W)
    y = geometry.gather(planes, image, drawn, tuple(out.shape[2:]))
    colour.paint(_blurred(y, drawn.sigma * (drawn.exact == 0)), rows, out)


def _blurred(y: Tensor, sigma: Tensor) -> Tensor:
    rows = sigma.nonzero()[:, 0]
    if len(rows):
        there = rows.to(y.device, non_blocking=True)
        y[there] = blur(y[there], sigma[rows])
    return y


def _kept(
    x: Tensor, drawn: Drawn, rows: Tensor | None, colour: Colour, low: float, dtype: torch.dtype, out: Tensor
) -> None:
    """Views whose map keeps rows and columns; ``rows`` says where in ``out`` they go, None: all of it in order."""
    extent, size, views = tuple(x.shape[1:3]), tuple(out.shape[2:]), len(drawn) // len(x)
    sigma = drawn.sigma * (drawn.exact == 0)  # where the blur may come before the colour
    if x.device.type == "cpu" and dtype is torch.float32 and extent[0] * extent[1] >= _WINDOWED:
        return _windowed(x, drawn, sigma, rows, colour, low, dtype, out)
    step = max(1, _most(x, size) // views)
    for a in range(0, len(x), step):
        mine = slice(a * views, min(a + step, len(x)) * views)
        axes = geometry.axes(drawn[mine], extent, size, x.device)
        y = _resampled(_lines(x[a : a + step], low, dtype), axes, sigma[mine])
        colour.paint(y, mine if rows is None else rows[mine], out)


def _resampled(
    lines: Tensor, axes: tuple[geometry.Axis, geometry.Axis], sigma: Tensor, origin: tuple = (None, None)
) -> Tensor:
    """The two products, with the blur multiplied in. (B, H, C, W) -> (N, C, h, w) in scratch memory"""
    matrices = [axis.matrix(start, n, lines.dtype, name) for axis, start, n, name
                in zip(axes, origin, (lines.shape[1], lines.shape[3]), ("rows", "columns"))]  # fmt: skip
    return geometry.resample(lines, *geometry.with_blur(matrices, sigma))


def _windowed(
    x: Tensor, drawn: Drawn, sigma: Tensor, rows: Tensor | None, colour: Colour, low: float, dtype: torch.dtype,
    out: Tensor,
) -> None:  # fmt: skip
    """The same, reading only the part of each image that its view sees; views of like parts together."""
    axes = geometry.axes(drawn, tuple(x.shape[1:3]), tuple(out.shape[2:]))
    views = len(drawn) // len(x)
    spans = [axis.span() for axis in axes]
    extents = [high - low for low, high in spans]
    order = (extents[0] * extents[1]).argsort(descending=True)
    kinds = [order[(sigma > 0)[order]], order[(sigma == 0)[order]]]  # the blurred ones together
    for part in (part for kind in kinds if len(kind) for part in kind.split(_AT_ONCE)):
        sides = [min(n, -(-int(extent[part].max()) // _STEP) * _STEP) for n, extent in zip(x.shape[1:3], extents)]
        origin = [first[part].clamp(max=n - side) for (first, _), n, side in zip(spans, x.shape[1:3], sides)]
        lines = scratch("lines", (len(part), sides[0], x.shape[3], sides[1]), dtype, x.device)
        for line, i, top, left in zip(lines, part.tolist(), *(o.tolist() for o in origin)):
            line.copy_(x[i // views, top : top + sides[0], left : left + sides[1]].transpose(1, 2))
        y = _resampled(lines.sub_(low) if low else lines, tuple(axis[part] for axis in axes), sigma[part], origin)
        colour.paint(y, part if rows is None else rows[part], out)
