"""The common corruptions of test images (Hendrycks & Dietterich 2019, arXiv:1903.12261), on arrays, from a seed.

Each is a function of images x (N, H, W, C) in [0, 1], its strength (:mod:`~nearfar.evaluate.severities`) and one
generator an image. What the published code does is done, but for this: snow and frost (which need photographs) and
spatter are left out; the values are not cut to 8 bits at the end.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import oaconvolve

from nearfar.errors import UserError, nearest
from nearfar.evaluate.severities import STRENGTH, published_side

Generators = Sequence[np.random.Generator]
_BOX = Image.Resampling.BOX


def _drawn(rngs: Generators, draw: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
    return np.stack([draw(rng) for rng in rngs])


def gaussian_noise(x: np.ndarray, c: float, rngs: Generators) -> np.ndarray:
    return x + c * _drawn(rngs, lambda rng: rng.normal(size=x.shape[1:]))


def speckle_noise(x: np.ndarray, c: float, rngs: Generators) -> np.ndarray:
    return x + c * x * _drawn(rngs, lambda rng: rng.normal(size=x.shape[1:]))


def shot_noise(x: np.ndarray, c: float, rngs: Generators) -> np.ndarray:
    """Poisson counts of ``c`` photons at white."""
    return np.stack([rng.poisson(image * c) for image, rng in zip(x, rngs)]) / c


def impulse_noise(x: np.ndarray, c: float, rngs: Generators) -> np.ndarray:
    """A share ``c`` of the values becomes 0 or 1, by halves."""
    u = _drawn(rngs, lambda rng: rng.random((2, *x.shape[1:])))  # (N, 2, H, W, C)
    return np.where(u[:, 0] <= c, (u[:, 1] <= 0.5) * 1.0, x)


def gaussian_blur(x: np.ndarray, c: float, rngs: Generators) -> np.ndarray:
    return gaussian_filter(x, c, axes=(1, 2), mode="nearest")


def disk(radius: float, edge: float) -> np.ndarray:
    """A disk's share of each pixel, its edge softened by a Gaussian of ``edge`` cut to three pixels (five above 8)."""
    n = max(8, math.ceil(radius))
    line = np.arange(-n, n + 1)
    hard = (line[:, None] ** 2 + line**2 <= radius**2) * 1.0
    reach = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    soft = np.exp(-(reach**2) / (2 * edge**2))
    soft /= soft.sum()
    pad = len(reach) // 2
    kernel = oaconvolve(np.pad(hard / hard.sum(), pad, mode="reflect"), np.outer(soft, soft), mode="valid")
    full = min(n, math.floor(radius) + pad)  # beyond it there is nothing
    return kernel[n - full : n + full + 1, n - full : n + full + 1]


def defocus_blur(x: np.ndarray, c: tuple[float, float], rngs: Generators) -> np.ndarray:
    kernel = disk(*c)
    pad = len(kernel) // 2
    wide = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    return oaconvolve(wide, kernel[None, :, :, None], mode="valid", axes=(1, 2))


def glass_blur(x: np.ndarray, c: tuple[float, int, int], rngs: Generators) -> np.ndarray:
    """Blur, each pixel in turn takes the value of one near it, blur.

    The paper says that pixels are swapped; its code copies, as its rows are views of one array, and so does this.
    """
    sigma, reach, times = c
    n, height, width, _ = x.shape
    y = np.floor(gaussian_blur(x, sigma, rngs) * 255)
    rows, cols = (np.arange(size - reach, reach, -1) for size in (height, width))
    moves = _drawn(rngs, lambda rng: rng.integers(-reach, reach, (times, len(rows), len(cols), 2)))
    each = np.arange(n)
    for t in range(times):
        for i, h in enumerate(rows):
            for j, w in enumerate(cols):
                dy, dx = moves[:, t, i, j].T  # (N,), (N,)
                y[:, h, w] = y[each, h + dy, w + dx]
    return gaussian_blur(y / 255, sigma, rngs)


def motion_blur(x: np.ndarray, c: tuple[float, float], rngs: Generators) -> np.ndarray:
    """ImageMagick's: half a Gaussian along a line at an angle in [-45°, 45°], to whole pixels; edges are repeated."""
    radius, sigma = c
    angle = np.deg2rad(_drawn(rngs, lambda rng: rng.uniform(-45, 45)))  # (N,)
    steps = np.arange(2 * math.ceil(radius) + 1)
    kernel = np.exp(-(steps**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    n, height, width, _ = x.shape
    out = np.zeros_like(x)
    for i, weight in zip(steps, kernel):
        dy, dx = (np.ceil(i * f(angle) - 0.5).astype(int)[:, None] for f in (np.sin, np.cos))
        rows, cols = (np.arange(height) + dy).clip(0, height - 1), (np.arange(width) + dx).clip(0, width - 1)
        out += weight * x[np.arange(n)[:, None, None], rows[:, :, None], cols[:, None]]
    return out


def _along(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows resampled by a (h, H), columns by b (w, W). (N, H, W, C) -> (N, h, w, C)"""
    return np.einsum("ih,nhwc,jw->nijc", a, x, b, optimize=True)


def _zoomed(n: int, factor: float) -> np.ndarray:
    """The middle of a line, enlarged and cut to its length, linear between pixels. (n, n)"""
    kept = math.ceil(n / factor)
    grown, first = round(kept * factor), (n - kept) // 2
    at = (np.arange(n) + (grown - n) // 2) * ((kept - 1) / max(grown - 1, 1))
    left = np.floor(at).astype(int).clip(0, max(kept - 2, 0))
    out = np.zeros((n, n))
    out[np.arange(n), first + left] = 1 - (at - left)
    out[np.arange(n), first + np.minimum(left + 1, kept - 1)] += at - left
    return out


def zoom_blur(x: np.ndarray, c: np.ndarray, rngs: Generators) -> np.ndarray:
    return (x + sum(_along(x, *(_zoomed(n, f) for n in x.shape[1:3])) for f in c)) / (len(c) + 1)


def plasma(side: int, decay: float, rngs: Generators) -> np.ndarray:
    """Clouds by diamonds and squares, each halving of the step ``decay`` times fainter. (N, side, side) in [0, 1]"""
    noise = _drawn(rngs, lambda rng: rng.uniform(-1, 1, (side, side)))
    held = np.zeros((len(rngs), side, side))
    step, wibble, roll = side, 100.0, np.roll

    def put(rows: slice, cols: slice, total: np.ndarray, strength: float) -> None:
        held[:, rows, cols] = total / 4 + strength * noise[:, rows, cols]

    while step >= 2:
        half = step // 2
        even, odd = slice(0, side, step), slice(half, side, step)
        corners = held[:, even, even] + roll(held[:, even, even], -1, 1)
        put(odd, odd, corners + roll(corners, -1, 2), wibble**2)
        middle, corner = held[:, odd, odd], held[:, even, even]
        put(even, odd, middle + roll(middle, 1, 1) + corner + roll(corner, -1, 2), wibble**2)
        put(odd, even, middle + roll(middle, 1, 2) + corner + roll(corner, -1, 1), wibble**2)
        step, wibble = half, wibble / decay
    held -= held.min((1, 2), keepdims=True)
    return held / held.max((1, 2), keepdims=True)


def fog(x: np.ndarray, c: tuple[float, float], rngs: Generators) -> np.ndarray:
    thick, decay = c
    height, width = x.shape[1:3]
    side = 2 ** math.ceil(math.log2(max(height, width)))
    top = x.max((1, 2, 3), keepdims=True)
    return (x + thick * plasma(side, decay, rngs)[:, :height, :width, None]) * top / (top + thick)


def brightness(x: np.ndarray, c: float, rngs: Generators) -> np.ndarray:
    """HSV's value, the largest channel, grows by ``c``; hue and saturation stay."""
    value = x.max(3, keepdims=True)
    more = np.minimum(value + c, 1)
    return np.where(value > 0, x * more / np.where(value > 0, value, 1), more)


def saturate(x: np.ndarray, c: tuple[float, float], rngs: Generators) -> np.ndarray:
    """HSV's saturation s becomes ``c[0]·s + c[1]``. A grey has hue 0: what is added turns it red, as published."""
    value, least = x.max(3, keepdims=True), x.min(3, keepdims=True)
    spread = value - least
    share = np.where(spread > 0, (value - x) / np.where(spread > 0, spread, 1), np.array([0.0, 1.0, 1.0]))
    saturation = spread / np.where(value > 0, value, 1)
    return value * (1 - (saturation * c[0] + c[1]).clip(0, 1) * share)


def contrast(x: np.ndarray, c: float, rngs: Generators) -> np.ndarray:
    mean = x.mean((1, 2), keepdims=True)  # of each image's channel
    return (x - mean) * c + mean


def _folded(at: np.ndarray, n: int, edge: bool) -> np.ndarray:
    """Indices beyond a line's ends, mirrored into it; the end pixel comes twice where ``edge``."""
    if n == 1:
        return np.zeros_like(at)
    period = 2 * n if edge else 2 * n - 2
    at = at % period
    return np.minimum(at, period - edge - at)


def sample(x: np.ndarray, rows: np.ndarray, cols: np.ndarray, edge: bool) -> np.ndarray:
    """Bilinear values at places (N, H, W) in pixels, mirrored beyond the edges. x (N, H, W, C)"""
    top, left = np.floor(rows).astype(int), np.floor(cols).astype(int)
    down, right = (rows - top)[..., None], (cols - left)[..., None]
    r = [_folded(top + i, x.shape[1], edge) for i in (0, 1)]
    q = [_folded(left + i, x.shape[2], edge) for i in (0, 1)]
    each = np.arange(len(x))[:, None, None]
    upper = x[each, r[0], q[0]] * (1 - right) + x[each, r[0], q[1]] * right
    lower = x[each, r[1], q[0]] * (1 - right) + x[each, r[1], q[1]] * right
    return upper * (1 - down) + lower * down


def affine(corners: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The maps that take each image's three moved points back to where they were. (3, 2), (N, 3, 2) -> (N, 2, 3)"""
    ones = np.concatenate([moved, np.ones((*moved.shape[:2], 1))], 2)  # (N, 3, 3): x, y, 1
    return np.linalg.solve(ones, np.broadcast_to(corners, moved.shape)).transpose(0, 2, 1)


def elastic_transform(x: np.ndarray, c: tuple[float, float, float], rngs: Generators) -> np.ndarray:
    """Three points are moved at random, then every pixel along a smooth random field. Lengths: shares of the side."""
    _, height, width, _ = x.shape
    shift, sigma, corner = (v * max(height, width) for v in c)
    middle, arm = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])  # x, y
    moved = corners + corner * _drawn(rngs, lambda rng: rng.uniform(-1, 1, (3, 2)))
    back = affine(corners, moved)
    field = _drawn(rngs, lambda rng: rng.uniform(-1, 1, (2, height, width)))
    field = shift * gaussian_filter(field, sigma, axes=(2, 3), mode="reflect", truncate=3)
    rows, cols = np.mgrid[:height, :width]  # (H, W) each
    across, along = (back[:, i, 0, None, None] * cols + back[:, i, 1, None, None] * rows + back[:, i, 2, None, None]
                     for i in (0, 1))  # fmt: skip
    return sample(sample(x, along, across, False), rows + field[:, 1], cols + field[:, 0], True)


def _boxed(n: int, share: float) -> np.ndarray:
    """A line made smaller and large again by Pillow's box filter. (n, n)"""
    small = max(1, int(n * share))
    line = Image.fromarray(np.eye(n, dtype=np.float32))  # columns of unit vectors: what a resize makes of each
    return np.asarray(line.resize((n, small), _BOX).resize((n, n), _BOX), np.float64)


def pixelate(x: np.ndarray, c: float, rngs: Generators) -> np.ndarray:
    return _along(x, *(_boxed(n, c) for n in x.shape[1:3]))


def jpeg_compression(x: np.ndarray, c: int, rngs: Generators) -> np.ndarray:
    """Pillow's, of 8 bits; of other than one or three channels each alone."""
    if x.shape[3] not in (1, 3):
        return np.concatenate([jpeg_compression(x[..., i : i + 1], c, rngs) for i in range(x.shape[3])], 3)
    out = []
    for image in (x * 255).round().astype(np.uint8):
        held = io.BytesIO()
        Image.fromarray(image[..., 0] if x.shape[3] == 1 else image).save(held, "JPEG", quality=c)
        with Image.open(held) as read:
            out.append(np.asarray(read).reshape(image.shape) / 255)
    return np.stack(out)


MAIN: dict[str, Callable[[np.ndarray, Any, Generators], np.ndarray]] = {f.__name__: f for f in (
    gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, fog, brightness,
    contrast, elastic_transform, pixelate, jpeg_compression)}  # fmt: skip
"""What the mean corruption accuracy is over: the paper's, less snow and frost."""
EXTRA = {f.__name__: f for f in (speckle_noise, gaussian_blur, saturate)}
"""The paper's further ones, less spatter."""
SEVERITIES = (1, 2, 3, 4, 5)


def names(channels: int) -> tuple[str, ...]:
    """The corruptions that images of so many channels can have: saturation needs three."""
    return tuple(name for name in (*MAIN, *EXTRA) if channels == 3 or name != "saturate")


def corrupt(
    x: np.ndarray, name: str, severity: int, *, seed: int = 0, index: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """Images as a common corruption leaves them, at severity 1 to 5; at 0 as they are.

    Args:
        x: (N, H, W, C) in [0, 1], sides from 8 up.
        index: each image's number, 0, 1, … where left out: what is drawn for an image is a function of the seed, the
            corruption and its number alone: not of the severity, nor of what else is in the array.

    Returns (N, H, W, C) float32 in [0, 1]. Strengths are those of the published set nearest in size. Raises
    ``UserError`` for an unknown name, a severity that is none, and values outside [0, 1].

    >>> corrupt(np.full((1, 8, 8, 1), 0.5), "brightness", 3)[0, 0, 0]
    array([0.65], dtype=float32)
    """
    x = np.asarray(x)
    if x.ndim != 4 or min(x.shape[1:3], default=0) < 8 or x.shape[3] < 1:
        raise UserError(f"corruptions of an array of shape {x.shape}: give images (N, H, W, C), sides from 8 up")
    if name not in names(x.shape[3]):
        if name in EXTRA:
            raise UserError(f"{name} needs 3 channels, the images have {x.shape[3]}: leave it out")
        raise UserError(f"unknown corruption {name!r}{nearest(name, names(x.shape[3]))}")
    if severity not in (0, *SEVERITIES):
        raise UserError(f"severity {severity}: give 1 to 5, or 0 for the images as they are")
    if x.dtype.kind != "f" or not (x.size == 0 or (x.min() >= 0 and x.max() <= 1)):  # NaN fails, too
        raise UserError(f"corruptions of {x.dtype} values outside [0, 1]: divide by the largest value first")
    index = np.arange(len(x)) if index is None else np.asarray(index)
    if index.shape != (len(x),):
        raise UserError(f"{len(index)} numbers for {len(x)} images: give one each")
    if severity == 0 or not len(x):
        return x.astype(np.float32)
    code = zlib.crc32(name.encode())
    rngs = [np.random.default_rng([seed, code, int(i)]) for i in index]
    strength = STRENGTH[published_side(*x.shape[1:3])][name][severity - 1]
    return (MAIN | EXTRA)[name](x.astype(np.float64), strength, rngs).clip(0, 1).astype(np.float32)
