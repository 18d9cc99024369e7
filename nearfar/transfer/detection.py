"""Detection: torchvision's FCOS, RetinaNet or Faster R-CNN on an encoder's feature pyramid."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.data.scenes import Scene, Scenes
from nearfar.encoders.dense import Pyramid
from nearfar.errors import require
from nearfar.evaluate import detection as judge
from nearfar.evaluate.detection import Found
from nearfar.evaluate.records import Scores
from nearfar.transfer.drawing import boxes_on
from nearfar.transfer.pictures import Pictures, augmented
from nearfar.transfer.settings import Settings

HEADS = ("fcos", "retinanet", "faster-rcnn")
COLUMNS = ("mAP", "AP50", "AP75")
_LEAST_SCORE = 0.01  # average precision wants the unlikely boxes, too


class _Cast(nn.Module):
    """A backbone that computes in bfloat16 where that is asked for, and gives float32."""

    def __init__(self, pyramid: Pyramid, mixed: bool) -> None:
        super().__init__()
        self.pyramid, self.mixed, self.out_channels = pyramid, mixed, pyramid.out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            return self.pyramid(x)


class Detector(nn.Module):
    """A torchvision detector over an encoder: images (C, H, W) in [0, 1], boxes in pixels, classes from 0."""

    def __init__(self, encoder: nn.Module, channels: int, classes: int, settings: Settings) -> None:
        super().__init__()
        models = require("torchvision.models.detection", "vision", "detection")
        head = settings.head or HEADS[0]
        pyramid = Pyramid(encoder, channels, width=settings.width, finest=4 if head == "faster-rcnn" else 8)
        self.offset = 1 if head == "faster-rcnn" else 0  # its class 0 is the background
        backbone = _Cast(pyramid, settings.precision == "bf16-mixed")
        anchors = models.anchor_utils.AnchorGenerator
        strides = pyramid.strides
        # the encoder normalises; sizes are ours, so that torchvision neither scales nor normalises
        given = {"image_mean": [0.0] * channels, "image_std": [1.0] * channels, "min_size": 1, "max_size": 10**6,
                 "_skip_resize": True}  # fmt: skip
        given["box_score_thresh" if head == "faster-rcnn" else "score_thresh"] = _LEAST_SCORE
        if head == "fcos":
            made = anchors(tuple((s,) for s in strides), ((1.0,),) * len(strides))
            self.net = models.FCOS(backbone, classes, anchor_generator=made, **given)
        elif head == "retinanet":
            sizes = tuple(tuple(round(4 * s * 2 ** (k / 3)) for k in range(3)) for s in strides)
            made = anchors(sizes, ((0.5, 1.0, 2.0),) * len(strides))
            self.net = models.RetinaNet(backbone, classes, anchor_generator=made, **given)
        else:
            made = anchors(tuple((8 * s,) for s in strides), ((0.5, 1.0, 2.0),) * len(strides))
            pool = require("torchvision.ops", "vision", "detection").MultiScaleRoIAlign(pyramid.names, 7, 2)
            self.net = models.FasterRCNN(backbone, classes + 1, rpn_anchor_generator=made, box_roi_pool=pool, **given)

    @property
    def encoder(self) -> nn.Module:
        return self.net.backbone.pyramid.encoder

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if targets is None:
            return [self._found(image) for image in images]
        moved = [t | {"labels": t["labels"] + self.offset} for t in targets]
        return sum(self.net(images, moved).values())

    def _found(self, image: Tensor) -> dict[str, Tensor]:
        """What is in one picture (C, H, W), at its own size, which torchvision can skip to change in training only."""
        transform = self.net.transform
        transform.min_size, transform.max_size = (min(image.shape[1:]),), max(image.shape[1:])
        held = self.net([image])[0]
        return held | {"labels": held["labels"] - self.offset}


def build(encoder: nn.Module, channels: int, classes: int, settings: Settings) -> Detector:
    return Detector(encoder, channels, classes, settings)


def batch_of(pictures: Pictures, rows: np.ndarray, settings: Settings, device: torch.device) -> tuple[list, list]:
    """Augmented pictures of one size with their boxes."""
    canvas = pictures.canvas()
    made = [augmented(*pictures[int(i)], canvas) for i in rows]
    images = [image.to(device).float() / 255 for image, _ in made]
    return images, [{k: v.to(device) for k, v in target.items()} for _, target in made]


def loss_of(model: nn.Module, batch: tuple[list, list]) -> Tensor:
    return model(*batch)


@torch.no_grad()
def predict(model: nn.Module, pictures: Pictures, rows: range) -> list[Found]:
    """What is found in pictures, boxes in the pixels of the files."""
    device = next(model.parameters()).device
    model.eval()
    out = []
    for i in rows:
        image, scene = pictures[i][0], pictures.part[i]
        held = model([image.to(device).float() / 255])[0]
        back = np.array([*scene.size] * 2, np.float32) / np.array([image.shape[2], image.shape[1]] * 2, np.float32)
        out.append(Found(held["boxes"].cpu().numpy() * back, held["scores"].cpu().numpy(),
                         held["labels"].cpu().numpy()))  # fmt: skip
    return out


def judged(found: list[Found], pictures: Pictures, seed: int) -> Scores:
    """mAP, AP50, AP75 and per class, with intervals over pictures."""
    scenes = pictures.scenes
    return judge.detection(found, [truth(s, scenes) for s in pictures.part], scenes.classes, seed=seed)


def truth(scene: Scene, scenes: Scenes) -> Found:
    """A scene's boxes as a judge takes them: score 1, or 0 for those that are neither right nor wrong to find."""
    return Found(scene.boxes, (~scene.crowd).astype(np.float32), scene.labels)


def drawn(found: Found, pixels: np.ndarray) -> np.ndarray:
    return boxes_on(pixels, found)
