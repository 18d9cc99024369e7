"""From a recipe and a source to a model that can train: every choice the recipe left open is made here."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar import methods, wording
from nearfar.data import Source, Splits, open_source, to_stderr
from nearfar.encoders import image_encoder
from nearfar.encoders.norm import measured
from nearfar.errors import UserError
from nearfar.recipe import Recipe
from nearfar.text import looks_like_text
from nearfar.training.schedule import Pace
from nearfar.views.image import ImageViews, plain
from nearfar.views.policies import SUITS, choose, plan_of
from nearfar.views.policy import as_views, check_channels, for_channels, lay_out
from nearfar.wording import Words

DEFAULT_MINUTES = 5.0
_STANDARD = {(0.0, 1.0), (0.0, 255.0), (0.0, 65535.0)}


@dataclass(frozen=True)
class Input:
    """What an encoder of images takes: shape (H, W, C), and the raw values that stand for 0 and 1."""

    shape: tuple[int, int, int]
    low: float
    high: float

    def range_for(self, source: Source) -> tuple[float, float]:
        """The raw range of another source: its own where its type decides it, the training data's otherwise."""
        own = (float(source.low), float(source.high))
        mine = (self.low, self.high)
        if own == mine or own in _STANDARD - {(0.0, 1.0)}:
            return own
        return own if own == (0.0, 1.0) and mine in _STANDARD else mine

    def ready(self, source: Source, index: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """A source's images as the encoder takes them, without augmentation. -> (B, C, H, W) in [0, 1]"""
        return plain(source.read(index), *self.range_for(source), device)

    def described(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def input_of(source: Source) -> Input | Words:
    """What an encoder that is trained on a source takes."""
    if source.origin is not None:
        return Words(source.origin.tokenizer)
    return Input(tuple(source.shape), float(source.low), float(source.high))


def material(data: Source, recipe: Recipe) -> Source:
    """What is trained on: the source itself, or what the method wants made of it."""
    return wording.material(data, recipe) if data.origin is not None else data


def is_described(about: Any, text: bool = False) -> bool:
    """Whether a checkpoint's record says what a model takes: shape and range of the images, classes, their number."""
    if text:
        return wording.is_described(about)
    try:
        shape, low, high = (about["input"][key] for key in ("shape", "low", "high"))
        sides = len(shape) == 3 and all(type(n) is int and 0 < n < 2**16 for n in shape)
        images = type(about["images"]) is int and 0 < about["images"] < 2**40
        return sides and images and float(low) < float(high) and all(type(c) is str for c in about["classes"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def split(splits: Splits, recipe: Recipe) -> tuple[Source, Source | None]:
    """The part that is trained on and the part that judges: the source's own, or one held out by the seed.

    Without labels (of texts: scores, pairs) there is nothing to judge by, and all is trained on.
    """
    return wording.split(splits, recipe)


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; elsewhere it is emulated and slower than float32."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe)


def precision(asked: str) -> str:
    """What ``auto`` means on this machine."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if has_fast_bf16() else "32-true"


def resolve(recipe: Recipe, source: Source) -> Recipe:
    """Fill in what was left open, so that the written recipe says all."""
    if recipe.batch > len(source):
        raise UserError(
            f"batch {recipe.batch} is larger than the {len(source)} training {_items(recipe)}: "
            f"pass --batch {max(1, len(source) // 2)}"
        )
    _check_labels(recipe, source)
    if recipe.is_text:
        wording.check(recipe, source)
    else:
        recipe = _with_views(recipe, source)
    no_budget = not (recipe.epochs or recipe.steps or recipe.minutes)
    return recipe.changed(
        settings=dataclasses.asdict(recipe.method_config()),
        minutes=DEFAULT_MINUTES if no_budget else recipe.minutes,
        precision=precision(recipe.precision),
    )


def _items(recipe: Recipe) -> str:
    return "texts" if recipe.is_text else "images"


def _check_labels(recipe: Recipe, source: Source) -> None:
    """One line where a method wants labels that are not there."""
    module, other = methods.module(recipe.method), "simcse" if recipe.is_text else "simclr"
    paired = getattr(module, "PAIRS", False) and recipe.is_text and source.shape[0] > 1
    if not module.SUPERVISED or paired:
        return
    if source.labels is None:
        raise UserError(f"{recipe.method} learns from labels and {recipe.source} has none: use --method {other}")
    if len(np.unique(source.labels)) < 2:
        raise UserError(f"{recipe.method} tells classes apart and all labels of {recipe.source} are the same: "
                        f"use --method {other}")  # fmt: skip


def _with_views(recipe: Recipe, source: Source) -> Recipe:
    """The policy that suits the images, its values, and the settings that suit the policy."""
    module, policy = methods.module(recipe.method), recipe.policy
    if getattr(module, "CONTENT", "") == "text":
        raise UserError(f"{recipe.method} learns from text alone and {recipe.source} has images: use --method simclr")
    policy = recipe.policy
    if policy == "auto":
        policy = choose(source.shape, source.hint, getattr(module, "POLICY", None))
    check_channels(recipe.views, source.shape[2])
    views = as_views(for_channels(plan_of(policy, recipe.views), source.shape[2]))
    own = {f.name for f in dataclasses.fields(recipe.method_config())}
    suits = {k: v for k, v in SUITS.get(policy, {}).items() if k in own and k not in recipe.settings}
    height, width, _ = source.shape
    return recipe.changed(
        policy=policy,
        views=views,
        settings=recipe.settings | suits,
        encoder="cnn" if recipe.encoder == "auto" else recipe.encoder,
        image_size=height if height == width else recipe.image_size,
    )


def with_encoder(recipe: Recipe, spec: Any) -> Recipe:
    """The recipe with the encoder that suits what is to be learnt from, where it was left open."""
    text = looks_like_text(spec)
    if recipe.encoder == "auto":
        alone = "transformer" if getattr(methods.module(recipe.method), "CONTEXT", False) else "bag"
        return recipe.changed(encoder=alone if text else "cnn")
    if text and not recipe.is_text:
        raise UserError(f"--encoder {recipe.encoder} takes images and {_short(spec, 'what was given')} is text: use "
                        "--encoder transformer, bag, gru or lstm")  # fmt: skip
    return recipe


def views(recipe: Recipe, given: Input | Words, method: Any, *, rank: int = 0, world: int = 1) -> Any:
    """What makes a resolved recipe's views of a batch, as many as the method wants."""
    if isinstance(given, Words):
        return wording.views(recipe, method.encoder, method.views, rank=rank, world=world)
    return image_views(recipe, given, method.views, small=getattr(method, "small_views", False), rank=rank,
                       world=world)  # fmt: skip


def image_views(
    recipe: Recipe, given: Input, large: int, *, small: bool = False, rank: int = 0, world: int = 1
) -> ImageViews:
    """A resolved recipe's views: ``large`` ones and, where they are wanted, the policy's small crops."""
    plan = lay_out(plan_of(recipe.policy, recipe.views), large, small)
    products = torch.bfloat16 if recipe.precision == "bf16-mixed" else torch.float32
    return ImageViews(plan, given.shape[:2], given.low, given.high, rank=rank, world=world, dtype=products)


def pace(recipe: Recipe, n: int) -> Pace:
    """The budget over ``n`` training items."""
    if recipe.pace:
        return Pace(segments=[list(row) for row in recipe.pace])
    steps = recipe.steps or math.ceil(recipe.epochs * max(1, n // recipe.batch))
    return Pace(steps=steps, minutes=recipe.minutes)


def statistics(source: Source, limit: int = 10_000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation a channel over (at most 10,000 of) the training images in [0, 1]. (C,), (C,)"""
    index = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(np.int64))
    total = square = count = 0
    for chunk in np.array_split(index, max(1, len(index) // 500)):
        x = (source.read(chunk).astype(np.float64) - source.low) / (source.high - source.low or 1.0)
        total, square = total + x.sum((0, 1, 2)), square + (x * x).sum((0, 1, 2))
        count += x[..., 0].size
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    return torch.tensor(mean).float(), torch.tensor(std).float()


def model(
    recipe: Recipe, given: Input | Words, classes: int, images: int, mean: Tensor | None = None,
    std: Tensor | None = None, start: dict[str, Tensor] | None = None,
) -> Any:  # fmt: skip
    """The method's module with fresh weights, a function of the recipe's seed alone.

    mean, std: (C,), of images; start: the encoder's weights, in place of fresh ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if isinstance(given, Words):
            encoder = wording.encoder(recipe, given)
        else:
            encoder = image_encoder(recipe.encoder, given.shape, mean, std, width=recipe.width)
        if start is not None:
            try:
                encoder.load_state_dict(start)
            except RuntimeError:
                raise UserError(f"init = {recipe.init!r}: its encoder is not this one: give the encoder, width, layers "
                                "and max-length that it has") from None  # fmt: skip
        return methods.module(recipe.method).Method(encoder, recipe.method_config(), classes, images)


@torch.no_grad()
def embed(
    method: Any, source: Source, given: Input | Words, *, project: bool = False, chunk: int = 512
) -> np.ndarray:  # fmt: skip
    """Features (or projections) of every item of a source, without augmentation. -> (N, d) float32"""
    device = next(method.parameters()).device
    was = method.training
    method.eval()
    out = []
    for at in range(0, len(source), chunk):
        h = method.encoder(given.ready(source, np.arange(at, min(at + chunk, len(source))), device))  # (B, features)
        out.append((method.project(h) if project else h).float().cpu().numpy())
    method.train(was)
    return np.concatenate(out)


def raw_pixels(part: Source, values: tuple[float, float]) -> np.ndarray:
    """Every image of a source as a row in [0, 1]: what features are judged beside. -> (N, H·W·C) float32"""
    low, high = values
    return (part.read(np.arange(len(part))).reshape(len(part), -1).astype(np.float32) - low) / (high - low)


@torch.no_grad()
def calibrate(method: Any, source: Source, given: Input | Words, batches: int = 8) -> None:
    """Measure BatchNorm's statistics on training items, so that an untrained encoder is judged at its best."""
    with measured(method), torch.random.fork_rng([]):
        torch.manual_seed(0)  # of stochastic depth
        for at in range(min(batches, max(1, len(source) // 128))):
            method.encoder(given.ready(source, np.arange(at * 128, min((at + 1) * 128, len(source)))))


def open_like(
    spec: Any, wanted: Input | Words | None, recipe: Recipe, progress: Any = None,
    say: Callable[[str], None] = to_stderr,
) -> Splits:  # fmt: skip
    """Open a source; for a run by its tokeniser, or at its size and channels, or one line that says why not."""
    if recipe.is_text:
        return wording.open_like(spec, wanted, recipe, progress, say)
    size = recipe.image_size if wanted is None else (wanted.shape[0] if wanted.shape[0] == wanted.shape[1] else 0)
    grey = 0 if wanted is None else wanted.shape[2]
    own = str(spec) == recipe.source  # other pictures are taken whole
    splits = open_source(spec, image_size=size, channels=grey, max_bad=recipe.max_bad, progress=progress, say=say,
                         patch=recipe.patch if own else 0, long_side=recipe.long_side)  # fmt: skip
    for part in (splits.train, splits.test):
        if wanted is not None and part is not None and tuple(part.shape) != tuple(wanted.shape):
            said, mine = ("×".join(map(str, s)) for s in (part.shape, wanted.shape))
            raise UserError(f"{_short(spec)} gives images of {said}, the run was trained on {mine}")
    return splits


def _short(spec: Any, other: str = "the array") -> str:
    return str(spec) if isinstance(spec, str | os.PathLike) else other
