"""Losses on given pairs: row i of ``a`` and row i of ``b``, with how alike they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar import dist
from nearfar.errors import UserError, nearest
from nearfar.losses.pairs import FLOOR
from nearfar.losses.rows import (
    agree,
    check_number,
    check_reduction,
    check_setting,
    check_temperature,
    reduced,
    scalar,
    widened,
    wrong_embeddings,
)

METRICS = ("euclidean", "cosine-distance")


def cosent(a: Tensor, b: Tensor, scores: Tensor, *, temperature: float | Tensor = 0.05) -> Tensor:
    r"""CoSENT: of two pairs, the one with the higher score should have the larger cosine.

    .. math:: \log\Big(1 + \sum_{s_i > s_j} e^{(\cos_j - \cos_i)/\tau}\Big),\quad \cos_i = \cos(a_i, b_i)

    Su 2022 (kexue.fm/archives/8847); Huang et al. 2024 (CoSENT, doi:10.1109/TASLP.2024.3402087). Only the order of the
    scores counts, and pairs of equal scores are not held against each other. The sum over pairs of pairs, of all
    processes, takes one sort and a running log-sum-exp: memory O(n), time O(n log n). A sum, so it grows with the
    batch.

    Args:
        a, b: (n, d) embeddings; normalised here. scores: (n,) numbers on any scale.
        temperature: τ > 0, a number or a tensor of one value that learns; 1/τ is sentence-transformers' ``scale``.

    Returns (), 0 with a gradient of 0 where all scores are equal. Raises ``UserError``.

    >>> a, b = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]])
    >>> round(float(cosent(a, b, torch.tensor([0.0, 5.0]), temperature=1.0)), 4)  # log(1 + e)
    1.3133
    """
    check_temperature(temperature)
    a, b, scores = _pairs(a, b, scores, "scores", unit=True)
    with torch.autocast(a.device.type, enabled=False):
        return _ordered((a * b).sum(1), scores, temperature)


def angle(a: Tensor, b: Tensor, scores: Tensor, *, temperature: float | Tensor = 0.05) -> Tensor:
    r"""AnglE: :func:`cosent` with the angle between complex vectors in the cosine's place.

    .. math:: \theta_i = \frac{\big|\mathrm{Re}\,q_i + \mathrm{Im}\,q_i\big|}{\lVert a_i\rVert\lVert b_i\rVert},\quad
              q_i = \sum_k \tilde a_{ik}\,\overline{\tilde b_{ik}},\quad \tilde x_k = x_k + i\,x_{k+d/2}

    Li & Li 2023 (AnglE, arXiv:2309.12871), as the authors' code and sentence-transformers take it: the first half of a
    row is its real part, the second the imaginary one (an odd row has a 0 added), and θ counts as a similarity. It is
    not symmetric in a and b. The cosine's gradient is small near ±1; this one's is not.

    Args: as of :func:`cosent`. Returns (). Raises ``UserError``.

    >>> a, b = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]])
    >>> round(float(angle(a, b, torch.tensor([0.0, 5.0]), temperature=1.0)), 4)  # both have θ = 1: log(1 + 1)
    0.6931
    """
    check_temperature(temperature)
    a, b, scores = _pairs(a, b, scores, "scores", unit=True)
    with torch.autocast(a.device.type, enabled=False):
        if a.shape[1] % 2:
            a, b = F.pad(a, (0, 1)), F.pad(b, (0, 1))  # (n, d + 1)
        (re_a, im_a), (re_b, im_b) = a.chunk(2, 1), b.chunk(2, 1)  # (n, d / 2) each
        real = (re_a * re_b + im_a * im_b).sum(1)  # (n,), the cosine
        imaginary = (im_a * re_b - re_a * im_b).sum(1)  # (n,)
        return _ordered((real + imaginary).abs(), scores, temperature)


def pair_logistic(
    a: Tensor, b: Tensor, scores: Tensor, *, temperature: float | Tensor = 0.1, bias: float | Tensor = 0.0,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Binary cross-entropy with soft targets: the chance that a pair belongs together should be its score.

    .. math:: \ell_i = -s_i\log p_i - (1 - s_i)\log(1 - p_i),\quad p_i = \sigma(\cos(a_i, b_i)/\tau + b)

    :func:`nearfar.losses.logistic` on given pairs; p is :func:`nearfar.losses.pair_probability`.

    Args:
        a, b: (n, d) embeddings; normalised here. scores: (n,) in [0, 1].
        temperature: τ > 0. bias: b. Numbers, or tensors of one value that learn.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    Raises ``UserError``.

    >>> a, b = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]])
    >>> pair_logistic(a, b, torch.tensor([1.0, 0.5]), temperature=0.5, reduction="none")
    tensor([0.1269, 0.6931])
    """
    check_temperature(temperature)
    check_number(bias, "bias")
    check_reduction(reduction)
    a, b, scores = _pairs(a, b, scores, "scores", unit=True, low=0)
    with torch.autocast(a.device.type, enabled=False):
        logits = (a * b).sum(1) / scalar(temperature, a) + scalar(bias, a)  # (n,)
        terms = F.softplus(logits) - scores.to(a.dtype) * logits  # (n,)
    return reduced(terms, torch.ones_like(terms), reduction)


def pair_margin(
    a: Tensor, b: Tensor, same: Tensor, *, margin: float = 1.0, metric: str = "euclidean", reduction: str = "mean"
) -> Tensor:  # fmt: skip
    r"""Contrastive loss on labelled pairs: those that belong together near, others at least a margin apart.

    .. math:: \ell_i = y_i \tfrac12 D_i^2 + (1 - y_i) \tfrac12 \max(0, m - D_i)^2

    Hadsell, Chopra & LeCun 2006 (Dimensionality Reduction by Learning an Invariant Mapping), equation 4;
    sentence-transformers' ContrastiveLoss with ``metric="cosine-distance", margin=0.5``.

    Args:
        a, b: (n, d) embeddings. same: (n,) 1 where the two belong together, else 0 (or booleans).
        margin: m > 0, in the metric's units.
        metric: ``"euclidean"`` on the rows as they are, or ``"cosine-distance"``, 1 - cos, from 0 to 2.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    Raises ``UserError``.

    >>> a, b = torch.zeros(2, 2), torch.tensor([[1.0, 0], [0.5, 0]])
    >>> pair_margin(a, b, torch.tensor([1, 0]), reduction="none")
    tensor([0.5000, 0.1250])
    """
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}{nearest(metric, METRICS)}")
    check_setting(margin, "margin")
    check_reduction(reduction)
    unit = metric == "cosine-distance"
    a, b, same = _pairs(a, b, same, "same", unit=unit, low=0, whole=True)
    with torch.autocast(a.device.type, enabled=False):
        apart = 1 - (a * b).sum(1) if unit else (a - b).norm(dim=1)  # (n,)
        terms = 0.5 * torch.where(same > 0, apart.square(), (margin - apart).clamp(min=0).square())  # (n,)
    return reduced(terms, torch.ones_like(terms), reduction)


def pair_regression(a: Tensor, b: Tensor, scores: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""Squared error of the cosine: it should be the score.

    .. math:: \ell_i = (\cos(a_i, b_i) - s_i)^2

    Reimers & Gurevych 2019 (Sentence-BERT, arXiv:1908.10084), §3; sentence-transformers' CosineSimilarityLoss.

    Args:
        a, b: (n, d) embeddings; normalised here. scores: (n,) in [-1, 1].
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    Raises ``UserError``.

    >>> a, b = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]])
    >>> pair_regression(a, b, torch.tensor([0.5, 0.0]))
    tensor(0.1250)
    """
    check_reduction(reduction)
    a, b, scores = _pairs(a, b, scores, "scores", unit=True, low=-1)
    with torch.autocast(a.device.type, enabled=False):
        terms = ((a * b).sum(1) - scores.to(a.dtype)).square()  # (n,)
    return reduced(terms, torch.ones_like(terms), reduction)


def matryoshka(loss: Callable[..., Tensor], widths: Sequence[int], *embeddings: Tensor) -> Tensor:
    r"""The mean of a loss over embeddings cut to their first dimensions, so that a prefix is an embedding, too.

    .. math:: \frac1{|W|}\sum_{w\in W} \ell(z_{:,1:w}, \dots)

    Kusupati et al. 2022 (Matryoshka representation learning, arXiv:2205.13147), equation 1 with equal weights; there
    and in sentence-transformers it is the sum. Losses by cosine bring each prefix to length one by themselves.

    Args:
        loss: takes the embeddings and nothing else, and gives a tensor; bind groups or scores to it.
        widths: how many first dimensions, each between 1 and d.
        embeddings: (n, d) each.

    Raises ``UserError``.

    >>> from nearfar.losses import info_nce
    >>> z, groups = torch.randn(8, 6), torch.arange(8) // 2
    >>> both = matryoshka(lambda z: info_nce(z, groups), (3, 6), z)
    >>> torch.allclose(both, (info_nce(z[:, :3], groups) + info_nce(z, groups)) / 2)
    True
    """
    narrowest = min((z.shape[-1] for z in embeddings), default=0)
    bad = [w for w in widths if isinstance(w, bool) or not isinstance(w, int) or not 1 <= w <= narrowest]
    if bad or not len(widths):
        raise UserError(f"widths {tuple(widths)}: give one or more whole numbers from 1 to {narrowest}, "
                        "the embeddings' width")  # fmt: skip
    return torch.stack([loss(*(z[..., :w] for z in embeddings)) for w in widths]).mean(0)  # (W, …) -> (…)


def _pairs(
    a: Tensor, b: Tensor, values: Tensor, name: str, *, unit: bool, low: float | None = None, whole: bool = False
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Checked pairs of this process, float32 or better, and their values, on all processes wrong where one is."""
    error = wrong_embeddings("a", a) or wrong_embeddings("b", b)
    if error is None and a.shape != b.shape:
        error = f"a is {tuple(a.shape)} and b is {tuple(b.shape)}: give pairs, row by row"
    if error is None and b.device != a.device:
        error = f"b is on {b.device} and a on {a.device}: move one of them"
    error = error or _wrong_values(name, values, a, low, whole)
    double = error is None and torch.float64 in (a.dtype, b.dtype)
    agree(error, a, () if error else (a.shape[1], double, False))
    a, b = widened(a, unit), widened(b, unit)
    values = values.detach().to(torch.float64 if values.dtype not in (torch.float32, torch.float64) else values.dtype)
    return (a.double(), b.double(), values) if double else (a, b, values)


def _wrong_values(name: str, values: Tensor, a: Tensor, low: float | None, whole: bool) -> str | None:
    """What is wrong with the pairs' values, or None."""
    if not isinstance(values, Tensor) or values.is_complex():
        return f"{name} must be a tensor of numbers, got {getattr(values, 'dtype', type(values).__name__)}"
    if values.shape != a.shape[:1]:
        return f"there are {len(a)} pairs and {name} is {tuple(values.shape)}: give one a pair, ({len(a)},)"
    if values.device != a.device:
        return f"{name} is on {values.device} and a on {a.device}: move one of them"
    if torch.compiler.is_compiling():  # no look at values inside a compiled graph
        return None
    if not bool(values.isfinite().all()):
        return f"{name} holds NaN or infinite values"
    odd = (values != 0) & (values != 1) if whole else (values < low) | (values > 1) if low is not None else None
    if odd is not None and bool(odd.any()):
        kind = "be 0 or 1" if whole else f"lie between {low} and 1"
        return f"{name} must {kind}, got {float(values[odd][0]):g}"
    return None


def _ordered(alike: Tensor, scores: Tensor, temperature: float | Tensor) -> Tensor:
    """log(1 + Σ exp((alike_j - alike_i)/τ)) over all i, j of all processes with s_i > s_j. (n,), (n,) -> ()"""
    if dist.world() > 1:
        counts = [n for (n,) in dist.exchange([len(alike)], alike.device)]
        alike, scores = dist.gather(alike, counts), dist.gather(scores, counts)  # (ΣB,)
    scores, order = scores.sort(stable=True)  # rising
    x = alike[order] / scalar(temperature, alike)  # (N,)
    if not len(x):
        return x.sum()
    above = (-x).flip(0).logcumsumexp(0)  # (N,): [k] over the k + 1 highest scores
    higher = len(x) - torch.searchsorted(scores, scores, right=True)  # (N,): how many scores are above each
    terms = torch.where(higher > 0, x + above[(higher - 1).clamp(min=0)], FLOOR)  # (N,)
    return torch.cat([terms, terms.new_zeros(1)]).logsumexp(0)
