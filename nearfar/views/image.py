"""Image augmentation as matrices: a whole batch at once, on the batch's device.

What is drawn for a view is a row of numbers (:mod:`~nearfar.views.draw`); its geometry and blur are one linear map,
sampled once from the raw pixels (:mod:`~nearfar.views.geometry`); its colour is one affine map of the channels,
applied once and clamped once (:mod:`~nearfar.views.colour`); the rest follows where it was drawn
(:mod:`~nearfar.views.finish`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from nearfar.errors import UserError
from nearfar.views.draw import Drawn, draw
from nearfar.views.geometry import view_map
from nearfar.views.policy import ImagePolicy, Plan, as_plan
from nearfar.views.render import render


class View:
    """One view of each image of a batch, with what was drawn and the map that boxes, masks and points follow.

    No tuple, so that who converts a model's inputs to bfloat16 leaves the map alone, whose pixels that would move.

    Args:
        pixels: (B, C, h, w) in [0, 1].
        drawn: B rows, on the CPU.
        to_image: (B, 3, 3), on the CPU: view pixels (x, y, 1) to image pixels.
    """

    __slots__ = ("drawn", "pixels", "to_image")

    def __init__(self, pixels: Tensor, drawn: Drawn, to_image: Tensor) -> None:
        self.pixels, self.drawn, self.to_image = pixels, drawn, to_image

    def changed(self, pixels: Tensor) -> View:
        """The same view with other pixels."""
        return View(pixels, self.drawn, self.to_image)


def plain(content: np.ndarray | Tensor, low: float, high: float, device: torch.device | str = "cpu") -> Tensor:
    """The image as the encoder sees it in use: no augmentation. (B, H, W, C) -> (B, C, H, W) in [0, 1]"""
    x = torch.as_tensor(np.ascontiguousarray(content)) if isinstance(content, np.ndarray) else content
    x = x.to(device).transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format, copy=True)  # (B, H, C, W)
    return x.sub_(low).mul_(1 / (high - low)).clamp_(0, 1).transpose(1, 2)


class ImageViews:
    """``views(content, generator)``: views of each image of a batch, drawn from a policy.

    Args:
        policy: what is drawn: an :class:`~nearfar.views.policy.ImagePolicy` for all views, or one for each view
            (:func:`~nearfar.views.policy.lay_out` makes them from a policy's name).
        size: (h, w) of the images; a view is ``policy.size`` of it.
        low, high: the raw values that stand for 0 and 1.
        n: views an image, where ``policy`` is a single one.
        rank, world: with several processes each draws for the global batch and keeps its own rows, so that
            P processes see the views that one would have seen.
        dtype: of the resampling products: see :func:`~nearfar.views.render.render`.
        normalise: mean and standard deviation of each channel, for encoders that do not do it themselves (nearfar's
            own do).

    Returns a list of tensors (B, C, h, w) in [0, 1], or normalised, one a view. What is drawn for image i of a batch is
    a function of the generator's state and i alone: not of the device, nor of how the batch is split, nor of who works
    on it.

    >>> views = ImageViews(ImagePolicy(), (32, 32), 0, 255)
    >>> [v.shape for v in views(np.zeros((4, 32, 32, 3), np.uint8), torch.Generator().manual_seed(0))]
    [torch.Size([4, 3, 32, 32]), torch.Size([4, 3, 32, 32])]
    """

    def __init__(
        self, policy: ImagePolicy | Iterable[ImagePolicy], size: tuple[int, int], low: float, high: float, n: int = 2,
        rank: int = 0, world: int = 1, dtype: torch.dtype = torch.float32,
        normalise: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:  # fmt: skip
        self.plan: Plan = (policy,) * n if isinstance(policy, ImagePolicy) else as_plan(policy)
        if not self.plan:
            raise UserError("no views: give at least one policy")
        self.size, self.low, self.high = tuple(size), low, high
        self.rank, self.world, self.dtype = rank, world, dtype
        self.normalise = None if normalise is None else _scale_and_shift(*normalise)
        self.sizes = [(p.side(size[0]), p.side(size[1])) if p.size <= 1 else (p.side(0),) * 2 for p in self.plan]

    def draws(self, n: int, generator: torch.Generator) -> list[Drawn]:
        """What each view of ``n`` images gets: a list of n-row tables, one a view."""
        drawn = draw(self.plan, n * self.world, generator)
        rows = slice(self.rank * n, (self.rank + 1) * n)
        table = drawn.table.view(n * self.world, len(self.plan), -1)[rows]  # (n, views, fields)
        return [Drawn(table[:, v]) for v in range(len(self.plan))]

    def seen(
        self, content: np.ndarray | Tensor, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> list[View]:
        """The views with what was drawn and their maps, for methods that contrast pixels, boxes or masks."""
        x = _raw(content, device)
        extent = tuple(x.shape[1:3])
        drawn = self.draws(len(x), generator)
        return [View(pixels, d, view_map(d, extent, size))
                for pixels, d, size in zip(self.made(x, drawn), drawn, self.sizes)]  # fmt: skip

    def made(self, x: Tensor, drawn: Sequence[Drawn]) -> list[Tensor]:
        """The pixels of views already drawn. x (B, H, W, C) raw -> one (B, C, h, w) a view"""
        out: list[Tensor] = [x] * len(drawn)
        for size in dict.fromkeys(self.sizes):  # views of one size at once
            which = [v for v, s in enumerate(self.sizes) if s == size]
            table = torch.stack([drawn[v].table for v in which], 1)  # (B, V, fields)
            y = render(x, Drawn(table.flatten(0, 1)), size, low=self.low, high=self.high, dtype=self.dtype)
            if self.normalise is not None:
                scale, shift = (t.to(y.device) for t in self.normalise)
                torch.addcmul(shift, y, scale, out=y)  # one pass
            for v, part in zip(which, y.view(len(x), len(which), *y.shape[1:]).unbind(1)):
                out[v] = part
        return out

    def __call__(
        self, content: np.ndarray | Tensor, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        x = _raw(content, device)
        return self.made(x, self.draws(len(x), generator))


def _scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(x - mean) / std as a product and a sum. -> (C, 1, 1), (C, 1, 1)"""
    m, s = (torch.as_tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))
    if not bool((s > 0).all()):
        raise UserError(f"normalise: standard deviations {list(std)} must be above 0")
    return 1 / s, -m / s


def _raw(content: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """(B, H, W, C) on the device, or one line that says what is wrong."""
    x = torch.as_tensor(np.ascontiguousarray(content)) if isinstance(content, np.ndarray) else content
    if x.ndim != 4 or 0 in x.shape:
        raise UserError(f"views of an array of shape {tuple(x.shape)}: give images as (B, H, W, C)")
    if x.dtype in (torch.float64, torch.float16, torch.bfloat16) or (x.dtype not in (torch.uint8, torch.float32)):
        x = x.to(torch.float32)
    return x.to(device, non_blocking=True)
