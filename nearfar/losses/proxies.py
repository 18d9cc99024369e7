"""Losses with weights: a learnt proxy for each class stands for its rows.

Each is a pure function that takes the proxies, (C, d), and a module that owns them. Groups are class numbers,
0 … C-1. Rows and proxies are brought to length one here, in float32 or better, so cos θ_c is a row's cosine with
the proxy of class c, and y its own class. Memory is flat in rows × classes. Where several processes train, proxies
are replicated parameters as any others, and the loss is that of all processes' rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses.panels import Panel, by_panels, masked_lse
from nearfar.losses.rows import (
    Rows,
    agree,
    check_reduction,
    check_setting,
    check_temperature,
    reduced,
    scalar,
    widened,
    wrong_embeddings,
    wrong_ids,
)


def proxy_nca(
    z: Tensor, groups: Tensor, proxies: Tensor, *, temperature: float | Tensor = 1.0, all_proxies: bool = False,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Proxy-NCA: each row nearer to its class's proxy than to the others', by squared distance.

    .. math:: \ell_i = -\log\frac{\exp(-d(z_i,p_y)/T)}{\sum_{c\ne y}\exp(-d(z_i,p_c)/T)},
              \quad d = \|z-p\|^2 = 2-2\cos\theta

    Movshovitz-Attias et al. 2017 (arXiv:1703.07464) with proxies for points, T = 1: the row's own proxy
    is not below, so that the loss has no floor at 0. With ``all_proxies`` it is, and the loss is Proxy-NCA++'s (Teh
    et al. 2020, arXiv:2004.01113; they have T = 1/9), the normalised softmax at a temperature of T/2.

    Args:
        z: (n, d) embeddings. groups: (n,) class numbers. proxies: (C, d).
        temperature: T > 0; a tensor gets its gradient. all_proxies: the sum below is over all proxies.
        reduction: ``"mean"`` over all processes' rows, ``"sum"``, or ``"none"`` (n,).

    With one class and ``all_proxies`` off there is nothing to be far from: the loss is 0. Raises ``UserError``.

    >>> z, groups = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> proxy_nca(z, groups, torch.eye(2))  # distances 0 and 2
    tensor(-2.)
    """
    check_temperature(temperature)
    x = _excess(z, groups, proxies, _cosine, 2 / temperature, reduction)  # (n,)
    if all_proxies:
        return reduced(_log1p_exp(x), torch.ones_like(groups), reduction)
    return reduced(x, torch.full_like(groups, len(proxies) > 1), reduction)


def normalized_softmax(
    z: Tensor, groups: Tensor, proxies: Tensor, *, temperature: float | Tensor = 0.05, reduction: str = "mean"
) -> Tensor:  # fmt: skip
    r"""Normalised softmax: cross-entropy on cosines with the classes' proxies, without a bias.

    .. math:: \ell_i = -\log\frac{\exp(\cos\theta_y/\tau)}{\sum_c\exp(\cos\theta_c/\tau)}

    Zhai & Wu 2019 (arXiv:1811.12649), τ = 0.05; InfoNCE with the proxies as the keys.

    Args:
        z: (n, d) embeddings. groups: (n,) class numbers. proxies: (C, d).
        temperature: τ > 0; a tensor gets its gradient.
        reduction: ``"mean"`` over all processes' rows, ``"sum"``, or ``"none"`` (n,).

    Raises ``UserError``.

    >>> normalized_softmax(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), temperature=1.0)
    tensor(0.3133)
    """
    check_temperature(temperature)
    x = _excess(z, groups, proxies, _cosine, 1 / temperature, reduction)
    return reduced(_log1p_exp(x), torch.ones_like(groups), reduction)


def cosface(
    z: Tensor, groups: Tensor, proxies: Tensor, *, scale: float = 64.0, margin: float = 0.35, reduction: str = "mean"
) -> Tensor:  # fmt: skip
    r"""CosFace: the row's own cosine must lead by a margin.

    .. math:: \ell_i = -\log\frac{e^{s(\cos\theta_y - m)}}{e^{s(\cos\theta_y - m)} + \sum_{c\ne y}e^{s\cos\theta_c}}

    Equation 4 of Wang et al. 2018 (arXiv:1801.09414), s = 64, m = 0.35.

    Args:
        z: (n, d) embeddings. groups: (n,) class numbers. proxies: (C, d). scale: s > 0. margin: m, in cosine.
        reduction: ``"mean"`` over all processes' rows, ``"sum"``, or ``"none"`` (n,).

    Raises ``UserError``.

    >>> cosface(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), scale=1.0, margin=1.0)  # log 2
    tensor(0.6931)
    """
    check_temperature(scale, "scale")
    _check_margin(margin, -2, 2, "a cosine")
    x = _excess(z, groups, proxies, lambda z, p: _cosine(z, p) - margin, scale, reduction)
    return reduced(_log1p_exp(x), torch.ones_like(groups), reduction)


def arcface(
    z: Tensor, groups: Tensor, proxies: Tensor, *, scale: float = 64.0, margin: float = 0.5, reduction: str = "mean"
) -> Tensor:  # fmt: skip
    r"""ArcFace: the row's own angle must lead by a margin.

    .. math:: \ell_i = -\log\frac{e^{s\,\psi(\theta_y)}}{e^{s\,\psi(\theta_y)} + \sum_{c\ne y}e^{s\cos\theta_c}},\quad
              \psi(\theta) = \begin{cases}\cos(\theta+m) & \theta\le\pi-m\\
              \cos\theta - m\sin m & \text{beyond}\end{cases}

    Equation 3 of Deng et al. 2019 (arXiv:1801.07698), s = 64, m = 0.5. cos(θ+m) would rise again beyond π, so there
    ψ goes on falling as in the authors' own code. The angle is exact near 0 and π, and where a row meets its proxy
    or its opposite the gradient through it, whose direction is undefined, is 0.

    Args:
        z: (n, d) embeddings. groups: (n,) class numbers. proxies: (C, d).
        scale: s > 0. margin: m in radians, 0 ≤ m < π.
        reduction: ``"mean"`` over all processes' rows, ``"sum"``, or ``"none"`` (n,).

    Raises ``UserError``.

    >>> import math
    >>> arcface(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), scale=1.0, margin=math.pi / 2)  # log 2
    tensor(0.6931)
    """
    check_temperature(scale, "scale")
    _check_margin(margin, 0, math.pi, _RADIANS)

    def psi(z: Tensor, p: Tensor) -> Tensor:
        theta = _angle(z, p)  # (n,)
        return torch.where(theta <= math.pi - margin, (theta + margin).cos(), theta.cos() - margin * math.sin(margin))

    x = _excess(z, groups, proxies, psi, scale, reduction)
    return reduced(_log1p_exp(x), torch.ones_like(groups), reduction)


def proxy_anchor(
    z: Tensor, groups: Tensor, proxies: Tensor, *, alpha: float = 32.0, margin: float = 0.1, reduction: str = "mean"
) -> Tensor:  # fmt: skip
    r"""Proxy-Anchor: each proxy draws its class's rows and pushes all others, the hardest the most.

    .. math:: \ell = \frac1{|P^+|}\sum_{c\in P^+}\log\Big(1+\sum_{y_i=c}e^{-\alpha(\cos\theta_{ic}-\delta)}\Big)
              + \frac1{C}\sum_c\log\Big(1+\sum_{y_i\ne c}e^{\alpha(\cos\theta_{ic}+\delta)}\Big)

    Equation 4 of Kim et al. 2020 (arXiv:2003.13911), α = 32, δ = 0.1. P⁺ are the classes with a row in the batch;
    those without have the second term alone. Sums are over all processes' rows.

    Args:
        z: (n, d) embeddings. groups: (n,) class numbers. proxies: (C, d). alpha: α > 0. margin: δ, in cosine.
        reduction: ``"mean"`` (the equation), ``"none"`` (C,) each proxy's two logarithms added, or ``"sum"`` of those.

    Raises ``UserError``.

    >>> round(float(proxy_anchor(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), alpha=1.0, margin=0.0)), 4)
    1.0064
    """
    check_setting(alpha, "alpha")
    _check_margin(margin, -2, 2, "a cosine")
    check_reduction(reduction)
    z, groups, proxies = _checked(z, groups, proxies)
    classes = torch.arange(len(proxies), device=z.device)

    def fn(panel: Panel) -> Tensor:
        drawn = masked_lse(-alpha * (panel.s - margin), panel.positive)  # (b,)
        pushed = masked_lse(alpha * (panel.s + margin), panel.negative)  # (b,)
        return torch.stack([drawn, pushed], 1)

    mine = by_panels(fn, Rows(proxies, classes, z, groups, None), width=4)  # (C, 2) proxies are the anchors
    every = dist.gather(mine[None], [1] * dist.world())  # (P, C, 2)
    terms = torch.cat([torch.zeros_like(mine)[None], every]).logsumexp(0)  # (C, 2) log(1 + Σ)
    if reduction != "mean":
        terms = terms.sum(1)  # (C,)
        return terms if reduction == "none" else terms.sum()
    present = (every[:, :, 0] > -math.inf).any(0).sum()  # |P⁺|
    return terms[:, 0].sum() / present.clamp(min=1) + terms[:, 1].mean()


class ProxyNCA(nn.Module):
    """:func:`proxy_nca` with its proxies.

    Args:
        classes, features: C and d. temperature, all_proxies: as there.
        generator: what the proxies' first directions are drawn with.

    >>> criterion = ProxyNCA(3, 8, generator=torch.Generator().manual_seed(0))
    >>> criterion(torch.ones(2, 8), torch.tensor([0, 2])).shape, criterion.proxies.shape
    (torch.Size([]), torch.Size([3, 8]))
    """

    def __init__(
        self, classes: int, features: int, *, temperature: float = 1.0, all_proxies: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.all_proxies = temperature, all_proxies
        self.proxies = _drawn(classes, features, generator)

    def forward(self, z: Tensor, groups: Tensor, *, reduction: str = "mean") -> Tensor:
        return proxy_nca(
            z, groups, self.proxies, temperature=self.temperature, all_proxies=self.all_proxies, reduction=reduction
        )


class NormalizedSoftmax(nn.Module):
    """:func:`normalized_softmax` with its proxies. classes, features, generator: as in :class:`ProxyNCA`."""

    def __init__(
        self, classes: int, features: int, *, temperature: float = 0.05, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.proxies = _drawn(classes, features, generator)

    def forward(self, z: Tensor, groups: Tensor, *, reduction: str = "mean") -> Tensor:
        return normalized_softmax(z, groups, self.proxies, temperature=self.temperature, reduction=reduction)


class CosFace(nn.Module):
    """:func:`cosface` with its proxies. classes, features, generator: as in :class:`ProxyNCA`."""

    def __init__(
        self, classes: int, features: int, *, scale: float = 64.0, margin: float = 0.35,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_temperature(scale, "scale")
        _check_margin(margin, -2, 2, "a cosine")
        self.scale, self.margin = scale, margin
        self.proxies = _drawn(classes, features, generator)

    def forward(self, z: Tensor, groups: Tensor, *, reduction: str = "mean") -> Tensor:
        return cosface(z, groups, self.proxies, scale=self.scale, margin=self.margin, reduction=reduction)


class ArcFace(nn.Module):
    """:func:`arcface` with its proxies; margin in radians. classes, features, generator: as in :class:`ProxyNCA`."""

    def __init__(
        self, classes: int, features: int, *, scale: float = 64.0, margin: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_temperature(scale, "scale")
        _check_margin(margin, 0, math.pi, _RADIANS)
        self.scale, self.margin = scale, margin
        self.proxies = _drawn(classes, features, generator)

    def forward(self, z: Tensor, groups: Tensor, *, reduction: str = "mean") -> Tensor:
        return arcface(z, groups, self.proxies, scale=self.scale, margin=self.margin, reduction=reduction)


class ProxyAnchor(nn.Module):
    """:func:`proxy_anchor` with its proxies. classes, features, generator: as in :class:`ProxyNCA`."""

    def __init__(
        self, classes: int, features: int, *, alpha: float = 32.0, margin: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_setting(alpha, "alpha")
        _check_margin(margin, -2, 2, "a cosine")
        self.alpha, self.margin = alpha, margin
        self.proxies = _drawn(classes, features, generator)

    def forward(self, z: Tensor, groups: Tensor, *, reduction: str = "mean") -> Tensor:
        return proxy_anchor(z, groups, self.proxies, alpha=self.alpha, margin=self.margin, reduction=reduction)


_RADIANS = "radians; 28.6 degrees are 0.5"


def _excess(
    z: Tensor, groups: Tensor, proxies: Tensor, own: Callable[[Tensor, Tensor], Tensor], scale: float | Tensor,
    reduction: str,
) -> Tensor:  # fmt: skip
    """log Σ_{c≠y} exp(s(cos θ_c - ψ(θ_y))): by how much the other classes lead; -inf where there are none. (n,)

    own: ψ, from unit rows and their own proxies, (n, d) each, to (n,).
    """
    check_reduction(reduction)
    z, groups, proxies = _checked(z, groups, proxies)
    with torch.autocast(z.device.type, enabled=False):
        own_value = own(z, proxies[groups])  # (n,)
    given = Rows(z, groups, proxies, torch.arange(len(proxies), device=z.device), None)

    def fn(panel: Panel, own_value: Tensor, scale: Tensor) -> Tensor:
        return masked_lse((panel.s - own_value[panel.rows, None]) * scale, panel.negative)

    return by_panels(fn, given, own_value, scalar(scale, z), width=4)


def _log1p_exp(x: Tensor) -> Tensor:
    """log(1 + e^x), to the last digit for any x. (n,) -> (n,)"""
    return torch.logaddexp(x, x.new_zeros(()))


def _cosine(z: Tensor, p: Tensor) -> Tensor:
    return (z * p).sum(1)  # (n,)


def _angle(z: Tensor, p: Tensor) -> Tensor:
    """Angle between unit rows from their difference and sum: the arc cosine has no digits, nor a slope, at ±1. (n,)"""
    return 2 * torch.atan2(torch.linalg.vector_norm(z - p, dim=1), torch.linalg.vector_norm(z + p, dim=1))


def _drawn(classes: int, features: int, generator: torch.Generator | None) -> nn.Parameter:
    """Random directions of length one: (classes, features)."""
    for name, value in (("classes", classes), ("features", features)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of 1 or more, got {value!r}")
    device = "cpu" if generator is None else generator.device
    return nn.Parameter(F.normalize(torch.randn(classes, features, generator=generator, device=device), dim=1))


def _checked(z: Tensor, groups: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and proxies of length one in a common precision, and class numbers that index. Raises on all processes."""
    agree(_wrong_rows(z, groups, proxies), z)
    z, proxies = widened(z, True), widened(proxies, True)
    if z.dtype != proxies.dtype:  # one of them is float64
        z, proxies = z.double(), proxies.double()
    return z, groups.long(), proxies


def _wrong_rows(z: Tensor, groups: Tensor, proxies: Tensor) -> str | None:
    error = wrong_embeddings("z", z) or wrong_ids("groups", groups, z) or wrong_embeddings("proxies", proxies)
    if error:
        return error
    if z.shape[1] != proxies.shape[1] or not len(proxies):
        return f"proxies are {tuple(proxies.shape)} and z is {tuple(z.shape)}: give proxies (C, {z.shape[1]})"
    if proxies.device != z.device:
        return f"proxies are on {proxies.device} and z on {z.device}: move one of them"
    if torch.compiler.is_compiling() or not len(groups):
        return None
    low, high = (int(x) for x in torch.stack(groups.aminmax()))
    if low < 0 or high >= len(proxies):
        return f"groups must be class numbers 0 … {len(proxies) - 1} (one proxy each), got {low if low < 0 else high}"
    return None


def _check_margin(margin: float, low: float, high: float, unit: str) -> None:
    number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if not (number and low <= margin < high):
        raise UserError(f"margin must be from {low:.4g} to below {high:.4g} ({unit}), got {margin!r}")
