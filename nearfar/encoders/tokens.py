"""Tokens of a timm vision transformer with some of its patches hidden, and which to hide: for methods that mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nearfar.errors import UserError

_TRIES = 16  # rectangles for a mask


def transformer(encoder: nn.Module) -> nn.Module:
    """timm's vision transformer inside an encoder, or one line that asks for one."""
    net = getattr(getattr(encoder, "backbone", None), "net", None)
    if not all(hasattr(net, part) for part in ("patch_embed", "blocks", "norm", "num_prefix_tokens")):
        raise UserError("patches of a vision transformer are to be hidden and this encoder has none: "
                        "pass --encoder timm:vit_tiny_patch16_224")  # fmt: skip
    return net


def with_tokens(
    encoder: nn.Module, net: nn.Module, x: Tensor, hidden: Tensor | None = None, token: Tensor | None = None
) -> Tensor:
    """An encoder's features and, behind them, its transformer's P patch tokens in rows from the top left.

    Args:
        net: the encoder's :func:`transformer`.
        x: (B, C, H, W) in [0, 1].
        hidden: (B, P) which patches are replaced by ``token`` (d,) before the transformer's blocks.

    Returns (B, 1 + P, d), after the last normalisation.
    """
    seen: list[Tensor] = []

    def keep(part: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(out)

    def hide(part: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return torch.where(hidden.view(*out.shape[:-1], 1), token.to(out.dtype), out)  # (B, P, d) or (B, h, w, d)

    handles = [net.norm.register_forward_hook(keep)]
    if hidden is not None:
        handles.append(net.patch_embed.register_forward_hook(hide))
    try:
        features = encoder(x)  # (B, d)
    finally:
        for handle in handles:
            handle.remove()
    patches = seen[0][:, net.num_prefix_tokens :]  # (B, P, d)
    return torch.cat([features[:, None], patches.to(features.dtype)], 1)


def block_masks(
    rows: int, cols: int, count: int, generator: torch.Generator, *, share: float = 0.3, spread: float = 0.2,
    masked: float = 0.5,
) -> Tensor:  # fmt: skip
    """Which patches of ``count`` views to hide: rectangles until a share is reached, as iBOT and BEiT have them.

    Args:
        rows, cols: patches of a view.
        share, spread: the share is uniform in share ± spread.
        masked: share of the views of which any are hidden.

    Rectangles have a ratio log-uniform in [0.3, 1/0.3] and may overlap; where none of 16 fits, fewer are hidden.
    Returns (count, rows · cols), boolean. Bao et al. 2021 (arXiv:2106.08254); bytedance/ibot, loader.py.

    >>> masks = block_masks(8, 8, 1000, torch.Generator().manual_seed(0))
    >>> masks.shape, 0.1 < float(masks.float().mean()) < 0.16
    (torch.Size([1000, 64]), True)
    """
    draws = torch.rand(count, 2 + _TRIES * 4, generator=generator).tolist()
    masks = torch.zeros(count, rows, cols, dtype=torch.bool)
    for mask, (whether, how_many, *rest) in zip(masks, draws):
        left = (share + spread * (2 * how_many - 1)) * rows * cols if whether < masked else 0
        for area, ratio, top, start in zip(*[iter(rest)] * 4):
            if left < 1:
                break
            least = min((min(rows, cols) // 3) ** 2, left)
            side, root = math.sqrt(least + area * (left - least)), 0.3 ** (ratio - 0.5)  # √ of 0.3 to √ of 1/0.3
            h, w = round(side * root), round(side / root)
            if not (0 < h < rows and 0 < w < cols):
                continue
            y, x = int(top * (rows - h + 1)), int(start * (cols - w + 1))
            block = mask[y : y + h, x : x + w]
            new = h * w - int(block.sum())
            if 0 < new <= left:
                block.fill_(True)
                left -= new
    return masks.flatten(1)
