"""Boxes in COCO's format: JSON files of images, annotations and categories, one a split."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.data import limits
from nearfar.data.scenes import Counted, Scene, Scenes, clean, finished, part_of, size_of
from nearfar.data.source import shown
from nearfar.errors import UserError

_PARTS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


def find_coco(folder: Path) -> dict[str, Path]:
    """The annotation file of each split, ``all`` where there is one for everything; empty where there is none.

    Looks for ``annotations/*.json`` (instances_train2017.json …) and ``SPLIT/*.coco.json``, as exports have them.
    """
    words = [word for held in _PARTS.values() for word in held]
    # of other subfolders, which may be classes with a million images, none is listed
    parts = [p for p in folder.iterdir() if p.is_dir() and any(word in p.name.lower() for word in words)]
    files = sorted([*folder.glob("annotations/*.json"), *(f for p in parts for f in p.glob("*.coco.json")),
                    *folder.glob("*.coco.json")])  # fmt: skip
    files = [f for f in files if not any(other in f.name for other in ("captions", "keypoints", "stuff", "panoptic"))]
    found: dict[str, Path] = {}
    for part, words in _PARTS.items():
        for word in words:
            hits = [f for f in files if word in f"{f.parent.name if f.parent != folder else ''}/{f.name}".lower()]
            if hits:
                found.setdefault(part, hits[0])
    if not found and len(files) == 1:
        return {"all": files[0]}
    return found if "train" in found else {}


def from_coco(folder: Path, max_bad: float = 0.05) -> Scenes:
    """Open a folder in COCO's format.

    ``bbox`` is [x, y, width, height] in pixels from 0; ``iscrowd`` boxes are neither right nor wrong to find. Pictures
    are looked for by ``file_name`` below the folder, the split's own folder, ``images/`` and beside the JSON. With one
    file for everything, pictures are split by their names.
    """
    counted, files = Counted(shown(folder)), find_coco(folder)
    if "all" not in files and "test" not in files:
        raise UserError(f"{shown(folder)} has {shown(files['train'].name)} alone: add the JSON of a test or val part")
    held = {part: _json(path) for part, path in files.items()}
    kinds = {c["id"]: str(c.get("name", c["id"])) for h in held.values() for c in h["categories"]}
    used = sorted({a.get("category_id") for h in held.values() for a in h["annotations"]} & set(kinds))
    numbers = {k: i for i, k in enumerate(used)}
    scenes: dict[str, list[Scene]] = {"train": [], "test": []}
    total = 0
    for part, h in held.items():
        total += len(h["images"])
        for scene in _scenes(folder, files[part], part, h, numbers, counted):
            to = part_of(scene.name) if part == "all" else part
            scenes.get(to, []).append(scene)
    both = {s.name for s in scenes["train"]} & {s.name for s in scenes["test"]}
    if both:
        raise UserError(f"{shown(folder)}: {len(both)} pictures are in the training and in the test part, the first "
                        f"{shown(min(both))}: what judges must not be trained on")  # fmt: skip
    names = tuple(kinds[k] for k in used)
    made = Scenes(shown(folder), "detection", names, tuple(scenes["train"]), tuple(scenes["test"]))
    return finished(made, counted, max_bad, total)


def _json(path: Path) -> dict[str, Any]:
    try:
        held = limits.json_of(path)
    except limits.TooLarge as error:
        raise UserError(f"{shown(path)} cannot be read: {error}: split it") from None
    except ValueError:
        raise UserError(f"{shown(path)} is no JSON, or is cut short") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(held, dict) or not isinstance(held.get(key), list):
            raise UserError(f"{shown(path)} has no list {key!r}: give COCO's images, annotations and categories")
    for key, ids in (("images", ("id",)), ("annotations", ("image_id", "category_id")), ("categories", ("id",))):
        for i, row in enumerate(held[key]):
            if not isinstance(row, dict) or not all(isinstance(row.get(name), int | str) for name in ids):
                raise UserError(f"{shown(path)}: {key}[{i}] has no {' and '.join(ids)} that are numbers: mend the file")
    return held


def _scenes(
    folder: Path, file: Path, part: str, held: dict[str, Any], numbers: dict[Any, int], counted: Counted
) -> list[Scene]:
    by_image = defaultdict(list)
    known = {image["id"] for image in held["images"]}
    for a in held["annotations"]:
        if a.get("image_id") not in known:
            counted.add("boxes left out whose picture is not listed", str(a.get("image_id")))
        elif a.get("category_id") not in numbers:
            counted.add("boxes left out whose category is not listed", str(a.get("category_id")))
        else:
            by_image[a["image_id"]].append(a)
    year = file.stem.split("_")[-1]  # val2017
    subs = ("", year, year.rstrip("0123456789"), part)
    places = [file.parent, *(top / sub for top in (folder, folder / "images") for sub in subs)]
    out = []
    for image in held["images"]:
        name = str(image.get("file_name"))
        if os.path.isabs(name) or ".." in Path(name).parts or not name.isprintable():
            counted.add("pictures left out whose name leaves the folder", name)
            continue
        path = next((p / name for p in places if os.path.isfile(p / name)), folder / name)
        size = size_of(path, counted, name)
        if size is None:
            continue
        said = by_image[image["id"]]
        boxes, kept = clean(np.array([_corners(a) for a in said]), size, name, counted)
        said = [a for a, k in zip(said, kept) if k]
        out.append(Scene(name, path, size, boxes, np.array([numbers[a["category_id"]] for a in said], np.int64),
                         np.array([bool(a.get("iscrowd")) for a in said], bool)))  # fmt: skip
    return out


def _corners(annotation: dict[str, Any]) -> list[float]:
    try:
        x, y, w, h = map(float, annotation["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return [float("nan")] * 4
    return [x, y, x + w, y + h]
