"""What the report shows of a run, gathered into one file: features, thumbnails, views, map, neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nearfar import build
from nearfar.data import Source
from nearfar.errors import UserError
from nearfar.evaluate import geometry, neighbours
from nearfar.training.loop import step_generator

if TYPE_CHECKING:
    from nearfar.run import Run

_ITEMS, _PAIRS, _ORIGINALS, _VIEWS, _QUERIES, _NEAR = 1500, 1000, 8, 6, 10, 7


class Spaces:
    """The embeddings of one source that are judged side by side, each computed once."""

    def __init__(self, run: Run, train: Source, test: Source | None) -> None:
        self.run, self.train, self.test = run, train, test
        self.shown = test if test is not None else train  # what the pictures are of

    @cached_property
    def untrained(self) -> Any:
        """The same encoder with its first weights, BatchNorm's statistics measured on training images."""
        method = self.run._fresh()
        build.calibrate(method, self.train, self.run.input)
        return method

    def _embed(self, method: Any, part: Source, project: bool = False) -> np.ndarray:
        return build.embed(method, part, self.run.input, project=project)

    @cached_property
    def _pairs(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        parts = (self.train, self.test if self.test is not None else self.train.subset([]))
        both = lambda make: (make(parts[0]), make(parts[1]) if len(parts[1]) else None)  # noqa: E731
        return {
            "nearfar": both(lambda p: self._embed(self.run.method, p)),
            "projection": both(lambda p: self._embed(self.run.method, p, True)),
            "untrained encoder": both(lambda p: self._embed(self.untrained, p)),
            "raw pixels": both(lambda p: build.raw_pixels(p, self.run.input.range_for(p))),
        }

    def features(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """``{name: (train, test)}``: ours before and after the projector, untrained, raw pixels."""
        return self._pairs

    @torch.no_grad()
    def of_batch(self, x: torch.Tensor) -> dict[str, np.ndarray]:
        """Each space's features of pictures that are no source: corrupted ones, views. x (B, C, H, W) in [0, 1]"""
        method = self.run.method
        h = method.encoder(x.to(next(method.parameters()).device))
        held = {"nearfar": h, "projection": method.project(h), "untrained encoder": self.untrained.encoder(x.cpu()),
                "raw pixels": x.permute(0, 2, 3, 1).flatten(1)}  # fmt: skip
        return {name: z.float().cpu().numpy() for name, z in held.items()}

    def on_shown(self, name: str) -> np.ndarray:
        a, b = self._pairs[name]
        return a if b is None else b

    @cached_property
    def sample(self) -> np.ndarray:
        """Which images the pictures are of: at most 1,500, the same each time."""
        return some_of(self.shown)

    @cached_property
    def two_views(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Two augmented views of shown images, embedded: features, projections, untrained features."""
        run = self.run
        part = self.shown.subset(self.sample[:_PAIRS])
        low, high = run.input.range_for(part)
        views = build.image_views(run.recipe, build.Input(run.input.shape, low, high), 2)
        out: dict[str, list[list[np.ndarray]]] = {n: [[], []] for n in ("nearfar", "projection", "untrained encoder")}
        for at in range(0, len(part), 250):
            content = part.read(np.arange(at, min(at + 250, len(part))))
            for side, x in enumerate(views(content, step_generator(run.recipe.seed, 10**9 + at))):
                z = self.of_batch(x)
                for name in out:
                    out[name][side].append(z[name])
        return {n: (np.concatenate(a), np.concatenate(b)) for n, (a, b) in out.items()}

    def appearance(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What the report shows of these images, and of a few of their views."""
        part = self.shown
        return {"thumbs": thumbs(part.read(rows), *self.run.input.range_for(part)),
                "names": np.array([str(part.names[i]) for i in rows]),
                **views_sheet(self.run, part, rows[:_ORIGINALS])}  # fmt: skip


def some_of(part: Source) -> np.ndarray:
    """At most 1,500 of a source's items, the same each time."""
    return np.sort(np.random.default_rng(0).permutation(len(part))[:_ITEMS])


def geometry_of(spaces: Any) -> dict[str, dict[str, float]]:
    """Label-free measures of each space, on the shown items; LiDAR from two views of at most 1,000 of them."""
    out = {}
    for name, (a, b) in spaces.two_views.items():
        z = spaces.on_shown(name)[spaces.sample]
        out[name] = {"effective_rank": geometry.effective_rank(z), "dimensions": z.shape[1],
                     "alignment": geometry.alignment(a, b), "uniformity": geometry.uniformity(z),
                     "rankme": geometry.rankme(z), "alpha_req": geometry.alpha_req(z),
                     "lidar": geometry.lidar(np.stack([a, b], 1)) if len(a) > 1 else 0.0}  # fmt: skip
        out[name] = {k: v if np.isfinite(v) else None for k, v in out[name].items()}  # JSON has no NaN
    return out


def notes_of(spaces: Any, what: str = "image") -> list[str]:
    """What a reader of the numbers must know: were test items trained on?"""
    if spaces.test is None:
        return []
    path = spaces.run.folder / "seen.npy"
    try:
        seen = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return [f"{path.name} is missing: cannot tell whether test {what}s were trained on"]
    copies = int(np.isin(spaces.test.item_hashes, seen).sum())
    if not copies:
        return [f"no test {what} is among the {what}s the encoder was trained on"]
    return [f"{copies} of {len(spaces.test)} test {what}s are exact copies of {what}s the encoder was trained on"]


def thumbs(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Pictures to look at: one or three channels, at most 64 pixels. (N, H, W, C) -> (N, h, w, 1 | 3) uint8"""
    x = (pixels.astype(np.float32) - low) * (255 / (high - low))
    x = x if x.shape[3] in (1, 3) else x[..., :1]
    step = -(-max(x.shape[1:3]) // 64)
    return x[:, ::step, ::step].clip(0, 255).round().astype(np.uint8)


def views_sheet(run: Run, part: Source, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Originals, their views, and what was done to each."""
    low, high = run.input.range_for(part)
    content = part.read(rows)
    views = build.image_views(run.recipe, build.Input(run.input.shape, low, high), _VIEWS)
    seen = views.seen(content, step_generator(run.recipe.seed, 2 * 10**9))
    stacked = np.stack([thumbs(v.pixels.permute(0, 2, 3, 1).numpy(), 0.0, 1.0) for v in seen], 1)  # (m, v, h, w, c)
    text = [[v.drawn.describe(i) for v in seen] for i in range(len(content))]
    return {"views_original": thumbs(content, low, high), "views": stacked, "views_text": np.array(text)}


def write(path: Path, spaces: Any, pictures: Mapping[str, np.ndarray] = {}) -> None:
    """Gather everything, with pictures that were made already, and write it, whole or not at all."""
    shown, rows = spaces.shown, spaces.sample
    if not len(rows):
        raise UserError("nothing to show")
    z = spaces.on_shown("nearfar")[rows]
    queries = np.linspace(0, len(rows) - 1, min(_QUERIES, len(rows))).astype(np.int64)
    near, cosine = neighbours(z[queries], z, min(_NEAR + 1, len(z)))
    positive, negative = geometry.similarity_pairs(*spaces.two_views["projection"])
    labels = np.full(len(rows), -1) if shown.labels is None else shown.labels[rows]
    held = {
        "features": z.astype(np.float16),
        "labels": labels,
        "classes": np.array(shown.classes or (), dtype=str),
        "map": geometry.map2d(z).astype(np.float32),
        "neighbours": np.concatenate([queries[:, None], _without(near, cosine, queries)[0]], 1),
        "neighbour_cosine": np.concatenate([np.ones((len(queries), 1)), _without(near, cosine, queries)[1]], 1),
        "positives": positive, "negatives": negative,
        "spectrum": geometry.spectrum(z),
        "spectrum_untrained": geometry.spectrum(spaces.on_shown("untrained encoder")[rows]),
        "spectrum_projection": geometry.spectrum(spaces.on_shown("projection")[rows]),
        **spaces.appearance(rows),
        **pictures,
    }  # fmt: skip
    side = path.with_name(f".{path.name}.tmp.npz")
    np.savez_compressed(side, **held)
    side.replace(path)


def _without(near: np.ndarray, cosine: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop each query's own row from its neighbours (or the last, where a twin came first)."""
    keep = near != own[:, None]
    keep[keep.all(1), -1] = False
    shape = (len(near), near.shape[1] - 1)
    return near[keep].reshape(shape), cosine[keep].reshape(shape)
