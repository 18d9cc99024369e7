"""The triplet loss, with the mining inside it: which triplets count is decided on the panels where they are held."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nearfar import dist
from nearfar.errors import UserError, nearest
from nearfar.losses import panels
from nearfar.losses.panels import Panel, by_panels
from nearfar.losses.rows import Rows, check_reduction, reduced, rows

NEAR, FAR = 0.5, 1.4  # Wu et al.: no weight grows below the one, none is given beyond the other


def triplet(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    margin: float | None = 0.2, mining: str = "hard", metric: str = "euclidean", unit: bool = False,
    generator: torch.Generator | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Triplet loss: a positive is to be nearer to the anchor than a negative is, by a margin.

    .. math:: \ell(a,p,n) = [m + d(a,p) - d(a,n)]_+ \quad\text{or, without a margin,}\quad
              \log(1 + e^{d(a,p) - d(a,n)})

    Which triplets count is the mining:

    - ``"all"``: batch-all, every triplet of the batch (equation 6 of Hermans et al. 2017, arXiv:1703.07737). The mean
      is over the triplets whose loss is above 0, the better of theirs; over all where ``margin`` is None.
    - ``"hard"``: batch-hard, for every anchor its farthest positive and its nearest negative (equation 5 there). The
      mean is over anchors.
    - ``"semi-hard"``: for every pair of anchor and positive the nearest of the negatives that are farther than the
      positive (equation 4 of Schroff et al. 2015, FaceNet, arXiv:1503.03832; squared distances of unit rows there),
      and where there is none, the farthest negative, as TensorFlow Addons has it. The mean is over pairs.
    - ``"distance-weighted"``: for every pair of anchor and positive one negative, drawn with weight
      min(λ, 1/q(d(a,n))), q(d) ∝ d^{D-2}(1 - d²/4)^{(D-3)/2}, the density of distances on the sphere in D dimensions
      (section 4 of Wu et al. 2017, arXiv:1706.07567); λ = 1/q(0.5), and no weight beyond 1.4. Where all negatives
      are beyond it they weigh the same. The mean is over pairs.

    An anchor counts where it has a positive and a negative; where none does, the loss is 0 with a gradient of 0.
    Memory is flat, and time O(N²(d + log N)) for all but ``"all"`` without a margin, which takes a step per triplet.
    ``"distance-weighted"`` holds a draw for every pair of anchor and positive.

    Args:
        z: (N, d) embeddings, in float32 or better here.
        groups: (N,) whole numbers: rows with the same id are positives.
        keys, key_groups: (M, d), (M,) the candidates instead of the rows themselves.
        margin: m ≥ 0, in the metric's units; None for the soft margin.
        mining: ``"all"``, ``"hard"``, ``"semi-hard"`` or ``"distance-weighted"``.
        metric: ``"euclidean"``, ``"squared"`` (Euclidean) or ``"cosine-distance"`` (1 - cosine).
        unit: bring rows to length one first: FaceNet and Wu et al. do, Hermans et al. do not. The cosine distance
            and ``"distance-weighted"`` live on the sphere and always do.
        generator: what ``"distance-weighted"`` draws with, seeded alike on all processes; others draw nothing.
        reduction: ``"mean"``, ``"sum"`` (over all triplets that are mined) or ``"none"``, (N,) each anchor's sum.

    Raises ``UserError``, in one line that names the argument.

    >>> z = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
    >>> groups = torch.tensor([0, 0, 1, 1])
    >>> triplet(z, groups, margin=1.0, reduction="none")  # 1 + 1 - 1.5, 1 + 1 - 0.5, 1 + 7.5 - 0.5, 1 + 7.5 - 8
    tensor([0.5000, 1.5000, 8.0000, 0.5000])
    """
    _check(margin, mining, metric, generator)
    check_reduction(reduction)
    drawn = mining == "distance-weighted"
    given = rows(z, groups, keys, key_groups, unit=unit or drawn or metric == "cosine-distance")
    if not len(given.keys):  # nobody brought a row
        return reduced(given.z.sum(1) + given.keys.sum(), torch.zeros_like(given.groups), reduction)
    fn = _MINING[mining]
    if drawn:
        fn = partial(fn, uniform=_uniform(given, generator), features=z.shape[1], euclidean=_EUCLIDEAN[metric])
    found = by_panels(partial(fn, margin=margin), given, metric=metric, width=8)  # (n, 2)
    total, count = found[:, 0], found[:, 1].detach()
    return reduced(total / count.clamp(min=1), count, reduction)


# Each takes a panel of distances and gives (b, 2): the sum of an anchor's triplets' losses, and how many count.


def _all(panel: Panel, margin: float | None) -> Tensor:
    """Negatives sorted once: those within reach of a positive are the first k, their sum a difference of prefixes."""
    if margin is None:
        return _all_soft(panel)
    s = panel.s.double()  # (b, M): a sum of hinges as the difference of two large sums wants the digits
    order = _sorted(s, panel.negative)  # (b, M)
    reach = s + margin  # (b, M), used at positives
    k = torch.searchsorted(order.detach(), reach.detach())  # (b, M) how many negatives are nearer than that
    prefix = torch.nn.functional.pad(order.cumsum(1), (1, 0))  # (b, M + 1); infinite beyond what k reaches
    hinges = k * reach - prefix.gather(1, k)  # (b, M) Σ over the k nearest negatives of reach - d(a,n)
    return _summed(panel, hinges, panel.positive, k)


def _all_soft(panel: Panel) -> Tensor:
    """Some positives at a time against all negatives, so that no (b, P, M) is ever held for many positives P."""
    s, positive, negative, _ = panel
    b, m = s.shape
    place = positive.cumsum(1)  # (b, M) the j-th positive stands where this first is j
    count = torch.where(negative.any(1), place[:, -1], 0)  # (b,)
    most = int(count.max()) if b else 0
    each = max(1, panels.VALUES // max(1, b * m))

    def some(first: int, s: Tensor) -> Tensor:
        slot = torch.arange(first, min(first + each, most), device=s.device) + 1  # (c,)
        column = torch.searchsorted(place, slot.repeat(b, 1)).clamp(max=m - 1)  # (b, c)
        loss = _loss(s.gather(1, column)[:, :, None] - s[:, None, :], None)  # (b, c, M)
        mine = (slot <= count[:, None])[:, :, None] & negative[:, None, :]
        return torch.where(mine, loss, 0).sum((1, 2))  # (b,)

    starts = range(0, most, each)
    if len(starts) > 1 and torch.is_grad_enabled():
        parts = [checkpoint(some, at, s, use_reentrant=False, preserve_rng_state=False) for at in starts]
    else:
        parts = [some(at, s) for at in starts]
    total = torch.stack(parts).sum(0) if parts else s.sum(1) * 0
    return torch.stack([total, (count * negative.sum(1)).to(s.dtype)], 1)


def _hard(panel: Panel, margin: float | None) -> Tensor:
    far = torch.where(panel.positive, panel.s, -math.inf).amax(1)  # (b,)
    near = torch.where(panel.negative, panel.s, math.inf).amin(1)  # (b,)
    counted = panel.positive.any(1) & panel.negative.any(1)
    loss = _loss(torch.where(counted, far - near, 0), margin)
    return torch.stack([torch.where(counted, loss, 0), counted.to(loss.dtype)], 1)


def _semi_hard(panel: Panel, margin: float | None) -> Tensor:
    order = _sorted(panel.s, panel.negative)  # (b, M)
    farther = torch.searchsorted(order.detach(), panel.s.detach(), right=True)  # (b, M) the first beyond a positive
    last = panel.negative.sum(1, keepdim=True) - 1  # (b, 1)
    negative = order.gather(1, torch.minimum(farther, last).clamp(min=0))  # (b, M)
    pairs = panel.positive & (last >= 0)
    return _summed(panel, _loss(torch.where(pairs, panel.s - negative, 0), margin), pairs)


def _distance_weighted(
    panel: Panel, margin: float | None, *, uniform: Tensor, features: int, euclidean: Callable[[Tensor], Tensor]
) -> Tensor:
    """uniform: (n, P), a draw for each anchor's first, second, … positive."""
    with torch.no_grad():
        edges = weights(euclidean(panel.s.double()), panel.negative, features).cumsum(1)  # (b, M)
        slot = (panel.positive.cumsum(1) - 1).clamp(0, uniform.shape[1] - 1)  # (b, M)
        u = uniform[panel.rows].gather(1, slot).double()  # (b, M), used at positives
        drawn = torch.searchsorted(edges, u * edges[:, -1:], right=True).clamp(max=edges.shape[1] - 1)  # (b, M)
    pairs = panel.positive & panel.negative.any(1, keepdim=True)
    return _summed(panel, _loss(torch.where(pairs, panel.s - panel.s.gather(1, drawn), 0), margin), pairs)


def weights(d: Tensor, negative: Tensor, features: int) -> Tensor:
    """How likely each negative is drawn, up to a factor a row: min(λ, 1/q(d)). (b, M) distances, (b, M) -> (b, M)"""
    d = d.clamp(NEAR, 2)
    log = (2 - features) * d.log() - (features - 3) / 2 * (1 - d * d / 4).clamp(min=1e-12).log()
    near = negative & (d < FAR)
    log = torch.where(near.any(1, keepdim=True), torch.where(near, log, -math.inf), torch.where(negative, 0, -math.inf))
    top = log.amax(1, keepdim=True)
    return torch.where(top.isfinite(), (log - top).exp(), 0)  # rows without a negative: 0


_MINING = {"all": _all, "hard": _hard, "semi-hard": _semi_hard, "distance-weighted": _distance_weighted}
_EUCLIDEAN: dict[str, Callable[[Tensor], Tensor]] = {  # from a distance of unit rows
    "euclidean": lambda s: s, "squared": lambda s: s.sqrt(), "cosine-distance": lambda s: (2 * s).clamp(min=0).sqrt(),
}  # fmt: skip


def _loss(difference: Tensor, margin: float | None) -> Tensor:
    """d(a,p) - d(a,n) to a triplet's loss."""
    if margin is None:
        return torch.logaddexp(difference, difference.new_zeros(()))
    return (difference + margin).relu()


def _sorted(s: Tensor, negative: Tensor) -> Tensor:
    """Distances to negatives, the nearest first, and infinity behind them. (b, M)"""
    return torch.where(negative, s, math.inf).sort(1).values


def _summed(panel: Panel, loss: Tensor, mask: Tensor, count: Tensor | int = 1) -> Tensor:
    """(b, M) losses of pairs and how many triplets each stands for -> (b, 2)"""
    both = [torch.where(mask, loss, 0).sum(1), torch.where(mask, count, 0).sum(1)]
    return torch.stack([x.to(panel.s.dtype) for x in both], 1)


def _uniform(given: Rows, generator: torch.Generator) -> Tensor:
    """(n, P) draws for this process's anchors, cut from those for all, so that processes do not change them."""
    ids, held = given.key_groups.unique(return_counts=True)
    at = torch.searchsorted(ids, given.groups.to(ids.dtype)).clamp(max=len(ids) - 1)  # (n,)
    itself = int(given.first is not None)
    count = torch.where(ids[at] == given.groups, held[at], 0) - itself
    count = count[count < held.sum() - itself]  # of anchors with a negative
    most = int(count.max()) if len(count) else 0
    check = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    told = dist.exchange([len(given.z), most, check], given.z.device)
    if len({c for *_, c in told}) > 1:
        raise UserError("generator differs between processes: seed it alike on all of them")
    anchors, most = sum(n for n, *_ in told), max(1, *(p for _, p, _ in told))
    drawn = torch.rand(anchors, most, generator=generator, device=generator.device)  # (ΣN, P)
    first = sum(n for n, *_ in told[: dist.rank()])
    return drawn[first : first + len(given.z)].to(given.z.device)


def _check(margin: float | None, mining: str, metric: str, generator: torch.Generator | None) -> None:
    if mining not in _MINING:
        raise UserError(f"unknown mining {mining!r}{nearest(mining, _MINING)}")
    if metric not in _EUCLIDEAN:
        raise UserError(f"unknown metric {metric!r}{nearest(metric, _EUCLIDEAN)}")
    number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if margin is not None and not (number and 0 <= margin < math.inf):
        raise UserError(f"margin must be a number of 0 or more, or None for the soft margin, got {margin!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UserError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator is None and mining == "distance-weighted":
        raise UserError("mining 'distance-weighted' draws: give generator=torch.Generator().manual_seed(…)")
