"""Temperature as a function of the share of training, and as something learnt."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nearfar.errors import UserError
from nearfar.losses.rows import check_temperature


def constant_temperature(share: float, value: float) -> float:
    """The same temperature all along: the schedule that is none.

    Args:
        share: of training, in [0, 1]. value: τ > 0.

    >>> constant_temperature(0.3, 0.1)
    0.1
    """
    _check_share(share)
    check_temperature(value, "value")
    return value


def linear_temperature(share: float, start: float, end: float) -> float:
    """A straight line from ``start`` to ``end``.

    Args:
        share: of training, in [0, 1]. start, end: τ > 0 at 0 and at 1, met exactly.

    >>> linear_temperature(0.5, 0.5, 0.25)
    0.375
    """
    _check_share(share)
    check_temperature(start, "start")
    check_temperature(end, "end")
    return (1 - share) * start + share * end


def cosine_temperature(share: float, start: float, end: float, *, periods: float = 0.5) -> float:
    r"""A cosine between two temperatures: once down, or to and fro.

    .. math:: \tau(s) = \tau_e + (\tau_s - \tau_e)\,\frac{1 + \cos(2\pi P s)}{2}

    Half a period (P = 0.5) goes from ``start`` to ``end`` once. Whole periods are the schedule of Kukleva et al. 2023
    (arXiv:2303.13664), with :math:`s P = t/T`: a large temperature parts groups, a small one parts instances, and
    training switches between the two. Theirs on CIFAR: 1.0 and 0.1, a period of 400 epochs in 2000, so P = 5.

    Args:
        share: s, of training, in [0, 1].
        start, end: τ > 0, the two extremes.
        periods: P > 0.

    Raises ``UserError`` where a value is out of its range.

    >>> [round(cosine_temperature(s, 1.0, 0.1), 3) for s in (0.0, 0.5, 1.0)]
    [1.0, 0.55, 0.1]
    >>> [round(cosine_temperature(s, 1.0, 0.1, periods=5), 3) for s in (0.0, 0.1, 0.2, 0.3)]
    [1.0, 0.1, 1.0, 0.1]
    """
    _check_share(share)
    check_temperature(start, "start")
    check_temperature(end, "end")
    check_temperature(periods, "periods")
    weight = 0.5 * (1 + math.cos(2 * math.pi * periods * share))
    return weight * start + (1 - weight) * end


def _check_share(share: float) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UserError(f"share must be a number from 0 to 1 (step / steps), got {share!r}")


class LearntTemperature(nn.Module):
    r"""A temperature that is learnt as the logarithm of the scale, as CLIP has it, with SigLIP's bias where asked.

    .. math:: \tau = 1/e^{t}, \qquad t \le \log(1/\tau_{\min})

    CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.5) begins at τ = 0.07 and keeps the scale at 100 or less,
    τ ≥ 0.01. SigLIP (Zhai et al. 2023, arXiv:2303.15343, section 3.2) begins at a scale of 10 and a bias of -10:
    ``LearntTemperature(0.1, bias=-10.0)``.

    The bound is kept by projection: a forward in training first puts the parameter back on the bound where a step
    has carried it over. There the gradient passes whole, so the first step that wants a larger τ has it; a clamp of
    the value alone would have no slope beyond the bound and stay there for ever. This is CLIP's clamp after each
    step, without a call to forget, and linear in the gradient, so right under DDP's mean. In ``eval`` the value is
    clamped and the parameter left alone.

    The parameters stay float32 where the model is cast to float16 or bfloat16: in these a step of training would be
    less than their spacing. They are numbers (), and like other scales want no weight decay.

    Args:
        init: τ at the start, at least ``least``.
        least: the bound, 0 for none.
        bias: where SigLIP's starts, or None for no bias.

    Attributes: ``log_scale`` (), ``bias`` () or None. Raises ``UserError`` on values out of range.

    >>> from nearfar.losses import nt_xent
    >>> temperature = LearntTemperature()
    >>> round(temperature().item(), 4)
    0.07
    >>> nt_xent(torch.eye(4), torch.tensor([0, 0, 1, 1]), temperature=temperature()).backward()
    >>> temperature.log_scale.grad.shape
    torch.Size([])
    """

    def __init__(self, init: float = 0.07, *, least: float = 0.01, bias: float | None = None):
        super().__init__()
        check_temperature(init, "init")
        if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least < math.inf:
            raise UserError(f"least must be a temperature, or 0 for no bound, got {least!r}")
        if init < least:
            raise UserError(f"init {init} is under least {least}: start at {least} or above, or lower least")
        if isinstance(bias, bool) or not (bias is None or (isinstance(bias, int | float) and math.isfinite(bias))):
            raise UserError(f"bias must be a number or None, got {bias!r}")
        self.most = -math.log(least) if least else math.inf  # of the log-scale
        self.log_scale = nn.Parameter(torch.tensor(-math.log(init), dtype=torch.float32))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias), dtype=torch.float32))

    def forward(self) -> Tensor:
        """τ as a tensor (), float32 (float64 in a model that is), with gradient."""
        bound = torch.full_like(self.log_scale, self.most, requires_grad=False)
        if self.training and torch.is_grad_enabled():  # through .data: an earlier forward's graph stays valid
            self.log_scale.data.clamp_(max=bound)
        return torch.exp(-torch.where(self.log_scale > bound, bound, self.log_scale))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LearntTemperature:
        return super()._apply(lambda t: _kept_wide(fn, t), recurse)

    def extra_repr(self) -> str:
        return f"least={math.exp(-self.most):.4g}"


def _kept_wide(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """A module's move to another device or type, but never to a float narrower than float32."""
    moved = fn(t)
    return moved if moved.dtype in (t.dtype, torch.float32, torch.float64) else t.to(moved.device)
