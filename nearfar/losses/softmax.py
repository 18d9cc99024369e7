"""Softmax losses over groups: rows with the same id are positives, all others negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar import dist
from nearfar.errors import UserError


def _check(z: Tensor, groups: Tensor, name: str) -> None:
    if z.ndim != 2:
        raise UserError(f"{name} must be (N, d), got {tuple(z.shape)}")
    if groups.shape != z.shape[:1]:
        raise UserError(f"{name} has {len(z)} rows and its groups {tuple(groups.shape)}: give one id a row")


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise UserError(f"reduction {reduction!r}: give 'mean', 'sum' or 'none'")
    return loss if reduction == "none" else getattr(loss, reduction)()


def _multi_positive(logits: Tensor, positive: Tensor) -> Tensor:
    """-1/|P(i)| Σ_{p∈P(i)} log softmax(logits_i)_p; 0 for rows without a positive. (N, M), (N, M) -> (N,)"""
    count = positive.sum(1)
    mean = torch.where(positive, logits, 0).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, logits.logsumexp(1) - mean, 0)


def nt_xent(
    z: Tensor, groups: Tensor, *, temperature: float | Tensor = 0.5, reduction: str = "mean"
) -> Tensor:
    r"""NT-Xent (SimCLR): each row against all others of the batch.

    .. math:: \ell_i = -\frac1{|P(i)|}\sum_{p\in P(i)} \log
              \frac{\exp(\cos(z_i,z_p)/\tau)}{\sum_{j\ne i}\exp(\cos(z_i,z_j)/\tau)},
              \quad P(i)=\{j\ne i: g_j=g_i\}

    With one positive a row this is equation 1 of Chen et al. 2020 (arXiv:2002.05709); with several it is
    SupCon's :math:`L_{out}` (Khosla et al. 2020, arXiv:2004.11362). A row without a positive counts 0.

    Args:
        z: (N, d) embeddings; normalised here, in float32 or better.
        groups: (N,) integer ids.
        temperature: τ > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (N,).

    With a process group up, every process's rows are the others' candidates; ids must be global.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(float(nt_xent(z, torch.tensor([0, 1, 0, 1]), temperature=0.5)), 4)
    0.2395
    """
    _check(z, groups, "z")
    z = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)  # (N, d)
    with torch.autocast(z.device.type, enabled=False):
        everyone, ids = dist.gather(z), dist.gather(groups)  # (M, d), (M,)
        logits = z @ everyone.T / temperature  # (N, M)
    me = torch.arange(len(z), device=z.device) + dist.rank() * len(z)
    itself = me[:, None] == torch.arange(len(everyone), device=z.device)
    positive = (groups[:, None] == ids[None, :]) & ~itself
    return _reduce(_multi_positive(logits.masked_fill(itself, float("-inf")), positive), reduction)


def info_nce(
    z: Tensor, groups: Tensor, keys: Tensor, key_groups: Tensor, *, temperature: float | Tensor = 0.1,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""InfoNCE: each row against a set of keys (a queue, the other tower, a vocabulary).

    .. math:: \ell_i = -\frac1{|P(i)|}\sum_{p\in P(i)} \log
              \frac{\exp(\cos(z_i,k_p)/\tau)}{\sum_j\exp(\cos(z_i,k_j)/\tau)},\quad P(i)=\{j: h_j=g_i\}

    van den Oord et al. 2018 (arXiv:1807.03748), equation 4; MoCo's equation 1 with a queue as the keys.

    Args:
        z: (N, d) embeddings. groups: (N,) ids. keys: (M, d). key_groups: (M,) ids.
    """
    _check(z, groups, "z")
    _check(keys, key_groups, "keys")
    wide = lambda t: F.normalize(t if t.dtype == torch.float64 else t.float(), dim=1)  # noqa: E731
    with torch.autocast(z.device.type, enabled=False):
        logits = wide(z) @ wide(keys).T / temperature  # (N, M)
    return _reduce(_multi_positive(logits, groups[:, None] == key_groups[None, :]), reduction)
