"""Near-duplicates: test images that lie in the training part too, cropped, mirrored, recoded or in other colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.errors import UserError

SIDE, COARSE = 32, 16  # pixels a side of what is compared and of what is searched
K = 9  # how many further neighbours the nearest is measured by
SAMPLE = 2000  # training images that are looked for among themselves
FEWEST = 20  # training images among which a copy can be told from a lookalike
_FAR = 0.8  # r1 / r10 of the search above which no shift is tried: copies lie far below
_SAME = 1e-3  # distances below are 0 but for rounding


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of a test image and its nearest training image, nearest first, and what they were found by."""

    test: np.ndarray  # (D,) rows of the test part
    train: np.ndarray  # (D,) rows of the training part
    correlation: np.ndarray  # (D,) of their pixels, best over mirror image and shifts
    ratio: np.ndarray  # (D,) distance over the distance of the tenth nearest
    limit: float  # ratios below it are near-duplicates
    dimension: float  # of the training images about themselves
    within: int  # training images with a near-duplicate in the training part, of
    sampled: int  # so many that were looked at


def reduced(images: np.ndarray) -> np.ndarray:
    """Means over areas, at most 32 pixels a side; what is smaller stays. (N, H, W, C) -> (N, h, w, C), same dtype"""
    h, w = (min(n, SIDE) for n in images.shape[1:3])
    if (h, w) == images.shape[1:3]:
        return images
    x = F.interpolate(_planes(images), (h, w), mode="area").permute(0, 2, 3, 1).numpy()
    return (x.round() if images.dtype.kind in "iu" else x).astype(images.dtype)


def products(test: int, train: int, shape: tuple[int, int, int]) -> int:
    """How many products the search takes: images and mirror images against all. shape (H, W, C)"""
    h, w = (min(n, COARSE) for n in shape[:2])
    return 2 * (test + min(SAMPLE, train)) * train * h * w * shape[2]


def near_duplicates(
    test: np.ndarray, train: np.ndarray, *, chance: float = 0.05, sample: int = SAMPLE, seed: int = 0
) -> NearDuplicates:
    r"""Test images whose nearest training image is too near to be there by chance; needs no labels and no learning.

    Distance is that of pixels (at most 32 a side) without each channel's mean, at unit norm:
    :math:`r=\sqrt{2(1-\rho)}` with :math:`\rho` the correlation, the largest over the mirror image and shifts of up
    to a fourteenth of the side. Ten candidates come from an exact search at 16 pixels a side, mirrored or not.
    A lookalike has others nearly as near, a copy has not, so :math:`r_1` is measured by the tenth nearest,
    :math:`r_{10}`. Were images spread evenly about each other in m dimensions, the ball to the nearest would hold
    a share :math:`V=(r_1/r_{10})^m` of that to the tenth, and

    .. math:: P(V\le v) = 1-(1-v)^9

    (the distances' volumes are a Poisson process; with two neighbours: Facco et al. 2017,
    doi:10.1038/s41598-017-11873-y). A pair is a near-duplicate where that probability is at most
    ``chance / len(test)``: were there none, a false alarm would come in ``chance`` of all test parts. m is such that
    half of the training images lie on either side of the median of V, measured on ``sample`` of them among themselves;
    so it is also found how many of these have a near-duplicate within the training part.

    An image that is there ten times or more, in different forms, is its own crowd and is not found.

    Args:
        test, train: (M, H, W, C), (N, H, W, C) of any numbers. Images without any contrast have no duplicates.

    Memory: a thousand rows of (M, N) at a time. Raises ``UserError`` for shapes that differ, or fewer than 20 training
    images.
    """
    if test.ndim != 4 or test.shape[1:] != train.shape[1:]:
        raise UserError(f"images of {test.shape[1:]} and {train.shape[1:]}: give (N, H, W, C) of one shape")
    if len(train) < FEWEST:
        raise UserError(f"{len(train)} training images: copies are told from lookalikes among {FEWEST} or more")
    bank = reduced(train)
    wide = _rows(_coarse(bank))  # (N, d)
    rows = np.sort(np.random.default_rng(seed).permutation(len(bank))[:sample])
    _, _, own = _nearest(bank[rows], bank, wide, rows)
    of_half = np.log(1 - 0.5 ** (1 / K))
    middle = float(np.median(np.log(np.maximum(own, _SAME))))
    dimension = of_half / min(middle, -1e-6)
    limit = float((1 - (1 - chance / max(1, len(test))) ** (1 / K)) ** (1 / dimension))
    limit = min(limit, _FAR)
    index, correlation, ratio = _nearest(reduced(test), bank, wide, above=_FAR)
    found = np.flatnonzero(ratio <= limit)
    found = found[np.lexsort((found, -correlation[found]))]
    return NearDuplicates(found, index[found], correlation[found], ratio[found], limit, float(dimension),
                          int((own <= limit).sum()), len(rows))  # fmt: skip


def _nearest(
    query: np.ndarray, bank: np.ndarray, wide: Tensor, itself: np.ndarray | None = None, above: float = np.inf,
    chunk: int = 1000,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Nearest row of the bank, its correlation, and r1 / r10. itself (Q,): rows left out. -> three of (Q,)

    Where r1 / r10 of the search lies above ``above``, its correlations are given, which no shift has made larger.
    """
    out = []
    for at in range(0, len(query), chunk):
        q = query[at : at + chunk]
        s, mirrored = (_rows(_coarse(x)) @ wide.T for x in (q, q[:, :, ::-1]))  # (chunk, N)
        flipped = mirrored > s
        s = torch.maximum(s, mirrored)
        if itself is not None:
            s[torch.arange(len(q)), torch.from_numpy(itself[at : at + chunk])] = -torch.inf
        exact, near = s.topk(K + 1, dim=1)  # (chunk, 10) twice
        look = _ratio(exact) <= above  # (chunk,)
        exact[look] = _aligned(q[look.numpy()], bank, near[look].numpy(), flipped.gather(1, near)[look].numpy())
        exact, order = exact.sort(dim=1, descending=True, stable=True)
        out.append((near.gather(1, order)[:, 0], exact[:, 0], _ratio(exact)))
    if not out:
        return np.empty(0, np.int64), np.empty(0), np.empty(0)
    return tuple(torch.cat(parts).numpy() for parts in zip(*out))


def _ratio(correlation: Tensor) -> Tensor:
    """r1 / r10, 0 where the nearest is the same. (Q, 10), falling -> (Q,)"""
    r = (2 * (1 - correlation)).clamp_min(0).sqrt()
    return torch.where(r[:, 0] < _SAME, 0, r[:, 0] / r[:, K].clamp_min(_SAME))


def _aligned(query: np.ndarray, bank: np.ndarray, near: np.ndarray, flipped: np.ndarray) -> Tensor:
    """Correlation of a query's middle with its candidates', the largest over small shifts. near (Q, k) -> (Q, k)"""
    out = torch.full(near.shape, -torch.inf)
    h, w = query.shape[1:3]
    top, left = (max(1, n // 14) if n >= 6 else 0 for n in (h, w))
    for at in range(0, len(query), 100):  # so that what is at hand fits the cache
        part = slice(at, at + 100)
        q = query[part][:, top : h - top, left : w - left]
        sides = torch.stack([_rows(_planes(x)) for x in (q, q[:, :, ::-1])], 1)  # (100, 2, d)
        turn = torch.from_numpy(flipped[part].astype(np.int64))
        middle = sides.gather(1, turn[..., None].expand(-1, -1, sides.shape[2]))  # (100, k, d)
        theirs = _planes(bank[near[part].ravel()])  # (100 k, C, h, w)
        for y in range(2 * top + 1):
            for x in range(2 * left + 1):
                window = _rows(theirs[:, :, y : y + h - 2 * top, x : x + w - 2 * left]).view_as(middle)
                out[part] = torch.maximum(out[part], (window * middle).sum(2))
    return out


def _planes(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).float().permute(0, 3, 1, 2)  # (N, C, H, W)


def _coarse(images: np.ndarray) -> Tensor:
    h, w = (min(n, COARSE) for n in images.shape[1:3])
    return torch.cat([F.interpolate(_planes(images[at : at + 1000]), (h, w), mode="area")
                      for at in range(0, len(images), 1000)])  # fmt: skip


def _rows(planes: Tensor) -> Tensor:
    """Without each channel's mean, at unit norm. (N, C, H, W) -> (N, C·H·W)"""
    x = planes - planes.mean((2, 3), keepdim=True)
    x = x.flatten(1)
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-6)
