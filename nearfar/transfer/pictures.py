"""Annotated pictures as tensors at one size, read once where that fits, and their augmentation by torchvision."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.data.patches import shrunk, size_at
from nearfar.data.scenes import IGNORE, Scene, Scenes, picture
from nearfar.errors import UserError, require

_MOST = 2 * 2**30  # bytes that are held
_SCALES = (0.75, 1.33)
_LEAST_SIDE = 2.0  # boxes that a crop leaves narrower than this are dropped


class Pictures:
    """Some of a data set's pictures with their boxes or masks: ``pictures[i]`` -> image (C, H, W) uint8, target.

    A detector's target holds ``boxes`` (n, 4) and ``labels`` (n,) in the pixels of what is given; a mask's is (H, W)
    int64 with 255 where nothing is said.
    """

    def __init__(self, scenes: Scenes, part: tuple[Scene, ...], channels: int, image_size: int) -> None:
        self.scenes, self.part, self.channels, self.image_size = scenes, part, channels, image_size
        self._held: dict[int, tuple[Tensor, Any]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        if i not in self._held:
            item = self._read(self.part[i])
            if self._bytes > _MOST:
                return item
            self._held[i] = item
            self._bytes += item[0].numel()
        return self._held[i]

    def _read(self, scene: Scene) -> tuple[Tensor, Any]:
        pixels = shrunk(picture(scene, self.channels), self.image_size)
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())  # (C, H, W)
        if self.scenes.task == "segmentation":
            mask = torch.from_numpy(self.scenes.mask(scene).astype(np.int64))[None, None].float()
            mask = torch.nn.functional.interpolate(mask, image.shape[1:], mode="nearest-exact")
            return image, mask[0, 0].long()
        sx, sy = image.shape[2] / scene.size[0], image.shape[1] / scene.size[1]
        boxes = torch.from_numpy(scene.boxes[~scene.crowd] * np.array([sx, sy, sx, sy], np.float32))
        return image, {"boxes": boxes, "labels": torch.from_numpy(scene.labels[~scene.crowd])}

    def without_broken(self) -> tuple[Pictures, list[str]]:
        """Those that can be read to the end, and what is wrong with the others: a cut file may have its header."""
        bad: dict[int, str] = {}
        for i in range(len(self)):
            try:
                self[i]
            except UserError as error:
                bad[i] = str(error)
        if not bad:
            return self, []
        kept = tuple(s for i, s in enumerate(self.part) if i not in bad)
        return Pictures(self.scenes, kept, self.channels, self.image_size), list(bad.values())

    def canvas(self) -> tuple[int, int]:
        """(H, W) that holds every picture, in multiples of 32."""
        return self._canvas

    @cached_property
    def _canvas(self) -> tuple[int, int]:
        sizes = np.array([size_at(s.size, self.image_size)[::-1] for s in self.part])
        return tuple(int(-(-v // 32) * 32) for v in sizes.max(0))


def augmented(image: Tensor, target: Any, canvas: tuple[int, int]) -> tuple[Tensor, Any]:
    """Scaled by 0.75 to 1.33, cut or padded to (H, W), flipped, brightness, contrast and saturation jittered.

    Draws from torch's global generator. Boxes go along; those that are left under two pixels wide or high are dropped.
    """
    v2 = require("torchvision.transforms.v2", "vision", "transfer")
    tv = require("torchvision.tv_tensors", "vision", "transfer")
    h, w = image.shape[1:]
    scale = float(torch.empty(()).uniform_(*_SCALES))
    size = [max(1, round(h * scale)), max(1, round(w * scale))]
    boxed = isinstance(target, dict)
    if boxed:
        target = {"boxes": tv.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(h, w)),
                  "labels": target["labels"]}  # fmt: skip
    else:
        target = tv.Mask(target[None])
    steps = [v2.Resize(size, antialias=True),
             v2.RandomCrop(canvas, pad_if_needed=True, fill={tv.Image: 0, tv.Mask: IGNORE, "others": 0}),
             v2.RandomHorizontalFlip()]  # fmt: skip
    if image.shape[0] == 3:
        steps.append(v2.ColorJitter(0.2, 0.2, 0.2))
    else:
        steps.append(v2.ColorJitter(0.2, 0.2))
    if boxed:
        steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=_LEAST_SIDE)]
    image, target = v2.Compose(steps)(tv.Image(image), target)
    if boxed:
        return image.as_subclass(Tensor), {"boxes": target["boxes"].as_subclass(Tensor), "labels": target["labels"]}
    return image.as_subclass(Tensor), target.as_subclass(Tensor)[0]


def draw(scenes: Scenes, amount: int | str, seed: int) -> tuple[Scene, ...]:
    """``amount`` training pictures ("10%": that share; 0: all), drawn by the seed, with every class where they can.

    First comes, of every class that is still missing, rarest first, the next picture that shows it.
    """
    pool = scenes.train
    n = max(1, round(float(amount[:-1]) / 100 * len(pool))) if isinstance(amount, str) else amount or len(pool)
    if n > len(pool):
        raise UserError(f"{n} labelled pictures of {len(pool)}: {scenes.spec} has no more to train on")
    order = np.random.default_rng([seed, 0xD2A]).permutation(len(pool))
    shows = [{int(k) for k in s.labels[~s.crowd]} for s in pool]
    rarest = sorted(set().union(*shows), key=lambda k: (sum(k in s for s in shows), k))
    taken: list[int] = []
    for k in rarest:
        if len(taken) < n and not any(k in shows[i] for i in taken):
            taken.append(next(int(i) for i in order if k in shows[i]))
    taken += [int(i) for i in order if int(i) not in taken][: n - len(taken)]
    return tuple(pool[i] for i in taken)
