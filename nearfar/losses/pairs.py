"""Losses on pairs: each pair of an anchor and a candidate by itself, pulled where they share an id, else pushed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar import dist
from nearfar.errors import UserError, nearest
from nearfar.losses.panels import Panel, by_panels, masked_lse, masked_mean
from nearfar.losses.rows import (
    check_number,
    check_setting,
    check_temperature,
    reduced,
    rows,
    scalar,
    widened,
    wrong_embeddings,
)

FLOOR = -1e30  # stands for the logarithm of nothing: finite, so that no gradient is NaN
_UNIT = {"euclidean": False, "cosine-distance": True}


def margin_contrastive(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    margin: float = 1.0, metric: str = "euclidean", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Margin contrastive: positives together, negatives at least a margin apart.

    .. math:: \ell_i = \frac1{|P_i|}\sum_{p\in P_i} \tfrac12 D_{ip}^2
              + \frac1{|N_i|}\sum_{n\in N_i} \tfrac12 \max(0, m - D_{in})^2

    Hadsell, Chopra & LeCun 2006 (Dimensionality Reduction by Learning an Invariant Mapping), which sums
    over labelled pairs. Here positives and negatives weigh half each however many there are of either: with as many
    of one as of the other the plain mean over pairs is half of this loss; with a of one and b of the other, for every
    anchor, it is (a · first term + b · second term) / (a + b).

    Args:
        z: (n, d) embeddings. groups: (n,) ids. keys: (m, d), key_groups: (m,) the candidates, else the rows.
        margin: m > 0, in the metric's units.
        metric: ``"euclidean"`` on the rows as they are, or ``"cosine-distance"``, 1 - cos, from 0 to 2.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    An anchor counts where it has a positive or a negative; a side without any adds 0. Raises ``UserError``.

    >>> z = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    >>> margin_contrastive(z, torch.tensor([0, 0, 1]), reduction="none")
    tensor([0.6250, 0.5000, 0.0625])
    """
    if metric not in _UNIT:
        raise UserError(f"unknown metric {metric!r}{nearest(metric, _UNIT)}")
    check_setting(margin, "margin")

    def fn(p: Panel) -> Tensor:
        near = masked_mean(0.5 * p.s.square(), p.positive)  # (b,)
        far = masked_mean(0.5 * (margin - p.s).clamp(min=0).square(), p.negative)  # (b,)
        return beside(near + far, p.candidates.any(1))

    given = rows(z, groups, keys, key_groups, unit=_UNIT[metric])
    return reduced(*by_panels(fn, given, metric=metric, width=4).unbind(1), reduction)


def logistic(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.1, bias: float | Tensor = 0.0, positive_weight: float = 1.0,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Binary cross-entropy on pairs: whether the two belong to the same class.

    .. math:: \ell_i = -\frac1{|C_i|}\Big[w\sum_{p\in P_i}\log p_{ip} + \sum_{n\in N_i}\log(1-p_{in})\Big],
              \quad p_{ij} = \sigma(\cos(z_i,z_j)/\tau + b),\quad C_i = P_i\cup N_i

    :math:`p_{ij}` is the model's probability that i and j belong together (:func:`pair_probability`). SigLIP sums
    the same terms over the candidates (Zhai et al. 2023, arXiv:2303.15343); here it is their mean. With many
    negatives to a positive, begin with a bias near the log of the odds, or weigh the positives.

    Args:
        z: (n, d) embeddings; normalised here. groups: (n,) ids. keys: (m, d), key_groups: (m,) the candidates.
        temperature: τ > 0. bias: b. Numbers, or tensors of one value that learn.
        positive_weight: w > 0, the positives' weight (``pos_weight`` of PyTorch's own).
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    An anchor counts where it has a candidate. Raises ``UserError``.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(logistic(z, torch.tensor([0, 1, 0, 1]), temperature=0.5)), 4)
    0.5044
    """
    check_temperature(temperature)
    check_number(bias, "bias")
    check_setting(positive_weight, "positive_weight")

    def fn(p: Panel, temperature: Tensor, bias: Tensor) -> Tensor:
        logits = p.s / temperature + bias  # (b, M)
        terms = -F.logsigmoid(torch.where(p.positive, logits, -logits))  # (b, M)
        terms = torch.where(p.positive, positive_weight * terms, terms)
        return beside(masked_mean(terms, p.candidates), p.candidates.any(1))

    given = rows(z, groups, keys, key_groups)
    learnt = scalar(temperature, given.z), scalar(bias, given.z)
    return reduced(*by_panels(fn, given, *learnt, width=6).unbind(1), reduction)


def pair_probability(
    a: Tensor, b: Tensor, temperature: float | Tensor = 0.1, bias: float | Tensor = 0.0
) -> Tensor:  # fmt: skip
    r"""The probability that row i of ``a`` and row i of ``b`` belong together, as :func:`logistic` learns it.

    .. math:: p_i = \sigma(\cos(a_i, b_i)/\tau + b)

    Args:
        a, b: (n, d) embeddings; normalised here. temperature, bias: those of the training.

    Returns (n,) between 0 and 1, in float32 or better. Raises ``UserError``.

    >>> pair_probability(torch.eye(2), torch.tensor([[2.0, 0.0], [3.0, 0.0]]), temperature=0.5)
    tensor([0.8808, 0.5000])
    """
    check_temperature(temperature)
    check_number(bias, "bias")
    error = wrong_embeddings("a", a) or wrong_embeddings("b", b)
    if error is None and a.shape != b.shape:
        error = f"a is {tuple(a.shape)} and b is {tuple(b.shape)}: give pairs, row by row"
    if error:
        raise UserError(error)
    with torch.autocast(a.device.type, enabled=False):
        cosine = (widened(a, True) * widened(b, True)).sum(1)  # (n,)
        return (cosine / scalar(temperature, cosine) + scalar(bias, cosine)).sigmoid()


def spectral(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Spectral contrastive: its minimum is the spectral decomposition of the graph that positives make.

    .. math:: \ell_i = -\frac2{|P_i|}\sum_{p\in P_i} z_i^\top z_p + \frac1{|N_i|}\sum_{n\in N_i} (z_i^\top z_n)^2

    HaoChen et al. 2021 (arXiv:2106.04156), equation 6, with negatives for its independent draws. Rows are taken as
    they are: the loss sets their length itself. The authors' code shortens rows longer than √μ to √μ first, and
    divides the loss by μ; do so to z where you want their numbers.

    Args:
        z: (n, d) embeddings. groups: (n,) ids. keys: (m, d), key_groups: (m,) the candidates, else the rows.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    Anchors without a positive are left out of the mean; without negatives the second term is 0, and nothing then
    bounds the length. Raises ``UserError``.

    >>> z = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0]])
    >>> spectral(z, torch.tensor([0, 0, 1]), reduction="none")
    tensor([-3., -4.,  0.])
    """

    def fn(p: Panel) -> Tensor:
        pull, push = masked_mean(p.s, p.positive), masked_mean(p.s.square(), p.negative)  # (b,)
        return beside(push - 2 * pull, p.positive.any(1))

    given = rows(z, groups, keys, key_groups, unit=False)
    return reduced(*by_panels(fn, given, width=3).unbind(1), reduction)


def alignment_uniformity(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    alpha: float = 2.0, t: float = 2.0, weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """:func:`alignment` + ``weight`` · :func:`uniformity`, in one pass. Wang & Isola 2020 (arXiv:2005.10242).

    Args: as theirs; weight: λ, above 0.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(alignment_uniformity(z, torch.tensor([0, 1, 0, 1]))), 4)
    -4.0
    """
    check_setting(alpha, "alpha")
    check_setting(t, "t")
    check_temperature(weight, "weight")
    given = rows(z, groups, keys, key_groups)
    both = by_panels(lambda p: torch.cat([_near(p, alpha), _far(p, t)], 1), given, metric="squared", width=6)  # (n, 4)
    return _mean_over_pairs(both[:, :2]) + weight * _log_mean_over_pairs(both[:, 2:])


def alignment(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    alpha: float = 2.0,
) -> Tensor:  # fmt: skip
    r"""How far positives lie from each other on the sphere: 0 where they coincide.

    .. math:: \mathop{\mathbb E}_{(i,p):\,p\in P_i} \lVert z_i - z_p\rVert^\alpha

    Wang & Isola 2020 (arXiv:2005.10242), the mean over all positive pairs of all processes.

    Args:
        z: (n, d) embeddings; normalised here. groups: (n,) ids. keys: (m, d), key_groups: (m,) the candidates.
        alpha: α > 0.

    0 with a gradient of 0 where there is no positive pair. Raises ``UserError``.

    >>> float(alignment(torch.eye(2), torch.tensor([0, 0])))
    2.0
    """
    check_setting(alpha, "alpha")
    given = rows(z, groups, keys, key_groups)
    return _mean_over_pairs(by_panels(lambda p: _near(p, alpha), given, metric="squared", width=4))


def uniformity(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    t: float = 2.0,
) -> Tensor:  # fmt: skip
    r"""How evenly different groups spread over the sphere: 0 where all coincide, at least -4t.

    .. math:: \log \mathop{\mathbb E}_{(i,n):\,n\in N_i} e^{-t\lVert z_i - z_n\rVert^2}

    Wang & Isola 2020 (arXiv:2005.10242). The logarithm is of the mean over the pairs of *all* processes, taken in the
    log domain. The paper's takes all pairs within one view, where no two rows share an image, and the mean of the two
    views' values; here with both views in z, pairs across views count too and there is one logarithm. Calling this
    on each view and taking the mean gives the paper's.

    Args:
        z: (n, d) embeddings; normalised here. groups: (n,) ids. keys: (m, d), key_groups: (m,) the candidates.
        t: t > 0.

    0 with a gradient of 0 where there is no pair of different groups. Raises ``UserError``.

    >>> round(float(uniformity(torch.eye(2), torch.tensor([0, 1]))), 4)
    -4.0
    """
    check_setting(t, "t")
    given = rows(z, groups, keys, key_groups)
    return _log_mean_over_pairs(by_panels(lambda p: _far(p, t), given, metric="squared", width=4))


def _near(p: Panel, alpha: float) -> Tensor:
    """(b, 2): the mean of D^α over an anchor's positives, how many they are"""
    same = p.s <= 1e-12  # a power below 1 has no slope at 0: taken as 0 there
    power = torch.where(same, 0, torch.where(same, 1, p.s).pow(alpha / 2))  # (b, M)
    return beside(masked_mean(power, p.positive), p.positive.sum(1))


def _far(p: Panel, t: float) -> Tensor:
    """(b, 2): log Σ exp(-t D²) over an anchor's negatives, how many they are"""
    return beside(masked_lse(-t * p.s, p.negative).clamp(min=FLOOR), p.negative.sum(1))


def _mean_over_pairs(near: Tensor) -> Tensor:
    return reduced(*near.unbind(1), "mean")


def _log_mean_over_pairs(far: Tensor) -> Tensor:
    lse, count = far.unbind(1)
    with torch.autocast(far.device.type, enabled=False):
        mine = lse.logsumexp(0).clamp(min=FLOOR)  # ()
        everyone = dist.gather(mine.reshape(1), [1] * dist.world()).logsumexp(0)  # ()
        pairs = dist.total(count.detach().sum(dtype=torch.float64))
        return torch.where(pairs > 0, everyone - pairs.clamp(min=1).log().to(lse.dtype), 0)


def beside(values: Tensor, counted: Tensor) -> Tensor:
    """Values with what says which of them count. (b,), (b,) -> (b, 2)"""
    return torch.stack([values, counted.to(values.dtype)], 1)
