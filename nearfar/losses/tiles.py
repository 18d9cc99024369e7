"""The arithmetic under the softmax losses: tiles of the similarity matrix, made, used and forgotten. No autograd here.

Every function takes embeddings as they are (normalised by the caller), a scale (1/τ), and never holds more than one
tile of ``side``² values, twice. Where no logit can exceed ``BOUND`` in size the exponentials need no shift: one
exponential serves a row and its mirror image. Else a running maximum is kept for each row. Sums of tiles are
accumulated in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

COARSE = 1e4  # logits beyond it are known to less than 0.001 in float32: a probability could come out above 1
BOUND = 40.0  # exp(±40) and a sum of many of them are far from float32's ends, as is their product with exp(40)
_LOW = -1e30  # stands for -inf: its exponential is 0, and it takes part in sums and differences


def side(device: torch.device, longest: int) -> int:
    """Rows of a tile: in a CPU's caches; large enough to fill a GPU."""
    most = 1024 if device.type == "cpu" else 4096
    return max(1, min(most, longest))


class Unit:
    """Rows brought to length one as they are used, never all at once: ``u[a:b]`` is ``z[a:b] * inverse[a:b]``."""

    def __init__(self, z: Tensor, inverse: Tensor) -> None:
        self.z, self.inverse = z, inverse  # (N, d), (N, 1)
        self.shape, self.dtype, self.device = z.shape, z.dtype, z.device

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.z[rows] * self.inverse[rows]


def reach(scale: float, q: Tensor | Unit, k: Tensor | Unit) -> float:
    """A bound on the size of any logit: scale · max‖q‖ · max‖k‖."""
    if isinstance(q, Unit):
        return scale
    if not len(q) or not len(k):
        return 0.0
    longest = q.norm(dim=1).max() * (1.0 if k is q else k.norm(dim=1).max())
    if k is q:
        longest = longest * q.norm(dim=1).max()
    return float(scale * longest)


class Buffers:
    """Two tiles' memory, used again for every tile."""

    def __init__(self, like: Tensor, size: int) -> None:
        self._size = size
        self._held = [torch.empty(size * size, dtype=like.dtype, device=like.device) for _ in range(2)]

    def __call__(self, which: int, rows: int, columns: int) -> Tensor:
        return self._held[which][: rows * columns].view(rows, columns)


def half(
    u: Tensor | Unit, scale: float, buffers: Buffers, size: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """The tiles on and above the diagonal of ``scale · u uᵀ``: rows, columns, logits, and the rows of u for both."""
    n = len(u)
    for i in range(0, n, size):
        rows = slice(i, min(i + size, n))
        a = u[rows]
        scaled = a * scale
        for j in range(i, n, size):
            columns = slice(j, min(j + size, n))
            b = a if j == i else u[columns]
            tile = buffers(0, rows.stop - i, columns.stop - j)
            torch.mm(scaled, b.T, out=tile)
            yield rows, columns, tile, a, b


def full(q: Tensor, k: Tensor, scale: float, buffers: Buffers, size: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """All tiles of ``scale · q kᵀ``: rows, columns, logits. (N, d), (M, d)"""
    for i in range(0, len(q), size):
        rows = slice(i, min(i + size, len(q)))
        scaled = q[rows] * scale
        for j in range(0, len(k), size):
            columns = slice(j, min(j + size, len(k)))
            tile = buffers(0, rows.stop - i, columns.stop - j)
            torch.mm(scaled, k[columns].T, out=tile)
            yield rows, columns, tile


def blank(tile: Tensor, rows: slice, columns: slice, first: int | None, value: float) -> None:
    """Set the entries where anchor ``i`` meets itself, candidate ``first + i``."""
    if first is None:
        return
    low, high = max(rows.start + first, columns.start), min(rows.stop + first, columns.stop)
    if low < high:
        tile[low - first - rows.start : high - first - rows.start, low - columns.start : high - columns.start] \
            .fill_diagonal_(value)  # fmt: skip


class LogSums:
    """A running log Σ exp for each of n rows, over tiles."""

    def __init__(self, n: int, like: Tensor, bounded: bool) -> None:
        self.bounded = bounded
        self.sums = torch.zeros(n, dtype=torch.float64, device=like.device)
        self.most = None if bounded else torch.full((n,), _LOW, dtype=like.dtype, device=like.device)

    def add(self, where: slice, tile: Tensor, dim: int, spare: Tensor) -> None:
        """Take in a tile: exponentials where bounded, logits else."""
        if self.bounded:
            self.sums[where].add_(tile.sum(dim))
            return
        old = self.most[where]
        new = torch.maximum(old, tile.amax(dim))
        e = torch.sub(tile, new.unsqueeze(dim), out=spare).exp_()
        self.sums[where].mul_((old - new).double().exp_()).add_(e.sum(dim))
        self.most[where] = new

    def value(self) -> Tensor:
        """(n,) float64; about -1e30 for a row that saw no candidate."""
        logs = self.sums.log().clamp_(min=_LOW)
        return logs if self.most is None else logs + self.most


def self_lse(u: Tensor | Unit, scale: float) -> Tensor:
    """log Σ_{j≠i} exp(scale u_i·u_j), half of the products computed. (N, d) -> (N,) float64"""
    size = side(u.device, len(u))
    buffers, bounded = Buffers(u, size), reach(scale, u, u) <= BOUND
    sums = LogSums(len(u), u, bounded)
    for rows, columns, tile, _, _ in half(u, scale, buffers, size):
        if bounded:
            tile.exp_()
        spare = buffers(1, *tile.shape)
        if rows == columns:
            tile.fill_diagonal_(0.0 if bounded else _LOW)
        else:
            sums.add(columns, tile, 0, spare)
        sums.add(rows, tile, 1, spare)
    return sums.value()


def self_grad(u: Tensor | Unit, scale: float, lse: Tensor, g: Tensor) -> Tensor:
    """Gradient of Σ_i g_i lse_i with respect to u. (N, d), (N,), (N,) -> (N, d)"""
    size = side(u.device, len(u))
    buffers, most = Buffers(u, size), reach(scale, u, u)
    bounded, out = most <= BOUND, torch.zeros(u.shape, dtype=u.dtype, device=u.device)
    given = _Side(lse, g, most, u.dtype)
    weight = given.weight
    for rows, columns, tile, a, b in half(u, scale, buffers, size):
        other = buffers(1, *tile.shape)
        if bounded:
            tile.exp_().mul_(torch.add(weight[rows, None], weight[None, columns], out=other))
        else:
            given.apply(tile, rows, 1, other)
            tile = given.apply(tile, columns, 0, tile).add_(other)
        if rows == columns:
            tile.fill_diagonal_(0.0)
        else:
            out[columns].addmm_(tile.T, a)
        out[rows].addmm_(tile, b)
    return out.mul_(scale)


def lse(q: Tensor, k: Tensor, scale: float, first: int | None, both: bool) -> tuple[Tensor, Tensor | None]:
    """log Σ_j exp(scale q_i·k_j) for every row and, where ``both``, log Σ_i for every column. (N,), (M,) float64"""
    bounded = reach(scale, q, k) <= BOUND
    by_row = LogSums(len(q), q, bounded)
    by_column = LogSums(len(k), q, bounded) if both else None
    add_lse(q, k, scale, first, by_row, by_column)
    return by_row.value(), None if by_column is None else by_column.value()


def add_lse(
    q: Tensor, k: Tensor, scale: float, first: int | None, by_row: LogSums, by_column: LogSums | None = None
) -> None:
    """Take the tiles of ``scale · q kᵀ`` into running sums."""
    size = side(q.device, max(len(q), len(k)))
    buffers, bounded = Buffers(q, size), by_row.bounded
    for rows, columns, tile in full(q, k, scale, buffers, size):
        if bounded:
            tile.exp_()
        blank(tile, rows, columns, first, 0.0 if bounded else _LOW)
        spare = buffers(1, *tile.shape)
        if by_column is not None:
            by_column.add(columns, tile, 0, spare)
        by_row.add(rows, tile, 1, spare)


def grad(
    q: Tensor, k: Tensor, scale: float, first: int | None, by_row: tuple[Tensor, Tensor] | None,
    by_column: tuple[Tensor, Tensor] | None, wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of Σ_i g_i lse_i + Σ_j h_j lse'_j, given ``(lse, g)`` and ``(lse', h)``. -> (N, d), (M, d)"""
    size = side(q.device, max(len(q), len(k)))
    buffers, most = Buffers(q, size), reach(scale, q, k)
    bounded = most <= BOUND
    dq = torch.zeros_like(q) if wanted[0] else None
    dk = torch.zeros_like(k) if wanted[1] else None
    a = None if by_row is None else _Side(*by_row, most, q.dtype)
    b = None if by_column is None else _Side(*by_column, most, q.dtype)
    for rows, columns, tile in full(q, k, scale, buffers, size):
        other = buffers(1, *tile.shape)
        if bounded:
            tile.exp_()
            if a is None or b is None:
                tile.mul_(b.weight[None, columns] if a is None else a.weight[rows, None])
            else:
                tile.mul_(torch.add(a.weight[rows, None], b.weight[None, columns], out=other))
        elif a is None or b is None:
            tile = a.apply(tile, rows, 1, tile) if b is None else b.apply(tile, columns, 0, tile)
        else:
            a.apply(tile, rows, 1, other)
            tile = b.apply(tile, columns, 0, tile).add_(other)
        blank(tile, rows, columns, first, 0.0)
        if dq is not None:
            dq[rows].addmm_(tile, k[columns])
        if dk is not None:
            dk[columns].addmm_(tile.T, q[rows])
    return (None if dq is None else dq.mul_(scale)), (None if dk is None else dk.mul_(scale))


class _Side:
    """What one direction's gradient needs: its log-sums and the weights of its rows."""

    def __init__(self, lse: Tensor, g: Tensor, most: float, dtype: torch.dtype) -> None:
        bounded, self.coarse = most <= BOUND, most > COARSE
        self.lse = lse.to(dtype)
        self.weight = _weights(lse, g).to(dtype) if bounded else g.to(dtype)

    def apply(self, tile: Tensor, where: slice, dim: int, out: Tensor) -> Tensor:
        """weight · exp(tile - lse), the softmax's probabilities times the weights."""
        p = torch.sub(tile, self.lse[where].unsqueeze(dim), out=out)
        return (p.clamp_(max=0) if self.coarse else p).exp_().mul_(self.weight[where].unsqueeze(dim))


def _weights(lse: Tensor, g: Tensor) -> Tensor:
    """g · exp(-lse), 0 where g is 0 (a row without candidates has no lse). float64"""
    return torch.where(g == 0, 0.0, g.double() * (-lse.double()).exp())


def softplus_sums(
    q: Tensor, k: Tensor, scale: float, bias: float, first: int | None, wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:  # fmt: skip
    """Σ_ij log(1 + exp(scale q_i·k_j + bias)) and its gradients, all in one pass: 6 N·M·d operations.

    -> the sum () float64, dq (N, d), dk (M, d), and Σ_ij σ(…), the gradient of the bias, () float64. Where ``q`` is
    ``k`` (the same tensor) and ``first`` is 0 only the tiles on and above the diagonal are computed, half of the
    work, and ``dq`` holds the whole gradient.
    """
    mirrored = q is k and first == 0
    size = side(q.device, max(len(q), len(k)))
    buffers, bounded = Buffers(q, size), reach(scale, q, k) + abs(bias) <= 80
    value = torch.zeros((), dtype=torch.float64, device=q.device)
    slope = torch.zeros_like(value)
    dq = torch.zeros_like(q) if wanted else None
    dk = torch.zeros_like(k) if wanted and not mirrored else None
    tiles = half(q, scale, buffers, size) if mirrored else full(q, k, scale, buffers, size)
    for rows, columns, tile, *_ in tiles:
        other = buffers(1, *tile.shape)
        tile.add_(bias)
        blank(tile, rows, columns, first, _LOW)  # softplus and its slope are 0 there
        twice = 2 if mirrored and rows != columns else 1
        if bounded:
            tile.exp_()
            value += twice * torch.log1p(tile, out=other).sum()
            tile.div_(torch.add(tile, 1, out=other))
        else:
            value += twice * torch.nn.functional.softplus(tile, threshold=40).sum()
            tile.sigmoid_()
        if not wanted:
            continue
        slope += twice * tile.sum()
        dq[rows].addmm_(tile, k[columns])
        if not mirrored:
            dk[columns].addmm_(tile.T, q[rows])
        elif rows != columns:
            dq[columns].addmm_(tile.T, q[rows])
    if wanted:
        dq.mul_(2 * scale if mirrored else scale)
        if dk is not None:
            dk.mul_(scale)
    return value, dq, dk, slope
