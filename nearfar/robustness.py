"""How a run's features stand up to changed images: common corruptions, and each part of its own augmentations alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.data import Source
from nearfar.errors import UserError
from nearfar.evaluate import Evaluation
from nearfar.evaluate.corruptions import MAIN, SEVERITIES, corrupt, names
from nearfar.evaluate.robustness import Resampled, accuracies, sensitivity
from nearfar.evaluate.severities import SETS, published_side
from nearfar.gallery import Spaces
from nearfar.views.image import ImageViews, plain
from nearfar.views.parts import alone
from nearfar.views.policies import plan_of

ITEMS = 2000  # images that are corrupted, evenly taken
JUDGED = ("nearfar", "untrained encoder", "raw pixels")
SHOWN_AT = 3  # the severity of the pictures
_VALUES = 2**21  # of a chunk of images, so that memory is flat in the items

Change = Callable[[np.ndarray, np.ndarray], Tensor]
"""Numbers (B,) and images (B, H, W, C) in [0, 1] -> (B, C, H, W)."""


def measure(
    spaces: Spaces, result: Evaluation | None, *, seed: int = 0, items: int = ITEMS,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> tuple[dict[str, Any], np.ndarray]:  # fmt: skip
    """Accuracies on corrupted test images and cosines with augmented ones; pictures of the former. -> (K + 1, H, W, C)

    The probes are those of ``result``, fitted on clean training features: nothing is fitted or chosen again. Where
    there is none (no labels) there are cosines alone.

    Args:
        items: at most so many of the test images (of the training images, where there is no test part), evenly taken.
        seed: decides what is drawn.

    Raises ``UserError`` for images of less than 8 pixels a side.
    """
    shown = spaces.shown
    if min(shown.shape[:2]) < 8:
        raise UserError(f"robustness: images of {shown.shape[0]}×{shown.shape[1]} are too small: give 8×8 or more")
    if len(shown) < 2:
        raise UserError(f"robustness: {len(shown)} image: give two or more")
    rows = np.unique(np.linspace(0, len(shown) - 1, min(items, len(shown))).astype(np.int64))
    part = shown.subset(rows)
    tried = names(shown.shape[2])
    clean = _embed(spaces, part, lambda index, x: _pictures(x))
    judged = None
    if result is not None:
        judged = _corrupted(spaces, result, part, rows, tried, clean, seed, progress)
    first = _range(spaces, part, np.zeros(1, np.int64))
    seen = [first, *(corrupt(first, name, SHOWN_AT, seed=seed, index=rows[:1]) for name in tried)]
    return {
        "protocol": _protocol(spaces, part, tried, seed), "corruptions": judged,
        "sensitivity": _sensitivities(spaces, result, part, clean, seed, progress),
    }, np.concatenate(seen)  # fmt: skip


def _protocol(spaces: Spaces, part: Source, tried: tuple[str, ...], seed: int) -> dict[str, Any]:
    side = published_side(*part.shape[:2])
    return {
        "title": f"common corruptions of {len(part):,} {'training' if spaces.test is None else 'test'} images",
        "seed": seed, "items": len(part), "of": len(spaces.shown), "severities": list(SEVERITIES),
        "parameters": f"{SETS[side]}'s, made for {side} pixels (arXiv:1903.12261, github.com/hendrycks/robustness)",
        "tried": list(tried), "mean over": list(MAIN),
        "left out": "snow and frost (they need photographs), spatter",
        "probes": "those of the main table, fitted on clean training images; nothing is fitted or chosen again",
        "intervals": "95 %: bootstrap over the images, the same draws for all numbers of a table",
    }  # fmt: skip


def _range(spaces: Spaces, part: Source, index: np.ndarray) -> np.ndarray:
    """Images in [0, 1]. -> (B, H, W, C)"""
    return plain(part.read(index), *spaces.run.input.range_for(part)).permute(0, 2, 3, 1).numpy()


def _pictures(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))  # (B, C, H, W)


def _embed(spaces: Spaces, part: Source, change: Change) -> dict[str, np.ndarray]:
    """Every space's features of changed images, chunk by chunk. -> {name: (N, d)}"""
    out: dict[str, list[np.ndarray]] = {}
    step = max(1, _VALUES // int(np.prod(part.shape)))
    for at in range(0, len(part), step):
        index = np.arange(at, min(at + step, len(part)))
        for name, z in spaces.of_batch(change(index, _range(spaces, part, index))).items():
            out.setdefault(name, []).append(z)
    return {name: np.concatenate(parts) for name, parts in out.items()}


def _hits(result: Evaluation, features: dict[str, np.ndarray], y: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Whether each fitted judge is right on each image. -> {(embedding, judge): (N,)}"""
    return {(name, kind): judge.predict(features[name]) == y
            for name in JUDGED for kind, judge in result.judgements[name].items()}  # fmt: skip


def _corrupted(
    spaces: Spaces, result: Evaluation, part: Source, rows: np.ndarray, tried: tuple[str, ...],
    clean: dict[str, np.ndarray], seed: int, progress: Callable[[float, str], None],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """{embedding: {judge: accuracies}}"""
    hits: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
    for i, name in enumerate(tried):
        for severity in SEVERITIES:
            progress((i * len(SEVERITIES) + severity) / (len(tried) * len(SEVERITIES)), f"{name} {severity}")

            def change(index: np.ndarray, x: np.ndarray, name: str = name, severity: int = severity) -> Tensor:
                return _pictures(corrupt(x, name, severity, seed=seed, index=rows[index]))

            for key, hit in _hits(result, _embed(spaces, part, change), part.labels).items():
                hits.setdefault(key, {}).setdefault(name, []).append(hit)
    out: dict[str, dict[str, Any]] = {name: {} for name in JUDGED}
    for (name, kind), right in _hits(result, clean, part.labels).items():
        columns = {c: np.stack(severities, 1) for c, severities in hits[name, kind].items()}  # (N, 5) each
        out[name][kind] = accuracies(right, columns, MAIN, seed=seed)
    return out


def _sensitivities(
    spaces: Spaces, result: Evaluation | None, part: Source, clean: dict[str, np.ndarray], seed: int,
    progress: Callable[[float, str], None],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """{part of the policy: {embedding: cosine, other, sensitivity and, with labels, each judge's accuracy}}"""
    recipe = spaces.run.recipe
    out: dict[str, dict[str, Any]] = {}
    for name, policy in alone(plan_of(recipe.policy, recipe.views)).items():
        progress(1.0, name)
        views, generator = ImageViews((policy,), part.shape[:2], 0.0, 1.0), torch.Generator().manual_seed(seed)
        seen = _embed(spaces, part, lambda index, x, v=views, g=generator: v(x, g)[0])
        out[name] = {space: sensitivity(clean[space], z, seed=seed) for space, z in seen.items()}
        right = {} if result is None else _hits(result, seen, part.labels)
        for (space, kind), hit in right.items():
            out[name][space][kind] = Resampled(len(hit), seed).mean(hit.astype(np.float64))
    return out
