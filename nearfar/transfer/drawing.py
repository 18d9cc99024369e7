"""What is found in a picture, drawn on it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from nearfar.evaluate.detection import Found

# Okabe & Ito's colours, told apart by most kinds of sight
COLOURS = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178)]
_SIDE = 320  # pixels of the longer side
_LIKELY = 0.3  # boxes under this score are not drawn


def _canvas(pixels: np.ndarray) -> tuple[Image.Image, float]:
    rgb = Image.fromarray(np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels)
    share = min(1.0, _SIDE / max(rgb.size))
    size = tuple(max(1, round(s * share)) for s in rgb.size)
    return rgb.resize(size, Image.Resampling.BICUBIC), share


def legend(task: str, classes: tuple[str, ...]) -> dict[str, str]:
    """The colour of each class that is drawn, as #rrggbb; of masks, the background has none."""
    named = {"detection": classes, "segmentation": classes[1:]}.get(task, ())
    return {name: "#{:02x}{:02x}{:02x}".format(*colour(k)) for k, name in enumerate(named)}


def colour(k: int) -> tuple[int, int, int]:
    return COLOURS[k % len(COLOURS)]


def boxes_on(pixels: np.ndarray, found: Found) -> np.ndarray:
    """The likely boxes, in the colour of their class. (H, W, 1 | 3) uint8 -> (h, w, 3) uint8"""
    picture, share = _canvas(pixels)
    pen = ImageDraw.Draw(picture)
    for box, score, label in zip(found.boxes, found.scores, found.labels):
        if score >= _LIKELY:
            pen.rectangle([float(v) * share for v in box], outline=colour(int(label)), width=2)
    return np.asarray(picture)


def mask_on(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Every class but the background as a tint, and white where nothing is judged. -> (h, w, 3) uint8"""
    picture, _ = _canvas(pixels)
    small = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST))
    out = np.asarray(picture).astype(np.float32)
    for k in np.unique(small[small > 0]):
        tint = np.array((255, 255, 255) if k == 255 else colour(int(k) - 1), np.float32)
        out[small == k] = 0.5 * out[small == k] + 0.5 * tint
    return out.round().astype(np.uint8)
