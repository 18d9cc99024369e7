"""Softmax losses over groups: rows with the same id are positives, all others negatives.

NT-Xent, InfoNCE, SupCon, CLIP and cross-entropy are one sum: for each anchor the log of its candidates' summed
exponentials, less the mean logit of its positives. It is computed by tiles (:mod:`nearfar.losses.engine`), exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import engine, ring
from nearfar.losses.panels import Panel, by_panels, masked_lse, masked_mean
from nearfar.losses.rows import (
    Mine,
    Rows,
    agree,
    check_number,
    check_reduction,
    check_temperature,
    checked,
    gathered,
    reduced,
    row_counts,
    rows,
    scalar,
    wrong_embeddings,
    wrong_ids,
)

_SIMILARITIES = {"cosine": True, "dot": False}


def info_nce(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.1, similarity: str = "cosine", label_smoothing: float = 0.0,
    exclude: Tensor | None = None, key_exclude: Tensor | None = None, exclude_above: float | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""InfoNCE: each row picks its positives among a set of keys (a queue, the other tower, a vocabulary, the batch).

    .. math:: \ell_i = -\frac1{|P(i)|}\sum_{p\in P(i)} \log
              \frac{\exp(s(z_i,k_p)/\tau)}{\sum_j\exp(s(z_i,k_j)/\tau)},\quad P(i)=\{j: h_j=g_i\}

    van den Oord et al. 2018 (arXiv:1807.03748), equation 4; MoCo's equation 1 (arXiv:1911.05722) with a queue as the
    keys; with the rows themselves as the keys, each but itself, NT-Xent and SupCon. Exact, in O((N + M)·d) memory.

    Args:
        z: (N, d) embeddings, float; computed in float32, or in float64 where they are.
        groups: (N,) whole numbers.
        keys, key_groups: (M, d), (M,) the candidates; left out: the rows themselves, each but itself.
        temperature: τ > 0; a tensor gets its gradient.
        similarity: ``"cosine"`` or ``"dot"`` (the rows as they are).
        label_smoothing: ε in [0, 1): the target is (1 - ε) on the positives and ε spread over all candidates.
        exclude, key_exclude: (N,), (M,) further ids: a negative with the anchor's is left out (a known duplicate,
            another sentence of the same document).
        exclude_above: a negative whose similarity exceeds this is left out (a likely false negative).
        reduction: ``"mean"`` over anchors that have a positive, ``"sum"``, or ``"none"`` (N,) with 0 for the others.

    With a process group up every process's rows are the others' candidates (keys that are the same everywhere are
    taken once), ids must be global, and the loss is that of the whole batch on each of them. Where the gathered
    candidates would be large they travel round a ring instead, and no process holds more than two others' rows.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(info_nce(z, torch.tensor([0, 1, 0, 1]), temperature=0.5)), 4)
    0.2395
    """
    unit = _unit(similarity)
    _check(temperature, label_smoothing, reduction)
    if not (exclude is None and key_exclude is None and exclude_above is None):
        agree(_wrong_exclusions(z, label_smoothing, exclude, keys, key_exclude, exclude_above), z)
        mine = checked(z, groups, keys, key_groups, unit=unit)
        ids = None if exclude is None else _exclusions(mine, exclude, key_exclude)
        return _without_false_negatives(gathered(mine, row_counts(mine)), temperature, ids, exclude_above, reduction)
    if keys is None and dist.world() == 1:  # normalised inside, with half of the products
        given = rows(z, groups, unit=False)
        scale = _scale(temperature, given.z)
        values, positives = engine.contrast_self(given.z, given.groups, scale, unit, label_smoothing)
    else:
        mine = checked(z, groups, keys, key_groups, unit=unit)
        scale = _scale(temperature, mine.z)
        counts = row_counts(mine)
        if ring.wanted(mine, counts):
            values, positives = ring.contrast(mine, counts, scale, label_smoothing)
        else:
            values, positives = engine.contrast(*gathered(mine, counts), scale, label_smoothing)
    return reduced(values, positives > 0, reduction)


def nt_xent(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.5, label_smoothing: float = 0.0, exclude: Tensor | None = None,
    key_exclude: Tensor | None = None, exclude_above: float | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""NT-Xent (SimCLR): each row against all others of the batch.

    .. math:: \ell_i = -\frac1{|P(i)|}\sum_{p\in P(i)} \log
              \frac{\exp(\cos(z_i,z_p)/\tau)}{\sum_{j\ne i}\exp(\cos(z_i,z_j)/\tau)},
              \quad P(i)=\{j\ne i: g_j=g_i\}

    With one positive a row this is equation 1 of Chen et al. 2020 (arXiv:2002.05709); with several it is
    SupCon's :math:`L_{out}`. Arguments as for :func:`info_nce`. A row without a positive is left out of the mean.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(nt_xent(z, torch.tensor([0, 1, 0, 1]), temperature=0.5)), 4)
    0.2395
    """
    return info_nce(
        z, groups, keys, key_groups, temperature=temperature, label_smoothing=label_smoothing, exclude=exclude,
        key_exclude=key_exclude, exclude_above=exclude_above, reduction=reduction,
    )  # fmt: skip


def sup_con(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.1, kind: str = "out", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""SupCon: all rows with an anchor's label attract it.

    .. math:: L_{out}: -\frac1{|P(i)|}\sum_{p\in P(i)}\log\frac{e^{s_{ip}}}{\sum_{j\ne i}e^{s_{ij}}},\qquad
              L_{in}: -\log\Big(\frac1{|P(i)|}\sum_{p\in P(i)}\frac{e^{s_{ip}}}{\sum_{j\ne i}e^{s_{ij}}}\Big),
              \quad s=\cos/\tau

    Khosla et al. 2020 (arXiv:2004.11362), equations 2 and 3, each a mean over anchors; the paper's code multiplies by
    τ / 0.07, ours does not. Arguments as for :func:`info_nce`. A row without a positive is left out of the mean.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(sup_con(z, torch.tensor([0, 1, 0, 1]), temperature=0.5, kind="in")), 4)
    0.2395
    """
    if kind not in ("out", "in"):
        raise UserError(f"kind {kind!r}: give 'out' or 'in'")
    if kind == "out":
        return info_nce(z, groups, keys, key_groups, temperature=temperature, reduction=reduction)
    _check(temperature, 0.0, reduction)
    given = rows(z, groups, keys, key_groups)
    positives = engine.tally(given.groups, given.key_groups, given.first).positives

    def inside(p: Panel, scale: Tensor) -> Tensor:
        s = p.s * scale
        count = p.positive.sum(1).clamp(min=1).to(s.dtype)
        return masked_lse(s, p.candidates) - masked_lse(s, p.positive) + count.log()

    return reduced(by_panels(inside, given, _scale(temperature, given.z)), positives > 0, reduction)


def clip(
    z: Tensor, groups: Tensor, keys: Tensor, key_groups: Tensor, *, temperature: float | Tensor = 0.07,
    label_smoothing: float = 0.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""CLIP: InfoNCE from one tower to the other and back, halved: :math:`\frac12(L_{z\to k}+L_{k\to z})`.

    Radford et al. 2021 (arXiv:2103.00020), figure 3; several positives a row as in :func:`info_nce`. Both directions
    come from the same tiles. ``reduction`` is ``"mean"`` or ``"sum"``.

    >>> a = torch.eye(3)
    >>> round(float(clip(a, torch.arange(3), a, torch.arange(3), temperature=1.0)), 4)
    0.5514
    """
    _check(temperature, label_smoothing, reduction)
    if keys is None:
        raise UserError("clip holds two towers against each other: give keys and key_groups, or take nt_xent")
    if reduction == "none":
        raise UserError("clip has two directions: reduction 'none' is info_nce's; give 'mean' or 'sum'")
    if dist.world() > 1:
        there = info_nce(z, groups, keys, key_groups, temperature=temperature, label_smoothing=label_smoothing,
                         reduction=reduction)  # fmt: skip
        back = info_nce(keys, key_groups, z, groups, temperature=temperature, label_smoothing=label_smoothing,
                        reduction=reduction)  # fmt: skip
        if reduction == "sum":  # anchors that all processes have are summed on each of them
            there = there / dist.world() if dist.same_everywhere(z, groups) else there
            back = back / dist.world() if dist.same_everywhere(keys, key_groups) else back
        return (there + back) / 2
    given = rows(z, groups, keys, key_groups)
    scale = _scale(temperature, given.z)
    there, back = engine.contrast_both(*given[:4], scale, label_smoothing)
    return (reduced(there[0], there[1] > 0, reduction) + reduced(back[0], back[1] > 0, reduction)) / 2


def cross_entropy(z: Tensor, groups: Tensor, weight: Tensor, *, label_smoothing: float = 0.0,
                  temperature: float | Tensor = 1.0, reduction: str = "mean") -> Tensor:  # fmt: skip
    r"""Cross-entropy, seen as InfoNCE against a vocabulary: the keys are the classes' weights, the id is the class.

    .. math:: \ell_i = -\log\frac{\exp(z_i\cdot w_{g_i}/\tau)}{\sum_c\exp(z_i\cdot w_c/\tau)}

    The same number as ``torch.nn.functional.cross_entropy(z @ weight.T, groups)`` without holding the (N, classes)
    logits. An id outside the classes (``-100``) has no positive and is left out of the mean.

    Args:
        z: (N, d). groups: (N,) class numbers. weight: (classes, d), the same on every process.

    >>> z, w = torch.eye(4)[:2], torch.eye(4)
    >>> round(float(cross_entropy(z, torch.tensor([0, 1]), w)), 4)
    0.7437
    """
    if not isinstance(weight, Tensor) or weight.ndim != 2 or (z.ndim == 2 and weight.shape[1] != z.shape[1]):
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise UserError(f"weight must be (classes, d) with the d of z, {tuple(z.shape)}; got {got}")
    classes = torch.arange(len(weight), device=weight.device)
    return info_nce(z, groups, weight, classes, temperature=temperature, similarity="dot",
                    label_smoothing=label_smoothing, reduction=reduction)  # fmt: skip


def sigmoid(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 0.1, bias: float | Tensor = -10.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""SigLIP's sigmoid loss: every pair is a yes or a no of its own.

    .. math:: -\frac1N\sum_i\sum_j\log\sigma\big(y_{ij}(\cos(z_i,k_j)/\tau+b)\big),\quad
              y_{ij}=1 \text{ where } g_i=h_j \text{ else } -1

    Zhai et al. 2023 (arXiv:2303.15343), section 3.2, with the signs of its algorithm 1; the paper learns both, from
    1/τ = 10 and b = -10 (:class:`nearfar.losses.LearntTemperature`). Every row counts, with or without a
    positive. ``reduction`` is ``"mean"`` over rows or ``"sum"``; the gradient is taken in the forward pass, so memory
    is O((N + M)·d).

    >>> a = torch.eye(3)
    >>> round(float(sigmoid(a, torch.arange(3), a, torch.arange(3))), 4)
    0.6932
    """
    check_temperature(temperature)
    check_number(bias, "bias")
    if reduction not in ("mean", "sum"):
        raise UserError(f"reduction {reduction!r}: sigmoid takes 'mean' or 'sum'")
    given = rows(z, groups, keys, key_groups)
    value = engine.pair_logistic(*given, _scale(temperature, given.z), scalar(bias, given.z))
    counted = torch.tensor(float(len(z)), dtype=value.dtype, device=z.device)
    both = dist.total(torch.stack([value, counted]))
    return both[0] if reduction == "sum" else both[0] / both[1].clamp(min=1)


def _without_false_negatives(
    given: Rows, temperature: float | Tensor, ids: tuple[Tensor, Tensor] | None, above: float | None, reduction: str
) -> Tensor:
    """InfoNCE whose negatives lack those with a further id in common, or with a similarity above a threshold."""
    positives = engine.tally(given.groups, given.key_groups, given.first).positives

    def value(p: Panel, scale: Tensor) -> Tensor:
        negative = p.negative
        if ids is not None:
            negative = negative & (ids[0][p.rows, None] != ids[1][None, :])
        if above is not None:
            negative = negative & (p.s <= above)
        s = p.s * scale
        return masked_lse(s, p.positive | negative) - masked_mean(s, p.positive)

    return reduced(by_panels(value, given, _scale(temperature, given.z)), positives > 0, reduction)


def _exclusions(mine: Mine, exclude: Tensor, key_exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """The further ids of my anchors and of all candidates."""
    if mine.keys is None:
        return exclude.long(), dist.gather(exclude.long())
    return exclude.long(), key_exclude.long() if mine.shared else dist.gather(key_exclude.long())


def _wrong_exclusions(
    z: Tensor, smoothing: float, exclude: Tensor | None, keys: Tensor | None, key_exclude: Tensor | None,
    above: float | None,
) -> str | None:  # fmt: skip
    """What is wrong with the further ids, or None."""
    if above is not None and (isinstance(above, bool) or not isinstance(above, int | float) or math.isnan(above)):
        return f"exclude_above must be a similarity, got {above!r}"
    if smoothing:
        return "label_smoothing and the exclusion of negatives do not go together: give one of them"
    if exclude is None and key_exclude is None:
        return None
    if exclude is None or (keys is None) != (key_exclude is None):
        return "exclude needs key_exclude where there are keys, and only there"
    said = wrong_embeddings("z", z) or wrong_ids("exclude", exclude, z)
    if said or keys is None:
        return said
    return wrong_embeddings("keys", keys) or wrong_ids("key_exclude", key_exclude, keys, "keys")


def _unit(similarity: str) -> bool:
    if similarity not in _SIMILARITIES:
        raise UserError(f"similarity {similarity!r}: give 'cosine' or 'dot'")
    return _SIMILARITIES[similarity]


def _check(temperature: float | Tensor, smoothing: float, reduction: str) -> None:
    check_temperature(temperature)
    check_reduction(reduction)
    if not 0 <= smoothing < 1:
        raise UserError(f"label_smoothing must lie in 0 to below 1, got {smoothing}")


def _scale(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1/τ as a tensor that passes the gradient on. ()"""
    return 1 / scalar(temperature, like) if isinstance(temperature, Tensor) else scalar(1 / temperature, like)
