"""Masks for segmentation: images/ beside masks/ (or labels/), or VOC's SegmentationClass."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from nearfar.data.pictures import opened, quiet, reason
from nearfar.data.scenes import IGNORE, Counted, Scene, Scenes, finished, listed_parts, part_of, size_of
from nearfar.data.source import shown
from nearfar.errors import UserError

_PICTURES, _MASKS = ("images", "JPEGImages"), ("masks", "labels", "SegmentationClass")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_LOOKED = 20  # masks that are looked at to tell what they hold


def find_masks(folder: Path) -> tuple[Path, Path] | None:
    """(pictures, masks), where a folder holds both."""
    pictures = next((folder / p for p in _PICTURES if (folder / p).is_dir()), None)
    masks = next((folder / m for m in _MASKS if (folder / m).is_dir()), None)
    return (pictures, masks) if pictures and masks else None


def from_masks(folder: Path, max_bad: float = 0.05) -> Scenes:
    """Open a folder of pictures and masks of the same names.

    A mask holds a class a pixel, 0 the background and 255 nothing that is judged; black and white is background and
    foreground. Masks of 16 bits number objects: all above 0 is foreground. ``classes.txt`` names the classes, one a
    line, the background first. Splits are ``splits/train.txt`` and ``splits/test.txt`` (or VOC's
    ``ImageSets/Segmentation``), names without suffix; else pictures are split by their names.
    """
    counted = Counted(shown(folder))
    pictures, masks = find_masks(folder)
    files = {p.stem: p for p in sorted(pictures.iterdir()) if p.suffix.lower() in _SUFFIXES}
    sets = (folder / "splits", folder / "ImageSets" / "Segmentation")
    listed = next((parts for s in sets if (parts := listed_parts(s)) is not None), None)
    wanted = files if listed is None else listed["train"] + listed["test"]
    stems = {s: files.get(s, pictures / f"{s}.jpg") for s in wanted}
    scenes: dict[str, list[Scene]] = {"train": [], "test": []}
    for stem, path in stems.items():
        part = part_of(stem) if listed is None else "train" if stem in listed["train"] else "test"
        mask = next((p for s in _SUFFIXES if os.path.isfile(p := masks / f"{stem}{s}")), None)
        if mask is None:
            counted.add("pictures left out that have no mask", stem)
            continue
        size = size_of(path, counted, stem)
        if size is not None and size_of(mask, counted, mask.name) is not None and part in scenes:
            scenes[part].append(Scene(stem, path, size, mask=mask))
    instances, most = _kind([s.mask for s in scenes["train"][:_LOOKED]])
    names = _names(folder, 2 if instances else max(2, most + 1))
    held = Scenes(shown(folder), "segmentation", names, tuple(scenes["train"]), tuple(scenes["test"]),
                  instances=instances)  # fmt: skip
    return finished(held, counted, max_bad, len(stems))


def _kind(masks: list[Path]) -> tuple[bool, int]:
    """Whether masks number objects, and the highest class that they hold."""
    most, sixteen = 1, False
    for path in masks:
        try:
            with quiet(), opened(path) as file:
                mode, held = file.mode, np.unique(np.asarray(file))
        except Exception as error:  # Pillow's decoders raise all kinds
            raise UserError(f"{shown(path)} cannot be read: {reason(error)}: mend it or take it out") from None
        if mode in ("RGB", "RGBA", "CMYK"):
            raise UserError(f"{shown(path)} is a mask in colours: give one class a pixel, grey or with a palette")
        sixteen |= mode.startswith("I")
        held = held[held != IGNORE]
        most = max(most, int(held.max(initial=0)))
    return sixteen, most


def _names(folder: Path, count: int) -> tuple[str, ...]:
    path = folder / "classes.txt"
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        if len(names) < count:
            raise UserError(f"{shown(path)} names {len(names)} classes, the masks hold {count}: one a line")
        return tuple(names)
    return ("background", "foreground") if count == 2 else ("background", *(f"class {k}" for k in range(1, count)))
