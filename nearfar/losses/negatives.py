"""Softmax losses that treat positives and negatives apart: each positive against negatives alone, decoupled,
debiased, hard negatives reweighted. All on panels (:mod:`nearfar.losses.panels`), in log domain throughout."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses.engine import tally
from nearfar.losses.panels import Panel, by_panels, masked_lse, masked_mean
from nearfar.losses.rows import Rows, check_reduction, check_setting, check_temperature, reduced, rows
from nearfar.losses.softmax import _scale


def n_pair(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *, l2: float = 0.0,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Multi-class N-pair loss: each positive pair against the anchor's negatives, by dot product.

    .. math:: \ell_i = \frac1{|P(i)|}\sum_{p\in P(i)}\log\Big(1+\sum_{n\in N(i)}\exp(z_i\cdot k_n - z_i\cdot k_p)\Big)
              + \lambda\|z_i\|^2

    Sohn 2016 (NeurIPS, *Improved Deep Metric Learning with Multi-class N-pair Loss Objective*): there the
    anchors are one member of each pair and the keys the other; without keys the rows are held against each other.
    The paper regularises the rows' length, which a dot product leaves free: ``l2`` is its λ.

    Args:
        z, groups, keys, key_groups: as for :func:`nearfar.losses.info_nce`; rows are taken as they are.
        l2: λ ≥ 0. reduction: ``"mean"`` over anchors with a positive, ``"sum"`` or ``"none"``.

    >>> a = torch.eye(2)
    >>> round(float(n_pair(a, torch.arange(2), a, torch.arange(2))), 4)
    0.3133
    """
    if not l2 >= 0:
        raise UserError(f"l2 must not be negative, got {l2}")
    check_reduction(reduction)
    given = rows(z, groups, keys, key_groups, unit=False)
    values = by_panels(_each_positive, given, _scale(1.0, given.z))
    values = values + l2 * (given.z * given.z).sum(1) if l2 else values
    return reduced(values, _has_positive(given), reduction)


def vince(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.07, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Multi-pair NCE: every positive is a problem of its own against the negatives, not against other positives.

    .. math:: \ell_i = -\frac1{|P(i)|}\sum_{p\in P(i)}\log\frac{e^{s_{ip}}}{e^{s_{ip}}+\sum_{n\in N(i)}e^{s_{in}}},
              \quad s=\cos/\tau

    VINCE, Gordon et al. 2020 (arXiv:2003.07990). With one positive a row it is InfoNCE; with several,
    SupCon's denominators hold the other positives and these do not. Arguments as for :func:`nearfar.losses.info_nce`.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(vince(z, torch.tensor([0, 1, 0, 1]), temperature=0.5)), 4)
    0.2395
    """
    check_temperature(temperature)
    given = rows(z, groups, keys, key_groups)
    values = by_panels(_each_positive, given, _scale(temperature, given.z))
    return reduced(values, _has_positive(given), reduction)


def _each_positive(p: Panel, scale: Tensor) -> Tensor:
    s = p.s * scale
    return masked_mean(F.softplus(masked_lse(s, p.negative)[:, None] - s), p.positive)


def dcl(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Decoupled contrastive loss: NT-Xent without the positives in the denominator, so that it never saturates.

    .. math:: \ell_i = -\frac1{|P(i)|}\sum_{p\in P(i)} s_{ip} + \log\sum_{n\in N(i)}e^{s_{in}},\quad s=\cos/\tau

    Yeh et al. 2022 (arXiv:2110.06848), equation 6. It may be negative. An anchor counts where it has a positive and a
    negative. Arguments as for :func:`vince`.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(dcl(z, torch.tensor([0, 1, 0, 1]), temperature=0.5)), 4)
    -1.3069
    """
    check_temperature(temperature)
    given = rows(z, groups, keys, key_groups)
    values = by_panels(_decoupled, given, _scale(temperature, given.z))
    return reduced(values, _has_both(given), reduction)


def _decoupled(p: Panel, scale: Tensor) -> Tensor:
    s = p.s * scale
    return masked_lse(s, p.negative) - masked_mean(s, p.positive)


def dclw(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.1, sigma: float = 0.5, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Decoupled contrastive loss with von Mises-Fisher weights: positives far apart weigh more.

    .. math:: \ell_i = -\frac1{|P(i)|}\sum_{p\in P(i)} w_{ip}s_{ip} + \log\sum_{n\in N(i)}e^{s_{in}},\quad
              w_{ip} = 2-\frac{e^{\cos_{ip}/\sigma}}{\mathbb E_{jp}\,e^{\cos_{jp}/\sigma}}

    Yeh et al. 2022 (arXiv:2110.06848); the expectation is over all positive pairs of all processes. The
    weights are taken as constants, without gradient. Arguments as for :func:`dcl`.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(dclw(z, torch.tensor([0, 1, 0, 1]), temperature=0.5)), 4)
    -1.3069
    """
    check_temperature(temperature)
    check_setting(sigma, "sigma")
    given = rows(z, groups, keys, key_groups)
    with torch.no_grad():  # the log of the mean over positive pairs
        logs = by_panels(lambda p: masked_lse(p.s / sigma, p.positive), given)  # (n,)
        logs = dist.gather(logs.double().logsumexp(0, keepdim=True), [1] * dist.world())  # (P,)
        pairs = dist.total(tally(given.groups, given.key_groups, given.first).positives.sum())
        log_mean = torch.where(pairs > 0, logs.logsumexp(0) - pairs.double().log(), 0)

    def weighted(p: Panel, scale: Tensor) -> Tensor:
        weight = 2 - (p.s.detach() / sigma - log_mean).clamp(max=60).exp().to(p.s.dtype)
        s = p.s * scale
        return masked_lse(s, p.negative) - masked_mean(weight * s, p.positive)

    return reduced(by_panels(weighted, given, _scale(temperature, given.z)), _has_both(given), reduction)


def debiased(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.5, prior: float = 0.1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Debiased contrastive loss: corrects for negatives that are positives nobody knows of.

    .. math:: \ell_i = -\frac1{|P(i)|}\sum_p\log\frac{e^{s_{ip}}}{e^{s_{ip}}+|N(i)|\,g_i},\quad
              g_i=\max\Big\{\frac{\mathbb E_{n}e^{s_{in}}-\tau^+\mathbb E_{p}e^{s_{ip}}}{1-\tau^+},\;e^{-1/\tau}\Big\}

    Chuang et al. 2020 (arXiv:2007.00224); ``prior`` is τ⁺, the probability that two samples are of
    one kind. With a prior of 0 it is :func:`vince`. An anchor counts where it has a positive and a negative. Other
    arguments as for :func:`vince`.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(debiased(z, torch.tensor([0, 1, 0, 1]))), 4)
    0.0756
    """
    return hard_negative(z, groups, keys, key_groups, temperature=temperature, prior=prior, beta=0.0,
                         reduction=reduction)  # fmt: skip


def hard_negative(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.5, prior: float = 0.1, beta: float = 1.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Debiased loss whose negatives are weighted by how near they are (hard negatives).

    As :func:`debiased`, with the mean over negatives replaced by

    .. math:: \frac{\sum_n e^{\beta s_{in}}\,e^{s_{in}}}{\sum_n e^{\beta s_{in}}}

    Robinson et al. 2021 (arXiv:2010.04592); ``beta`` is the concentration β ≥ 0, 0 being
    :func:`debiased`. As in its code β multiplies s = cos/τ.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(hard_negative(z, torch.tensor([0, 1, 0, 1]))), 4)
    0.0756
    """
    check_temperature(temperature)
    if not 0 <= prior < 1:
        raise UserError(f"prior must lie in 0 to below 1, got {prior}")
    if not 0 <= beta < math.inf:
        raise UserError(f"beta must be at least 0, got {beta}")
    given = rows(z, groups, keys, key_groups)

    def value(p: Panel, scale: Tensor) -> Tensor:
        s = p.s * scale
        count = p.negative.sum(1).clamp(min=1).to(s.dtype).log()
        some = p.negative.any(1) & p.positive.any(1)
        hard = masked_lse((1 + beta) * s, p.negative)
        easy = masked_lse(beta * s, p.negative) if beta else count
        a = torch.where(some, hard, 0) - torch.where(some, easy, 0)  # log of the negatives' weighted mean
        b = masked_lse(s, p.positive) - p.positive.sum(1).clamp(min=1).to(s.dtype).log()  # log of the positives' mean
        share = prior * (torch.where(some, b, 0) - a).clamp(max=60).exp()
        left = share < 1 - 1e-6
        log_g = a + torch.log1p(-torch.where(left, share, 0)) - math.log1p(-prior)
        log_g = torch.maximum(torch.where(left, log_g, -scale), -scale.expand_as(a))
        return masked_mean(F.softplus((count + log_g)[:, None] - s), p.positive)

    return reduced(by_panels(value, given, _scale(temperature, given.z), width=2), _has_both(given), reduction)


def _has_positive(given: Rows) -> Tensor:
    return tally(given.groups, given.key_groups, given.first).positives > 0


def _has_both(given: Rows) -> Tensor:
    """Anchors with a positive and a negative. (n,) bool"""
    positives = tally(given.groups, given.key_groups, given.first).positives
    negatives = len(given.keys) - positives - int(given.first is not None)
    return (positives > 0) & (negatives > 0)
