"""An encoder of any origin as a record, with what a run has that embeds: it opens a source and embeds its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar import build
from nearfar.data import Source, Splits, to_stderr
from nearfar.errors import UserError
from nearfar.recipe import Recipe
from nearfar.training.progress import Bar, bar_for_decoding
from nearfar.views.image import plain

_CHUNK = 64  # images at once


@dataclass(frozen=True)
class ForeignEncoder:
    """``encode(x)``: (B, C, H, W), uint8 or float32 in [0, 1] -> (B, d), a tensor or an array.

    ``about`` says where the weights are from, what is done to the images and which output is taken.
    """

    name: str
    encode: Callable[[Tensor], Tensor | np.ndarray] = field(repr=False)
    about: Mapping[str, str]
    image_size: int = 0  # at which a source is opened

    def open(self, source: Any, say: Callable[[str], None] = to_stderr) -> Splits:
        """A source as a run in training opens it; the model's own size comes later, so that items are the same."""
        with bar_for_decoding(None) as progress:
            return build.open_like(source, None, Recipe(image_size=self.image_size), progress, say)

    def embed_part(self, part: Source, project: bool = False, show: bool | None = None) -> np.ndarray:
        """Features of every image of a source, in order. -> (N, d) float32

        Raises ``UserError`` where the model gives other than (B, d), or NaN.
        """
        if project:
            raise UserError(f"{self.name} has no projector: leave --project out")
        out, start, n = [], time.perf_counter(), len(part)
        with Bar(f"{self.name} on {part.spec}", show) as bar:
            for at in range(0, n, _CHUNK):
                index = np.arange(at, min(at + _CHUNK, n))
                out.append(self._checked(self.encode(_batch(part, index)), index, part))
                done = at + len(index)
                rate = done / (time.perf_counter() - start)
                bar.update(done / n, text=f"{done:,} of {n:,}", rate=rate, left=(n - done) / rate)
        return np.concatenate(out)

    def _checked(self, given: Tensor | np.ndarray, index: np.ndarray, part: Source) -> np.ndarray:
        z = given.detach().float().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
        if z.ndim != 2 or len(z) != len(index):
            raise UserError(f"{self.name} gives {z.shape} for {len(index)} images: an encoder gives "
                            f"({len(index)}, features)")  # fmt: skip
        if z.dtype.kind not in "fiu":
            raise UserError(f"{self.name} gives values of type {z.dtype}: an encoder gives numbers")
        z = z.astype(np.float32)
        bad = ~np.isfinite(z).all(1)
        if bad.any():
            first = index[int(bad.argmax())]
            raise UserError(f"{self.name} gives NaN or infinity, first for image {part.names[first]}: "
                            "are weights and normalisation right?")  # fmt: skip
        return z


def _batch(part: Source, index: np.ndarray) -> Tensor:
    """Images of a source. -> (B, C, H, W), uint8 where 0 to 255 is their range, else float32 in [0, 1]"""
    content = part.read(index)  # (B, H, W, C)
    if content.dtype == np.uint8 and (part.low, part.high) == (0, 255):
        return torch.from_numpy(np.ascontiguousarray(content.transpose(0, 3, 1, 2)))
    return plain(content, float(part.low), float(part.high))


def device() -> torch.device:
    """Where a model of torch's is run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def of_callable(call: Callable[[Tensor], Any]) -> ForeignEncoder:
    """``call(x)``, x (B, C, H, W) float32 in [0, 1] -> (B, d); a module is put in evaluation mode meanwhile."""
    name = getattr(call, "__name__", type(call).__name__)
    weights = next(call.parameters(), None) if isinstance(call, nn.Module) else None

    @torch.no_grad()
    def encode(x: Tensor) -> Any:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        if not isinstance(call, nn.Module):
            return call(x)
        was = call.training
        try:
            return call.eval()(x if weights is None else x.to(weights.device))
        finally:
            call.train(was)

    about = {"weights": "as given", "preprocessing": "[0, 1]", "features": "what it returns"}
    return ForeignEncoder(name, encode, about)
