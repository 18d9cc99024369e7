"""Where a view's pixels come from: one map a view, sampled once from the original pixels, antialiased.

Where the map keeps rows and columns (crop, shift, scale, flip) it is two matrices, one for each axis, and the view is
``rows @ image @ columns.T``: a triangle (or cubic) kernel as wide as the larger of an input and an output pixel. A
Gaussian blur of the view is a matrix for each axis too, so it is multiplied into them and costs no pass over pixels.
Where the map turns them (rotation, shear, perspective) the view is one bilinear gather.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.views.draw import Drawn
from nearfar.views.scratch import scratch

_SQRT2 = math.sqrt(2.0)
_SHRUNK = 1.2  # input pixels an output pixel from which a turned view is filtered first


# The map ------------------------------------------------------------------------------------------------------------


def view_map(drawn: Drawn, image: tuple[int, int], view: tuple[int, int]) -> Tensor:
    """The map from a view's pixels to the image's: ``image_xy1 ~ map @ view_xy1``. -> (N, 3, 3) float32

    Coordinates are (x, y, 1) in pixels, the centre of the first pixel at 0.5, so that boxes [x0, y0, x1, y1] and
    pixel corners follow without an offset. Divide by the third coordinate (it is 1 but for perspective).

    >>> from nearfar.views.draw import still
    >>> view_map(still(1).changed(flip_x=1), (8, 8), (8, 8))[0, :2].tolist()
    [[-1.0, 0.0, 8.0], [0.0, 1.0, 0.0]]
    """
    out = _unit(view).to(drawn.table.device)  # view pixels to [-1, 1]
    into = torch.linalg.inv(_unit(image)).to(drawn.table.device)  # [-1, 1] to image pixels
    return into @ unit_map(drawn, image) @ out


def _unit(size: tuple[int, int]) -> Tensor:
    """Pixels to [-1, 1]. (3, 3)"""
    height, width = size
    return torch.tensor([[2 / width, 0.0, -1.0], [0.0, 2 / height, -1.0], [0.0, 0.0, 1.0]])


def unit_map(drawn: Drawn, image: tuple[int, int]) -> Tensor:
    """The same map in [-1, 1] of both: crop · turn · shear · perspective · flip. (N, 3, 3)"""
    sign_y, sign_x = 1 - 2 * drawn.flip_y, 1 - 2 * drawn.flip_x
    cos, sin = drawn.angle.cos(), drawn.angle.sin()
    aspect = (drawn.width * image[1]) / (drawn.height * image[0])  # turned in pixels, not in shares
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    m = torch.stack([
        drawn.width * cos, drawn.width * (cos * drawn.shear - sin) / aspect, 2 * drawn.centre_x - 1,
        drawn.height * sin * aspect, drawn.height * (sin * drawn.shear + cos), 2 * drawn.centre_y - 1,
        zero, zero, one,
    ], 1).view(-1, 3, 3)  # fmt: skip
    bent = (drawn.corners != 0).flatten(1).any(1)
    if bool(bent.any()):
        m = m @ torch.where(bent[:, None, None], _perspective(drawn.corners), torch.eye(3, device=m.device))
    return m * torch.stack([sign_x, sign_y, one], 1)[:, None]


_CORNERS = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]])  # y, x of [-1, 1]


def _perspective(corners: Tensor) -> Tensor:
    """The map that takes four corners moved inwards to the corners of [-1, 1]². (N, 4, 2) -> (N, 3, 3)

    The square's map to a quadrilateral in closed form (Heckbert 1989), inverted.
    """
    at = _CORNERS.to(corners.device) * (1 - corners)  # (N, 4, 2)
    y, x = at.double().unbind(2)  # (N, 4): p0 top left, p1 top right, p2 bottom right, p3 bottom left
    sx, sy = x[:, 0] - x[:, 1] + x[:, 2] - x[:, 3], y[:, 0] - y[:, 1] + y[:, 2] - y[:, 3]
    dx1, dx2, dy1, dy2 = x[:, 1] - x[:, 2], x[:, 3] - x[:, 2], y[:, 1] - y[:, 2], y[:, 3] - y[:, 2]
    det = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / det, (dx1 * sy - sx * dy1) / det
    to_quad = torch.stack([
        x[:, 1] - x[:, 0] + g * x[:, 1], x[:, 3] - x[:, 0] + h * x[:, 3], x[:, 0],
        y[:, 1] - y[:, 0] + g * y[:, 1], y[:, 3] - y[:, 0] + h * y[:, 3], y[:, 0],
        g, h, torch.ones_like(g),
    ], 1).view(-1, 3, 3)  # fmt: skip
    unit = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.double, device=at.device)
    return torch.linalg.inv(to_quad @ unit).float()  # [-1, 1] -> quad, inverted


# Rows and columns kept: two matrices --------------------------------------------------------------------------------


class Axis:
    """How a line of ``n_out`` pixels is made from a line of ``n_in``: for each view, taps and their weights.

    Attributes: ``first`` (N, out) int64, the first pixel of each output pixel's taps; ``weight`` (N, out, K), rows sum
    to one. What is given lies on the CPU; what is made, on ``device``.
    """

    def __init__(
        self, centre: Tensor, extent: Tensor, flip: Tensor, cubic: Tensor, n_in: int, n_out: int,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        scale = extent * (n_in / n_out)  # (N,) input pixels an output pixel
        wide = scale.clamp(min=1.0)  # (N,)
        any_cubic = bool(cubic.any())  # decided here, on the CPU: a device is never waited for
        reach = wide * (1 + cubic)
        k = min(n_in, math.ceil(2 * float(reach.max())))
        on = torch.stack([centre * n_in - 0.5, scale * (1 - 2 * flip), wide, reach, cubic])
        on = on.to(device, non_blocking=True)
        middle, step, wide, reach, cubic = on[:, :, None]  # (N, 1) each
        at = middle + (torch.arange(n_out, device=device) + (0.5 - n_out / 2)) * step  # (N, out) in input pixels
        at = at.clamp_(-0.5, n_in - 0.5)  # beyond the image its edge is repeated
        first = (at - reach).floor_().add_(1).clamp_(0, n_in - k)  # (N, out)
        d = (first - at)[:, :, None] + torch.arange(k, device=device)  # (N, out, K)
        d = d.abs_().div_(wide[:, :, None])
        weight = _cubic(d).where(cubic[:, :, None] > 0, (1 - d).clamp_(min=0)) if any_cubic else (1 - d).clamp_(min=0)
        self.weight = weight.div_(weight.sum(2, keepdim=True))
        self.first = first.long()

    def __getitem__(self, rows: Tensor | slice) -> Axis:
        part = object.__new__(Axis)
        part.weight, part.first = self.weight[rows], self.first[rows]
        return part

    def span(self) -> tuple[Tensor, Tensor]:
        """The pixels that a view touches, from and up to. (N,), (N,)"""
        return self.first.amin(1), self.first.amax(1) + self.weight.shape[2]

    def matrix(self, origin: Tensor | None, n: int, dtype: torch.dtype, name: str) -> Tensor:
        """The taps as a matrix over ``n`` pixels from ``origin`` (N,) on, in scratch memory. (N, out, n)"""
        count, out, k = self.weight.shape
        first = self.first if origin is None else self.first - origin[:, None]
        index = first[:, :, None] + torch.arange(k, device=first.device)  # (N, out, K)
        made = scratch(name, (count, out, n), dtype, self.weight.device).zero_()
        if dtype is torch.float32:
            return made.scatter_(2, index, self.weight)
        # the same bits as int16: 20 times as fast as bfloat16's own scatter
        made.view(torch.int16).scatter_(2, index, self.weight.to(dtype).view(torch.int16))
        return made


def _cubic(d: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2, as Pillow has it. d (…) distances >= 0"""
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0.0))


def axes(
    drawn: Drawn, image: tuple[int, int], view: tuple[int, int], device: torch.device | str = "cpu"
) -> tuple[Axis, Axis]:
    """Rows and columns of each view."""
    pairs = [(drawn.centre_y, drawn.centre_x), (drawn.height, drawn.width), (drawn.flip_y, drawn.flip_x),
             (drawn.bicubic, drawn.bicubic)]  # fmt: skip
    if image[0] == image[1] and view[0] == view[1]:  # both at once
        both = Axis(*(torch.cat(pair) for pair in pairs), image[0], view[0], device)
        return both[: len(drawn)], both[len(drawn) :]
    rows, columns = ([pair[axis] for pair in pairs] for axis in (0, 1))
    return Axis(*rows, image[0], view[0], device), Axis(*columns, image[1], view[1], device)


def gaussian(sigma: Tensor, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Gaussian blur of a line of ``n`` pixels as a matrix, borders reflected, cut at 4 sigma. (N,) -> (N, n, n)

    In scratch memory.
    """
    reach = min(n - 1, math.ceil(4 * float(sigma.max())))
    sigma = sigma.to(device, non_blocking=True)
    offsets = torch.arange(-reach, reach + 1, device=device)  # (k,)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (N, k)
    kernel = kernel * (offsets.abs() <= (4 * sigma).ceil()[:, None])  # its own reach, whoever is in the batch
    kernel = kernel / kernel.sum(1, keepdim=True)
    source = (torch.arange(n, device=device)[:, None] + offsets).abs()  # (n, k), reflected at both ends
    source = torch.where(source > n - 1, 2 * (n - 1) - source, source)
    out = scratch(f"gaussian {n}", (len(sigma), n, n), torch.float32, torch.device(device)).zero_()
    return out.scatter_add_(2, source.expand(len(sigma), -1, -1), kernel[:, None].expand(-1, n, -1))


def with_blur(matrices: list[Tensor], sigma: Tensor) -> list[Tensor]:
    """Multiply the blur into the resampling matrices of the views that have one. 2 × (N, out, n), sigma (N,)"""
    rows = sigma.nonzero()[:, 0]
    if not len(rows):
        return matrices
    device, dtype = matrices[0].device, matrices[0].dtype
    most = len(rows) > len(sigma) // 3  # then for all: where there is no blur its matrix is the identity
    lengths = {matrix.shape[1] for matrix in matrices}
    made = {n: gaussian(sigma if most else sigma[rows], n, device).to(dtype) for n in lengths}
    if most:
        return [torch.bmm(made[m.shape[1]], m, out=scratch(f"blurred {i}", m.shape, dtype, device))
                for i, m in enumerate(matrices)]  # fmt: skip
    there = rows.to(device, non_blocking=True)
    for matrix in matrices:
        matrix[there] = torch.bmm(made[matrix.shape[1]], matrix[there])
    return matrices


def resample(lines: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Two products. lines (B, H, C, W), rows (B·V, h, H), columns (B·V, w, W) -> (B·V, C, h, w), in scratch memory"""
    b, height, channels, width = lines.shape
    n, h, w = len(rows), rows.shape[1], columns.shape[1]
    y = scratch("rows done", (b, n // b * h, channels * width), lines.dtype, lines.device)
    torch.bmm(rows.view(b, -1, height), lines.view(b, height, channels * width), out=y)  # (B, V·h, C·W)
    z = scratch("both done", (n, h * channels, w), lines.dtype, lines.device)
    torch.bmm(y.view(n, h * channels, width), columns.transpose(1, 2), out=z)  # (N, h·C, w)
    return z.view(n, h, channels, w).transpose(1, 2)


# Rows and columns turned: one gather --------------------------------------------------------------------------------


def gather(planes: Tensor, image: Tensor, drawn: Drawn, size: tuple[int, int]) -> Tensor:
    """Each view as one bilinear gather. planes (B, C, H, W), image (N,): whose view -> (N, C, h, w)

    Where the map shrinks the picture, the part of it that the view sees is first brought down to about the view's
    resolution with the antialiased matrices, and gathered from there.
    """
    device, extent = planes.device, tuple(planes.shape[2:])
    m = unit_map(drawn, extent)  # (N, 3, 3), [-1, 1] of the view to [-1, 1] of the image
    shrink = _shrink(m, extent, size)  # (N, 2) input pixels an output pixel, along y and x
    small = (shrink > _SHRUNK).any(1)
    out = planes.new_empty(len(drawn), planes.shape[1], *size)
    for group, reduce in ((~small, False), (small, True)):
        rows = group.nonzero()[:, 0]
        if len(rows):
            part, to = planes[image[rows].to(device)], m[rows]
            if reduce:
                part, to = _reduced(part, to, shrink[rows], size)
            grid = _grid(to.to(device), size, bool((to[:, 2, :2] != 0).any()))
            out[rows.to(device)] = F.grid_sample(part, grid, padding_mode="border", align_corners=False)
    return out


def _grid(m: Tensor, size: tuple[int, int], bent: bool) -> Tensor:
    """Where each output pixel lies in the input. (N, 3, 3) -> (N, h, w, 2)"""
    y = (torch.arange(size[0], device=m.device) + 0.5) * (2 / size[0]) - 1
    x = (torch.arange(size[1], device=m.device) + 0.5) * (2 / size[1]) - 1
    across, down = m[:, :, 0, None] * x, m[:, :, 1, None] * y + m[:, :, 2, None]  # (N, 3, w), (N, 3, h)
    at = (down[:, :2, :, None] + across[:, :2, None, :]).permute(0, 2, 3, 1)  # (N, h, w, 2)
    if bent:
        at = at / (down[:, 2, :, None] + across[:, 2, None, :]).clamp_(min=1e-3)[..., None]
    return at


def _shrink(m: Tensor, image: tuple[int, int], view: tuple[int, int]) -> Tensor:
    """Input pixels an output pixel at the view's middle, along y and x of the input. (N, 3, 3) -> (N, 2)"""
    w = m[:, 2, 2].clamp(min=1e-3)
    jacobian = m[:, :2, :2] / w[:, None, None] - m[:, :2, 2:] * m[:, 2:, :2] / (w * w)[:, None, None]  # rows x, y
    per_pixel = jacobian * torch.tensor([2 / view[1], 2 / view[0]], device=m.device)
    x, y = (per_pixel.norm(dim=2) * torch.tensor([image[1] / 2, image[0] / 2], device=m.device)).unbind(1)
    return torch.stack([y, x], 1)


def _reduced(planes: Tensor, m: Tensor, shrink: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What each view sees, at about its resolution, and the map into that. (N, C, H, W), (N, 3, 3) -> the same kinds"""
    n, channels, height, width = planes.shape
    corners = torch.cat([_CORNERS.flip(1), torch.ones(4, 1)], 1).to(m.device)  # (4, 3): x, y, 1
    at = torch.einsum("nij,kj->nki", m, corners)  # (N, 4, 3)
    at = at[..., :2] / at[..., 2:].clamp(min=1e-3)
    low, high = at.amin(1).clamp(-1, 1), at.amax(1).clamp(-1, 1)  # (N, 2) x, y
    span = (high - low).clamp_(min=1e-3)
    inner = tuple(math.ceil(_SQRT2 * s) for s in size)
    middle = (low + high) / 4 + 0.5  # in [0, 1]
    zero = torch.zeros(n, device=m.device)
    made = []
    for axis, (k, n_in) in enumerate(((1, height), (0, width))):
        # no finer than the view needs: the kernel is as wide as one of the view's pixels
        extent = torch.maximum(span[:, k] / 2, shrink[:, axis] * inner[axis] / n_in)
        made.append(Axis(middle[:, k], extent, zero, zero, n_in, inner[axis], planes.device))
        span[:, k] = 2 * extent
    lines = planes.transpose(1, 2).contiguous()  # (N, H, C, W)
    matrices = [axis.matrix(None, length, torch.float32, name)
                for axis, length, name in zip(made, (height, width), ("rows", "columns"))]  # fmt: skip
    small = resample(lines, *matrices)
    into = torch.zeros_like(m)
    into[:, 0, 0], into[:, 1, 1], into[:, 2, 2] = 2 / span[:, 0], 2 / span[:, 1], 1
    into[:, :2, 2] = -(2 * middle - 1) * 2 / span
    return small.contiguous(), into @ m


# What follows a view: points, boxes, masks, correspondences ----------------------------------------------------------


def follow_points(points: Tensor, to_image: Tensor) -> Tensor:
    """Where points of the image lie in the view. points (N, P, 2) x, y in pixels, to_image (N, 3, 3) -> (N, P, 2)"""
    return _carry(points, torch.linalg.inv(to_image))


def _carry(points: Tensor, m: Tensor) -> Tensor:
    points = points.to(m.dtype)
    at = torch.cat([points, torch.ones_like(points[..., :1])], 2) @ m.transpose(1, 2)  # (N, P, 3)
    return at[..., :2] / at[..., 2:]


def follow_boxes(boxes: Tensor, to_image: Tensor, view: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes of the image in the view: cut to it, and the share of each that is still seen.

    Args:
        boxes: (N, P, 4) x0, y0, x1, y1 in pixels of the image.
        to_image: (N, 3, 3) from :func:`view_map`.
        view: (h, w) of the view.

    Returns (N, P, 4), the upright box around each turned one, cut to the view, and (N, P), its area over that of the
    uncut one.
    """
    x0, y0, x1, y1 = boxes.unbind(2)
    corners = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], 2)  # (N, P, 8)
    at = follow_points(corners.reshape(len(boxes), -1, 2), to_image).view(*boxes.shape[:2], 4, 2)  # (N, P, 4, 2)
    whole = torch.cat([at.amin(2), at.amax(2)], 2)  # (N, P, 4)
    edge = torch.tensor([view[1], view[0]] * 2, dtype=whole.dtype, device=whole.device)
    cut = torch.minimum(whole.clamp(min=0), edge)
    area = lambda b: (b[..., 2] - b[..., 0]).clamp(min=0) * (b[..., 3] - b[..., 1]).clamp(min=0)  # noqa: E731
    return cut, area(cut) / area(whole).clamp(min=1e-9)


def follow_mask(mask: Tensor, to_image: Tensor, view: tuple[int, int], outside: int = 0) -> Tensor:
    """A mask of ids in the view, by the nearest pixel. (N, H, W) -> (N, h, w), ``outside`` where the image ends"""
    cells = places(to_image, view, view).floor().long()  # (N, h, w, 2)
    x, y = cells.unbind(3)
    height, width = mask.shape[1:]
    seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)  # (N, h·w)
    return torch.where(seen, mask.flatten(1).gather(1, flat).view(seen.shape), outside)


def places(to_image: Tensor, view: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Where the middles of a view's (rows, columns) of cells lie in the image. -> (N, rows, columns, 2) x, y in pixels

    Two views' cells correspond where their places are near: dense methods contrast those.
    """
    y = (torch.arange(cells[0], device=to_image.device) + 0.5) * (view[0] / cells[0])
    x = (torch.arange(cells[1], device=to_image.device) + 0.5) * (view[1] / cells[1])
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], 2).view(1, -1, 2)  # (1, rows·columns, 2)
    return _carry(grid.expand(len(to_image), -1, -1), to_image).view(-1, *cells, 2)
