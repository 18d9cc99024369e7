"""Losses on the features of views: row i of each view's (N, d) is one sample. No negatives and no group ids.

Means, covariances and cross-correlations are sums over the rows of all processes, so every process returns the
loss of the whole batch, whatever its part of it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses.rows import agree, reduced, widened, wrong_embeddings

_BARLOW_EPS = 1e-5  # batch normalisation's, which the authors' code uses
_VICREG_EPS = 1e-4


def barlow_twins(a: Tensor, b: Tensor, *, off_diagonal: float = 0.005) -> Tensor:
    r"""Barlow Twins: the views' cross-correlation over the batch is pulled towards the identity.

    .. math:: L = \sum_i (1-C_{ii})^2 + \lambda\sum_i\sum_{j\ne i} C_{ij}^2,\qquad
              C_{ij} = \frac{\sum_n \hat a_{ni}\hat b_{nj}}{N}

    Equations 1 and 2 of Zbontar et al. 2021 (arXiv:2103.03230), where :math:`\hat a` is a feature less its mean, over
    :math:`\sqrt{\mathrm{var}+10^{-5}}` with the biased variance, as in the authors' code. A feature that is
    constant correlates 0 and costs 1.

    Args:
        a, b: (N, d) the two views' features, not normalised; bfloat16 and float16 are taken to float32.
        off_diagonal: λ ≥ 0.

    Raises ``UserError`` for fewer than two rows over all processes, shapes that differ, NaN or infinite values.

    >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> round(float(barlow_twins(z, z)), 2), round(float(barlow_twins(z, -z)), 2)
    (0.0, 8.0)
    """
    a, b = checked_views(("a", "b"), (a, b))
    _check_weight("off_diagonal", off_diagonal)
    with torch.autocast(a.device.type, enabled=False):
        n, (a, b) = _centred("barlow_twins", a, b)
        squares = dist.total(torch.stack([a.square().sum(0), b.square().sum(0)])) / n  # (2, d) biased variances
        cross = dist.total(a.T @ b) / n  # (d, d)
        scale = (squares + _BARLOW_EPS).rsqrt()  # (2, d)
        c = cross * scale[0][:, None] * scale[1][None, :]  # (d, d)
        return (1 - c.diagonal()).square().sum() + off_diagonal * _off_diagonal(c).square().sum()


def vicreg(
    a: Tensor, b: Tensor, *, similarity: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:  # fmt: skip
    r"""VICReg: views agree, each feature keeps a deviation of at least 1, features do not covary.

    .. math:: L = \lambda\,s(A,B) + \mu\,\tfrac12[v(A)+v(B)] + \nu\,[c(A)+c(B)]

              v(Z) = \frac1d\sum_j \max\left(0,\,1-\sqrt{\mathrm{Var}(z_j)+10^{-4}}\right),\quad
              c(Z) = \frac1d\sum_{i\ne j}[\mathrm{Cov}(Z)]_{ij}^2,\quad
              s(A,B) = \frac1{Nd}\sum_n\lVert a_n-b_n\rVert^2

    Bardes et al. 2021 (arXiv:2105.04906), equations 1-6; variance and covariance are unbiased (N - 1). As in the
    authors' code, whose coefficients the defaults are, s is a mean over the features too and the variance terms are
    averaged: equation 6 word for word with coefficients (λ, μ, ν) is
    ``vicreg(a, b, similarity=λ·d, variance=2·μ, covariance=ν)``.

    Args:
        a, b: (N, d) the two views' features, not normalised; bfloat16 and float16 are taken to float32.
        similarity, variance, covariance: λ, μ, ν ≥ 0.

    Raises ``UserError`` for fewer than two rows over all processes, shapes that differ, NaN or infinite values.

    >>> z = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
    >>> float(vicreg(z, z)), float(vicreg(z, z + 1))
    (0.0, 25.0)
    """
    a, b = checked_views(("a", "b"), (a, b))
    for name, weight in (("similarity", similarity), ("variance", variance), ("covariance", covariance)):
        _check_weight(name, weight)
    with torch.autocast(a.device.type, enabled=False):
        apart = (a - b).square().sum()
        n, both = _centred("vicreg", a, b)
        d = a.shape[1]
        s = dist.total(apart) / (n * d)
        covs = [dist.total(z.T @ z) / (n - 1) for z in both]  # (d, d) each
        v = sum(F.relu(1 - (c.diagonal() + _VICREG_EPS).sqrt()).mean() for c in covs) / 2
        c = sum(_off_diagonal(c).square().sum() for c in covs) / d
        return similarity * s + variance * v + covariance * c


def w_mse(
    *views: Tensor, size: int | None = None, iterations: int = 1, shrink: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    r"""W-MSE: each view is whitened over the batch, then the views of a sample are pulled together.

    .. math:: L = \frac{2}{V(V-1)}\sum_{u<v}\frac1N\sum_n \left(2-2\cos(W_u(x_{un}-\mu_u),\,W_v(x_{vn}-\mu_v))\right),
              \quad W^\top W = \Sigma^{-1}

    Ermolov et al. 2021 (arXiv:2007.06346). W is the inverse of the Cholesky factor of the (unbiased) covariance, in
    float64; each view has its own, as in the authors' code. A batch much larger than d whitens more stably in
    slices of ``size`` rows (at least 2d are wise), drawn at random, the same rows for all views; ``iterations``
    slicings are averaged. Where ``size`` does not divide N, slices are up to twice as large, as even as can be.

    Args:
        views: two or more (N, d), ``w_mse(a, b)``; bfloat16 and float16 are taken to float32.
        size: rows of a slice, all processes' together; None whitens over the whole batch.
        iterations: how many slicings.
        shrink: ε in (1 - ε)Σ + εI; 0 is the paper's, a small value lets d reach or pass the rows of a slice.
        generator: draws the slices; needed where there is more than one. The first process's decides.

    Raises ``UserError`` where a slice has not more rows than features, or the covariance of one is singular (a
    feature is constant, or follows from others), both with ``shrink=0``; and for bad input.

    >>> g = torch.Generator().manual_seed(0)
    >>> a, noise = torch.randn(64, 4, generator=g), torch.randn(64, 4, generator=g)
    >>> float(w_mse(a, 3 * a + 1)) < 1e-5 < float(w_mse(a, noise))
    True
    >>> float(w_mse(a, 2 * a, size=16, iterations=2, generator=g)) < 1e-5
    True
    """
    views = checked_views([f"views[{i}]" for i in range(len(views))], views, least=2)
    x = torch.stack(views)  # (V, n, d)
    counts = [n for (n,) in dist.exchange([x.shape[1]], x.device)]
    slices = _slices(sum(counts), x.shape[2], size, iterations, shrink)
    terms = []  # (n,) each: my rows', pair by pair
    with torch.autocast(x.device.type, enabled=False):
        for _ in range(iterations if slices > 1 else 1):
            for mine in _my_slices(counts, slices, generator, x.device):
                z = [widened(v, unit=True) for v in _whitened(x[:, mine], shrink)]  # V of (m, d)
                terms += [2 - 2 * (z[u] * z[v]).sum(1) for u in range(len(z)) for v in range(u + 1, len(z))]
        values = torch.cat(terms)
        return reduced(values, torch.ones_like(values), "mean")


def byol(p: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""BYOL's regression: the prediction turned towards the target network's projection.

    .. math:: \ell_n = \left\lVert\bar p_n-\bar t_n\right\rVert^2 = 2-2\cos(p_n,t_n)

    Grill et al. 2020 (arXiv:2006.07733), equation 2; equal to ``2 + 2 * simsiam(p, target)``. The paper adds
    the two directions: ``byol(p_a, t_b) + byol(p_b, t_a)``. No gradient goes to the target.

    Args:
        p: (N, d) predictions; normalised here. A row of zeros has cosine 0.
        target: (N, d) the other view's projection by the target network.
        reduction: ``"mean"`` over the rows of all processes (0 where there are none), ``"sum"`` or ``"none"`` (N,).

    Raises ``UserError`` for shapes that differ, NaN or infinite values.

    >>> p = torch.eye(2)
    >>> float(byol(p, p)), float(byol(p, -p)), float(byol(p, p.flip(0)))
    (0.0, 4.0, 2.0)
    """
    cosine = _cosine(("p", "target"), p, target)
    return reduced(2 - 2 * cosine, torch.ones_like(cosine), reduction)


def simsiam(p: Tensor, z: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""SimSiam's negative cosine similarity, no gradient to the second argument.

    .. math:: \ell_n = -\cos(p_n, \mathrm{stopgrad}(z_n))

    Chen & He 2021 (arXiv:2011.10566), equations 1 and 3; the paper's loss is symmetric:
    ``(simsiam(p_a, z_b) + simsiam(p_b, z_a)) / 2``.

    Args:
        p: (N, d) predictions; normalised here. A row of zeros has cosine 0.
        z: (N, d) the other view's projection.
        reduction: ``"mean"`` over the rows of all processes (0 where there are none), ``"sum"`` or ``"none"`` (N,).

    Raises ``UserError`` for shapes that differ, NaN or infinite values.

    >>> p_a = z_a = torch.eye(2)
    >>> p_b = z_b = -torch.eye(2)
    >>> float((simsiam(p_a, z_b) + simsiam(p_b, z_a)) / 2)
    1.0
    """
    cosine = _cosine(("p", "z"), p, z)
    return reduced(-cosine, torch.ones_like(cosine), reduction)


def mmcr(views: Sequence[Tensor], *, weight: float = 0.0) -> Tensor:
    r"""Maximum manifold capacity: the samples' centroids fill space, and each sample's views stay together.

    .. math:: L = -\lVert C\rVert_* + \frac{\lambda}{N}\sum_n\lVert Z_n\rVert_*,\qquad
              C_n = \frac1V\sum_v z_{vn}

    Yerxa et al. 2023 (arXiv:2303.03307): features are brought to length one, :math:`Z_n` is (V, d), C is (N, d)
    over the whole batch, and :math:`\lVert\cdot\rVert_*` sums singular values. Each process holds all of C.

    Args:
        views: two or more (N, d); normalised here, in float32 or better.
        weight: λ ≥ 0; with 0 C's norm alone rewards views that agree.

    Raises ``UserError`` for no rows at all, shapes that differ, NaN or infinite values.

    >>> z = torch.eye(3)
    >>> round(float(mmcr([z, z])), 4), round(float(mmcr([z, z], weight=1.0)), 4)
    (-3.0, -1.5858)
    """
    views = list(views)
    views = checked_views([f"views[{i}]" for i in range(len(views))], views, least=2)
    _check_weight("weight", weight)
    with torch.autocast(views[0].device.type, enabled=False):
        z = torch.stack([widened(v, unit=True) for v in views], 1)  # (N, V, d)
        everyone = dist.gather(z.mean(1))  # (ΣN, d)
        if len(everyone) == 0:
            raise UserError("mmcr needs at least one row over all processes, got 0")
        loss = -torch.linalg.svdvals(everyone).sum()
        if weight:
            loss = loss + weight * dist.total(torch.linalg.svdvals(z).sum()) / len(everyone)
        return loss


def checked_views(names: Sequence[str], views: Sequence[Tensor], least: int = 1) -> list[Tensor]:
    """Views of one batch, (N, d) floats of one shape, widened; ``UserError`` on all processes if wrong on one."""
    error = f"got {len(views)} views: give at least {least}" if len(views) < least else None
    for name, x in zip(names, views):
        error = error or wrong_embeddings(name, x)
        if error is None and (x.shape != views[0].shape or x.device != views[0].device):
            told = [f"{n} is {tuple(v.shape)} on {v.device}" for n, v in ((names[0], views[0]), (name, x))]
            error = f"{' and '.join(told)}: rows with the same index are views of one sample, give the same shape"
    agree(error, views[0] if len(views) else torch.empty(0))
    double = any(x.dtype == torch.float64 for x in views)
    return [x.double() if double else widened(x, unit=False) for x in views]


def shared_seed(generator: torch.Generator, device: torch.device) -> int:
    """A seed that all processes have in common, drawn by the first one's generator (each draws, so all move on)."""
    drawn = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return dist.exchange([drawn], device)[0][0]


def _centred(loss: str, *views: Tensor) -> tuple[int, list[Tensor]]:
    """How many rows all processes hold, and the views (N, d) less their mean over them."""
    n = sum(c for (c,) in dist.exchange([len(views[0])], views[0].device))
    if n < 2:
        raise UserError(f"{loss} needs at least 2 rows over all processes for a variance, got {n}")
    means = dist.total(torch.stack([x.sum(0) for x in views])) / n  # (V, d)
    return n, [x - mean for x, mean in zip(views, means)]


def _off_diagonal(c: Tensor) -> Tensor:
    """(d, d) with a diagonal of 0."""
    return c - torch.diag(c.diagonal())


def _cosine(names: tuple[str, str], p: Tensor, target: Tensor) -> Tensor:
    """(n,) cosines, without gradient to the target."""
    p, target = checked_views(names, (p, target))
    with torch.autocast(p.device.type, enabled=False):
        return (widened(p, unit=True) * widened(target.detach(), unit=True)).sum(1)


def _slices(n: int, d: int, size: int | None, iterations: int, shrink: float) -> int:
    """How many slices of at least ``size`` rows n rows give, checked."""
    for name, value in (("size", size), ("iterations", iterations)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name} must be a whole number above 0, got {value!r}")
    _check_weight("shrink", shrink)
    if shrink > 1:
        raise UserError(f"shrink must be between 0 and 1, got {shrink!r}")
    if size is not None and size > n:
        raise UserError(f"size={size} rows a slice, but the batch has {n} over all processes: give a smaller size")
    rows, least = size or n, 2 if shrink else d + 1
    if rows < least:
        held = f"size={size}" if size else f"a batch of {n} rows"
        raise UserError(f"{held} is too small to whiten {d} features: give at least {least} rows (better {2 * d}), "
                        "or fewer features, or shrink=0.01")  # fmt: skip
    return n // rows


def _my_slices(counts: list[int], slices: int, generator: torch.Generator | None, device: torch.device) -> list[Tensor]:
    """Which of my rows each slice of the whole batch holds, as indices."""
    mine = slice(sum(counts[: dist.rank()]), sum(counts[: dist.rank() + 1]))
    if slices == 1:
        return [torch.arange(mine.stop - mine.start, device=device)]
    if generator is None:
        raise UserError(f"{slices} slices are drawn at random: give a generator, torch.Generator().manual_seed(…)")
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(shared_seed(generator, device)))
    of = torch.empty_like(order)  # (ΣN,) the slice of each row
    for i, part in enumerate(order.tensor_split(slices)):
        of[part] = i
    return [(of[mine] == i).nonzero()[:, 0].to(device) for i in range(slices)]


def _whitened(x: Tensor, shrink: float) -> Tensor:
    """Rows of mean 0 and covariance I over all processes, each view by itself. (V, m, d) -> (V, m, d)"""
    m = sum(c for (c,) in dist.exchange([x.shape[1]], x.device))
    mean = dist.total(x.sum(1, keepdim=True)) / m  # (V, 1, d)
    x = x - mean
    cov = dist.total(x.mT @ x) / (m - 1)  # (V, d, d)
    eye = torch.eye(x.shape[2], dtype=torch.float64, device=x.device)
    factor, _ = torch.linalg.cholesky_ex((1 - shrink) * cov.double() + shrink * eye)  # (V, d, d)
    if not shrink and not torch.compiler.is_compiling():
        _check_factor(factor.detach(), cov.detach(), mean.detach())
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)  # (V, d, d)
    return x @ inverse.to(x.dtype).mT


def _check_factor(factor: Tensor, cov: Tensor, mean: Tensor) -> None:
    """Raise where what is left of a feature, after those before it, is within rounding of nothing."""
    eps = torch.finfo(cov.dtype).eps
    left, var = factor.diagonal(dim1=1, dim2=2).square(), cov.diagonal(dim1=1, dim2=2)  # (V, d)
    bad = ~(left > 16 * eps * var) | ~(var > (16 * eps * mean[:, 0]) ** 2)  # NaN where the factor failed
    if bool(bad.any()):
        view, feature = bad.nonzero()[0].tolist()
        raise UserError(f"views[{view}] cannot be whitened: feature {feature} is constant or follows from those before "
                        "it; give more rows a slice, fewer features, or shrink=0.01")  # fmt: skip


def _check_weight(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (value >= 0 and math.isfinite(value)):
        raise UserError(f"{name} must be a number of at least 0, got {value!r}")
