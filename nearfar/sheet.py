"""A sheet to look at: originals, their views, and what was done to each, as one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from nearfar.data import Source
from nearfar.errors import UserError
from nearfar.views.image import ImageViews
from nearfar.views.policies import choose, plan_of
from nearfar.views.policy import Plan, check_channels, for_channels, lay_out

_CELL, _GAP, _FONT = 160, 12, 11  # pixels


def plan_for(source: Source, policy: str, changes: dict) -> tuple[str, Plan]:
    """The policy's name (chosen where it is ``auto``) and its kinds of views for a source."""
    name = choose(source.shape, source.hint) if policy == "auto" else policy
    plan = plan_of(name, changes)  # a wrong name or value is said before anything else
    check_channels(changes, source.shape[2])
    return name, for_channels(plan, source.shape[2])


def views_sheet(source: Source, plan: Plan, *, rows: int = 8, large: int = 4, seed: int = 0) -> Image.Image:
    """``rows`` images of a source, spread over it, each beside ``large`` views and the plan's small crops.

    A view is drawn at its own resolution: enlarged by whole pixels, with all of a column on one scale.
    """
    index = np.unique(np.linspace(0, len(source) - 1, min(rows, len(source))).astype(np.int64))
    content = source.read(index)  # (n, H, W, C)
    low, high = float(source.low), float(source.high)
    views = ImageViews(lay_out(plan, large, small=True), source.shape[:2], low, high)
    seen = views.seen(content, torch.Generator().manual_seed(seed))
    first = (content.astype(np.float32) - low) / ((high - low) or 1.0)
    pixels = [first, *(v.pixels.permute(0, 2, 3, 1).numpy() for v in seen)]  # a column each: (n, h, w, C)
    said = [[source.names[int(i)] for i in index],
            *([v.drawn.describe(i) for i in range(len(index))] for v in seen)]  # fmt: skip
    scale = _CELL / max(source.shape[:2])
    return _laid_out([[_picture(x, scale) for x in column] for column in pixels], said,
                     ["original", *(f"view {i + 1}" for i in range(len(seen)))])  # fmt: skip


def _picture(x: np.ndarray, scale: float) -> Image.Image:
    """(h, w, C) in [0, 1], enlarged or reduced by ``scale``."""
    x = (x.clip(0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(x if x.shape[2] == 3 else x[..., 0])
    size = tuple(max(1, round(n * scale)) for n in picture.size)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return picture.convert("RGB").resize(size, how)


def _laid_out(
    columns: Sequence[Sequence[Image.Image]], said: Sequence[Sequence[str]], heads: Sequence[str]
) -> Image.Image:
    """Pictures in columns with words under each; a row is as high as its words need."""
    font, bold = _font("DejaVuSans"), _font("DejaVuSans-Bold")
    words = [[_wrapped(text, font) for text in column] for column in said]
    line = _FONT + 3
    heights = [max(c[r].height for c in columns) + line * max(len(w[r]) for w in words) + 6 + _GAP
               for r in range(len(columns[0]))]  # fmt: skip
    step = _CELL + _GAP
    sheet = Image.new("RGB", (len(columns) * step + _GAP, sum(heights) + 34), "white")
    pen = ImageDraw.Draw(sheet)
    for c, head in enumerate(heads):
        pen.text((_GAP + c * step, 10), head, fill="black", font=bold)
    y = 34
    for r, height in enumerate(heights):
        for c, column in enumerate(columns):
            x = _GAP + c * step
            sheet.paste(column[r], (x, y))
            for i, text in enumerate(words[c][r]):
                pen.text((x, y + column[r].height + 4 + i * line), text, fill=(70, 70, 70), font=font)
        y += height
    return sheet


def _font(name: str) -> ImageFont.FreeTypeFont:
    """matplotlib's fonts: Pillow's own has neither × nor σ."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), _FONT)


def _wrapped(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines no wider than a cell; a word that is wider is cut."""
    lines = [""]
    for word in text.split(" "):
        while font.getlength(word) > _CELL:
            word = "…" + word[2:]  # a path's end says more than its beginning
        grown = f"{lines[-1]} {word}".strip()
        if font.getlength(grown) <= _CELL:
            lines[-1] = grown
        else:
            lines.append(word)
    return lines


def write(sheet: Image.Image, out: Path) -> None:
    """Save the picture, whole or not at all."""
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"-o {out}: give a .png, .jpg or .webp file")
    out.parent.mkdir(parents=True, exist_ok=True)
    side = out.with_name(f".{out.stem}.{os.getpid()}.tmp{out.suffix}")
    try:
        sheet.save(side)
        side.replace(out)
    finally:
        side.unlink(missing_ok=True)
