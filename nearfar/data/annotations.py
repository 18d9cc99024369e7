"""From a folder to annotated pictures, whichever way they are annotated."""

from __future__ import annotations

from pathlib import Path

from nearfar.data.coco import find_coco, from_coco
from nearfar.data.masks import find_masks, from_masks
from nearfar.data.scenes import Scenes
from nearfar.data.source import shown
from nearfar.data.voc import from_voc, looks_like_voc
from nearfar.errors import UserError


def looks_annotated(folder: Path) -> bool:
    """Whether a folder is laid out for detection or segmentation."""
    return looks_like_voc(folder) or find_masks(folder) is not None or bool(find_coco(folder))


def open_scenes(folder: str | Path, max_bad: float = 0.05, task: str = "") -> Scenes:
    """Open a folder of annotated pictures: VOC's or COCO's boxes, or masks.

    ``task``, "detection" or "segmentation", decides where a folder holds both; boxes where it is left out.
    """
    folder = Path(folder)
    if task != "segmentation" and looks_like_voc(folder):
        return from_voc(folder, max_bad)
    if task != "segmentation" and find_coco(folder):
        return from_coco(folder, max_bad)
    if task != "detection" and find_masks(folder):
        return from_masks(folder, max_bad)
    what = {"detection": "boxes", "segmentation": "masks"}.get(task, "boxes or masks")
    raise UserError(f"{shown(folder)} holds no {what}: give VOC's layout (Annotations/, JPEGImages/), COCO's JSON, "
                    "or images/ beside masks/")  # fmt: skip
