"""Brightness, contrast, saturation, hue and grey: one affine map of the channels, applied once and clamped once.

Write a colour as its luma (Rec. 601) and the rest, its chroma. Brightness b scales both. Contrast c scales both and
adds (1 - c) times the mean luma to the luma. Saturation s scales the chroma. So these three **commute**: in any order
they are ``x -> b c (L + s P) x + (1 - c) b mean(luma)`` with L the luma in each channel and P = I - L.

A turn of the hue by θ comes after them. In HSV it keeps the largest and the smallest channel and moves the one between,
which no matrix does; the matrix here turns the two coordinates r - (g + b) / 2 and (g - b) √3 / 2, whose angle is HSV's
hue to within 1.2°, and keeps a weighted mean of the channels whose weights are those with which its colours are nearest
to HSV's on the training pictures of CIFAR-10 (luma's weights are twice as far; docs/views.md). Greys stay. Grey comes
last.

What is lost is the clamp between operations, the drawn order, and HSV's own hue: :func:`one_by_one` is that form,
torchvision's, to float32's rounding.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from nearfar.views.draw import Drawn
from nearfar.views.scratch import scratch

LUMA = (0.2989, 0.587, 0.114)  # torchvision's figures
_KEPT = (0.45, 0.1, 0.45)  # of red, green and blue, by a turn of the hue
_ORDERS = torch.tensor(list(permutations(range(4))))  # (24, 4): 0 brightness, 1 contrast, 2 saturation, 3 hue


def _parts() -> tuple[Tensor, Tensor]:
    """L and P; K, I - K and Q with which a turn of the hue is K + cos θ (I - K) + sin θ Q. (2, 9), (3, 9)"""
    third, eye = 3**0.5 / 2, torch.eye(3, dtype=torch.double)
    luma = (torch.tensor(LUMA, dtype=torch.double) / sum(LUMA)).expand(3, 3)
    kept = torch.tensor(_KEPT, dtype=torch.double)
    basis = torch.stack([kept, torch.tensor([1.0, -0.5, -0.5]).double(), torch.tensor([0.0, third, -third]).double()])
    quarter = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]).double()
    turned = torch.linalg.inv(basis) @ quarter @ basis  # 0 on what is kept, a quarter turn on the rest
    keep = kept.expand(3, 3)
    return (torch.stack([luma, eye - luma]).flatten(1).float(),
            torch.stack([keep, eye - keep, turned]).flatten(1).float())  # fmt: skip


_LUMA_AND_REST, _TURN = _parts()


def colour_map(drawn: Drawn, channels: int) -> tuple[Tensor, Tensor]:
    """``x -> M x + k · mean(luma)``. -> M (N, C, C), k (N,), on the CPU

    Channels other than three have brightness and contrast alone, their luma the plain mean of the channels.
    """
    scale, k = drawn.brightness * drawn.contrast, (1 - drawn.contrast) * drawn.brightness
    if channels != 3:
        return scale[:, None, None] * torch.eye(channels), k
    m = (torch.stack([scale, scale * drawn.saturation], 1) @ _LUMA_AND_REST).view(-1, 3, 3)
    if bool((drawn.hue != 0).any()):
        turn = torch.stack([torch.ones_like(k), drawn.hue.cos(), drawn.hue.sin()], 1) @ _TURN
        m = torch.bmm(turn.view(-1, 3, 3), m)
    return torch.where(drawn.grey[:, None, None] > 0, _LUMA_AND_REST[0].view(3, 3) @ m, m), k


def luma_weights(channels: int, device: torch.device | str = "cpu") -> Tensor:
    """(C,) that sum to one."""
    w = torch.tensor(LUMA) / sum(LUMA) if channels == 3 else torch.full((channels,), 1 / channels)
    return w.to(device)


class Colour:
    """What is drawn of colour for all views of a call, on the device; with it the change to the unit range.

    Views that are drawn exact only have their unit changed: their operations follow one by one.
    """

    def __init__(self, drawn: Drawn, channels: int, scale: float, device: torch.device) -> None:
        off = drawn.exact > 0
        self.plain = not bool((drawn.coloured & ~off).any())
        self.scale, self.device = scale, device
        m, k = colour_map(drawn, channels)
        if bool(off.any()):
            m[off], k[off] = torch.eye(channels), 0.0
        held = torch.cat([m.flatten(1), k[:, None]], 1).mul_(scale).to(device, non_blocking=True)  # one transfer
        self.m, self.k = held[:, :-1].view(-1, channels, channels), held[:, -1:]
        self.luma = luma_weights(channels, device)

    def paint(self, y: Tensor, rows: Tensor | slice, out: Tensor) -> None:
        """Colour, unit and clamp in one product and one pass. y (n, C, h, w) raw -> ``out[rows]`` in [0, 1]"""
        n, channels, h, w = y.shape
        there = rows if isinstance(rows, slice) else rows.to(self.device, non_blocking=True)
        whole = isinstance(rows, slice)
        into = out[there] if whole else scratch("painted", (n, channels, h, w), torch.float32, self.device)
        flat = into.view(n, channels, h * w)
        if self.plain:
            torch.mul(y, self.scale, out=into)
        else:
            planes = scratch("planes", (n, channels + 1, h * w), torch.float32, self.device)
            planes[:, :channels].view(n, channels, h, w).copy_(y)
            planes[:, channels].fill_(1.0)  # what the shift is multiplied with: a pass less than adding it
            shift = self.k[there] * (planes[:, :channels].mean(2) @ self.luma)[:, None]  # (n, 1), of the mean luma
            m = torch.cat([self.m[there], shift[:, None].expand(-1, channels, -1)], 2)  # (n, C, C + 1)
            torch.bmm(m, planes, out=flat)
        if whole:
            into.clamp_(0, 1)
        elif self.device.type == "cpu":
            for part, i in zip(into, rows.tolist()):
                torch.clamp(part, 0, 1, out=out[i])
        else:
            out[there] = into.clamp_(0, 1)


# The exact form -----------------------------------------------------------------------------------------------------


def one_by_one(y: Tensor, drawn: Drawn) -> Tensor:
    """The operations in each view's drawn order, clamped after each, hue in HSV. y (N, C, h, w) in [0, 1], changed

    As torchvision's ``ColorJitter`` and ``RandomGrayscale`` on float tensors.
    """
    order = _ORDERS[drawn.order.long()]  # (N, 4)
    rgb = y.shape[1] == 3
    for slot in range(4):
        for kind, (name, neutral) in enumerate(_KINDS):
            value = getattr(drawn, name)
            rows = ((order[:, slot] == kind) & (value != neutral)).nonzero()[:, 0]
            if len(rows) and (rgb or kind < 2):
                there = rows.to(y.device)
                by = value[rows].to(y.device)[:, None, None, None]
                y[there] = _OPERATIONS[kind](y[there], by).clamp_(0, 1)
    rows = drawn.grey.nonzero()[:, 0].to(y.device)
    if rgb and len(rows):
        y[rows] = _grey(y[rows]).expand(-1, 3, -1, -1)
    return y


_KINDS = (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.0))


def _grey(y: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, 1, h, w)"""
    if y.shape[1] != 3:
        return y.mean(1, keepdim=True)
    return (y * torch.tensor(LUMA, device=y.device)[:, None, None]).sum(1, keepdim=True)


def _brightness(y: Tensor, by: Tensor) -> Tensor:
    return y * by


def _contrast(y: Tensor, by: Tensor) -> Tensor:
    return y * by + (1 - by) * _grey(y).mean((1, 2, 3), keepdim=True)


def _saturation(y: Tensor, by: Tensor) -> Tensor:
    return y * by + (1 - by) * _grey(y)


def _hue(y: Tensor, by: Tensor) -> Tensor:
    """Turn the hue of HSV by ``by`` radians."""
    high, low = y.amax(1), y.amin(1)  # (N, h, w)
    chroma = (high - low).clamp(min=1e-12)
    r, g, b = y.unbind(1)
    # the sector in which the largest channel lies, in sixths of the circle
    h = torch.where(high == r, (g - b) / chroma, torch.where(high == g, (b - r) / chroma + 2, (r - g) / chroma + 4))
    h = (h[:, None] + by * (3 / torch.pi)) % 6  # (N, 1, h, w)
    # f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + h) mod 6, for n = 5, 3, 1
    k = (torch.tensor([5.0, 3.0, 1.0], device=y.device)[:, None, None] + h) % 6  # (N, 3, h, w)
    return high[:, None] - (high - low)[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


_OPERATIONS = (_brightness, _contrast, _saturation, _hue)
