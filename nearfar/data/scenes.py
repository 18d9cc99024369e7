"""Annotated pictures, for detection and segmentation: what every reader gives, and what is counted on the way."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nearfar.data.pictures import decode, opened, peek, quiet, reason
from nearfar.data.source import shown
from nearfar.errors import UserError

IGNORE = 255  # the class of pixels that nobody has to judge
_TEST, _VAL = 0.2, 0.2  # shares of names, where a data set comes without splits


@dataclass(frozen=True)
class Scene:
    """One picture with its boxes, or with the file of its mask.

    ``size`` is (width, height); ``boxes`` (n, 4) are x0, y0, x1, y1 in pixels, x1 and y1 exclusive; ``labels`` (n,)
    number the classes from 0; ``crowd`` (n,) marks boxes that are neither right nor wrong to find (COCO's crowds, VOC's
    difficult objects).
    """

    name: str
    path: Path
    size: tuple[int, int]
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32), repr=False)
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool), repr=False)
    mask: Path | None = None


@dataclass(frozen=True)
class Scenes:
    """A data set of annotated pictures: what is trained on, what judges, and what was left out."""

    spec: str
    task: str  # detection or segmentation
    classes: tuple[str, ...]
    train: tuple[Scene, ...] = field(repr=False)
    test: tuple[Scene, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    instances: bool = False  # masks number objects, so that all above 0 is one class

    def mask(self, scene: Scene) -> np.ndarray:
        """The classes of a picture's pixels, 255 where none is said. -> (H, W) uint8"""
        try:
            with quiet(), opened(scene.mask) as file:
                held = np.asarray(file)
        except Exception as error:  # Pillow's decoders raise all kinds
            raise UserError(f"{shown(scene.mask)} cannot be read: {reason(error)}: mend it or take it out") from None
        if held.ndim != 2:
            raise UserError(f"{shown(scene.mask)} is a mask in colours: give one class a pixel, grey or with a palette")
        if held.shape[:2] != scene.size[::-1]:
            raise UserError(f"{shown(scene.mask)} is {held.shape[1]}×{held.shape[0]}, its picture "
                            f"{scene.size[0]}×{scene.size[1]}: give masks of the pictures' sizes")  # fmt: skip
        if self.instances:
            return (held > 0).astype(np.uint8)
        if len(self.classes) == 2 and held.max() == 255 and not (np.unique(held)[1:-1]).size:
            return (held > 0).astype(np.uint8)  # black and white
        bad = (held >= len(self.classes)) & (held != IGNORE)
        if bad.any():
            raise UserError(f"{shown(scene.mask)} holds class {held[bad].flat[0]} of {len(self.classes)}: "
                            "name every class in classes.txt, one a line, the background first")  # fmt: skip
        return held.astype(np.uint8)


def picture(scene: Scene, channels: int) -> np.ndarray:
    """The pixels of a scene, upright, grey or RGB. -> (H, W, C) uint8"""
    try:
        with quiet():
            return decode(scene.path, channels, 0)
    except Exception as error:  # Pillow's decoders raise all kinds
        raise UserError(f"{shown(scene.path)} cannot be read: {reason(error)}: mend it or take it out") from None


class Counted:
    """What was found wrong in annotations, by kind, with the first of each; it becomes one line a kind."""

    def __init__(self, where: str) -> None:
        self.where, self.kinds, self.first = where, Counter(), {}

    def add(self, kind: str, name: str) -> None:
        self.kinds[kind] += 1
        self.first.setdefault(kind, name)

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{n:,} {kind}, the first in {shown(self.first[kind])}" for kind, n in sorted(self.kinds.items()))


def clean(boxes: np.ndarray, size: tuple[int, int], name: str, counted: Counted) -> tuple[np.ndarray, np.ndarray]:
    """Boxes cut at the picture's edge, without those that are empty or outside. -> boxes (m, 4), kept (n,) bool

    Cuts of more than a pixel are counted; so are boxes left out: not numbers, outside, or under a pixel wide or high.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold is no number of a pixel
        boxes = np.asarray(boxes).astype(np.float32).reshape(-1, 4)
    finite = np.isfinite(boxes).all(1)
    limit = np.array([*size, *size], np.float32)
    cut = np.clip(np.where(finite[:, None], boxes, 0), 0, limit)
    sides = np.minimum(boxes[:, 2:] - boxes[:, :2], cut[:, 2:] - cut[:, :2])  # of a box turned inside out: negative
    kept = finite & (sides >= 1).all(1)
    for i in range(len(boxes)):
        if not finite[i]:
            counted.add("boxes left out that are no numbers", name)
        elif kept[i]:
            if np.abs(cut[i] - boxes[i]).max() > 1:
                counted.add("boxes cut that reach outside the picture", name)
        elif (boxes[i, 2:] - boxes[i, :2] < 1).any():
            counted.add("empty boxes left out", name)
        else:
            counted.add("boxes left out that lie outside the picture", name)
    return cut[kept], kept


def size_of(path: Path, counted: Counted, say_as: str) -> tuple[int, int] | None:
    """(width, height) of a picture, upright, from its header; None where it is missing or broken, which is counted."""
    try:
        with quiet():
            return peek(path)[0]
    except FileNotFoundError:
        counted.add("pictures left out that are missing", say_as)
    except Exception as error:  # Pillow's decoders raise all kinds
        counted.add(f"pictures left out that cannot be read ({reason(error)})", say_as)
    return None


def part_of(name: str) -> str:
    """The split of a picture in a data set without splits: train, val or test, by its name alone.

    A function of the name, so that a picture stays where it is when others are added.

    >>> part_of("a.png"), part_of("b.png")
    ('train', 'train')
    """
    share = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") / 2**32
    return "test" if share < _TEST else "val" if share < _TEST + _VAL else "train"


def listed_parts(sets: Path) -> dict[str, list[str]] | None:
    """The names in ``train.txt`` and in ``test.txt``, or ``val.txt`` where there is none; None without ``train.txt``.

    A name a line; what follows it on the line is passed over, as VOC's lists of one class have it.
    """
    lists = {p: sets / f"{p}.txt" for p in ("train", "test", "val")}
    if not lists["train"].is_file():
        return None
    last = next((p for p in ("test", "val") if lists[p].is_file()), None)
    if last is None:
        raise UserError(f"{shown(sets)} holds train.txt alone: add test.txt or val.txt, the names of what judges")
    parts = {"train": _names_in(lists["train"]), "test": _names_in(lists[last])}
    both = set(parts["train"]) & set(parts["test"])
    if both:
        raise UserError(f"{shown(sets)}: {len(both)} pictures are in train.txt and in {last}.txt, the first "
                        f"{shown(min(both))}: what judges must not be trained on")  # fmt: skip
    return parts


def _names_in(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    for name in names:
        if not name.isprintable() or os.path.isabs(name) or ".." in name.split("/"):
            raise UserError(f"{shown(path)} lists {shown(name)!r}, which names no picture of the folder: mend the list")
    return names


def finished(scenes: Scenes, counted: Counted, max_bad: float, total: int) -> Scenes:
    """Check what was read as a whole, and put what was counted into notes."""
    where = shown(scenes.spec)
    left_out = sum(n for kind, n in counted.kinds.items() if kind.startswith("pictures"))
    if left_out > max_bad * max(total, 1):
        first = next(line for line in counted.lines() if "pictures" in line)
        raise UserError(f"{where}: {left_out} of {total} pictures are missing or broken ({first}): "
                        f"bring them back, or pass --max-bad {min(1.0, left_out / total + 0.01):.2f}")  # fmt: skip
    for part, held in (("training", scenes.train), ("test", scenes.test)):
        if not held:
            raise UserError(f"{where}: the {part} part holds no pictures that can be read")
    notes = list(counted.lines())
    if scenes.task == "detection":
        known = _classes_in(scenes.train)
        if not known:
            raise UserError(f"{where}: no training picture has a box: there is nothing to learn from")
        for k in sorted(_classes_in(scenes.test) - known):
            n = sum(int((s.labels == k).sum()) for s in scenes.test)
            notes.append(f"class {scenes.classes[k]!r} is missing in the training part: its {n} test boxes "
                         "cannot be learnt, and count as missed")  # fmt: skip
    return replace(scenes, notes=tuple(notes))


def _classes_in(scenes: Iterable[Scene]) -> set[int]:
    return {int(k) for s in scenes for k in s.labels[~s.crowd]}
