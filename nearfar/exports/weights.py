"""An encoder's weights alone, as safetensors, and what they are of in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from nearfar.exports.card import shown_name
from nearfar.run import Run
from nearfar.training.state import plain


def write(run: Run, path: Path) -> None:
    """The state dict of ``run.encoder``; metadata ``config``: JSON."""
    save_file(plain(run.encoder.state_dict()), path, metadata={"format": "pt", "config": json.dumps(described(run))})


def described(run: Run) -> dict[str, Any]:
    """What builds the encoder again: its name, widths, and what it takes."""
    recipe, encoder = run.recipe, run.encoder
    held = {"encoder": shown_name(recipe.encoder), "features": encoder.features, "method": recipe.method}
    if not recipe.is_text:
        return held | {"width": recipe.width, "shape": list(run.input.shape)}
    text = recipe.text
    return held | {"width": recipe.width, "layers": text.layers, "heads": text.heads, "vocabulary": encoder.vocabulary,
                   "max_length": text.max_length, "pooling": pooling_of(run), "prefix": text.prefix,
                   "second_prefix": text.second_prefix}  # fmt: skip


def pooling_of(run: Run) -> str:
    """How its tokens' vectors become one."""
    pooling = getattr(run.encoder, "pooling", None)
    return "mean" if pooling is None else pooling.kind
