"""Semantic segmentation: torchvision's FCN or DeepLabv3 head on an encoder's last map."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.data.scenes import IGNORE, Scene, Scenes
from nearfar.encoders.dense import dilate, levels
from nearfar.errors import require
from nearfar.evaluate import segmentation as judge
from nearfar.evaluate.records import Scores
from nearfar.transfer.drawing import mask_on
from nearfar.transfer.pictures import Pictures, augmented
from nearfar.transfer.settings import Settings

HEADS = ("fcn", "deeplabv3")
COLUMNS = ("mIoU", "pixel accuracy")
_CROP = 256
_MULTIPLE = 32  # test pictures are padded to it, so that maps are not cut


class Segmenter(nn.Module):
    """A head on the last map of an encoder whose later strides are dilations, brought to the picture's size.

    FCN: Long et al. 2015 (arXiv:1411.4038); DeepLabv3: Chen et al. 2017 (arXiv:1706.05587), atrous rates 12, 24, 36.
    (B, C, H, W) in [0, 1] -> (B, K, H, W) float32
    """

    def __init__(self, encoder: nn.Module, channels: int, classes: int, settings: Settings) -> None:
        super().__init__()
        models = require("torchvision.models.segmentation", "vision", "segmentation")
        self.encoder = dilate(encoder, channels, settings.output_stride)
        last = levels(encoder, channels)[-1]
        self.name, self.mixed = last.name, settings.precision == "bf16-mixed"
        if (settings.head or HEADS[0]) == "fcn":
            self.head = models.fcn.FCNHead(last.channels, classes)
        else:
            self.head = models.deeplabv3.DeepLabHead(last.channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            y = self.head(self.encoder.maps(x)[self.name])
        return F.interpolate(y.float(), x.shape[2:], mode="bilinear", align_corners=False)


def build(encoder: nn.Module, channels: int, classes: int, settings: Settings) -> Segmenter:
    return Segmenter(encoder, channels, classes, settings)


def batch_of(pictures: Pictures, rows: np.ndarray, settings: Settings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Augmented crops with their masks. -> (B, C, h, w) in [0, 1], (B, h, w)"""
    side = settings.crop or min(settings.image_size or _CROP, _CROP)
    made = [augmented(*pictures[int(i)], (side, side)) for i in rows]
    images = torch.stack([image for image, _ in made]).to(device).float() / 255
    return images, torch.stack([mask for _, mask in made]).to(device).long()


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy over the pixels whose class is said; 0 where none is."""
    images, masks = batch
    loss = F.cross_entropy(model(images), masks, ignore_index=IGNORE, reduction="sum")
    return loss / (masks != IGNORE).sum().clamp(min=1)


@torch.no_grad()
def predict(model: nn.Module, pictures: Pictures, rows: range) -> list[np.ndarray]:
    """The likeliest class of every pixel, at the size of the files. -> (H, W) uint8 each"""
    device = next(model.parameters()).device
    model.eval()
    out = []
    for i in rows:
        image, (w, h) = pictures[i][0].to(device).float()[None] / 255, pictures.part[i].size
        tall, wide = image.shape[2:]
        pad = (0, -wide % _MULTIPLE, 0, -tall % _MULTIPLE)
        mode = "reflect" if min(tall, wide) > _MULTIPLE else "replicate"
        y = model(F.pad(image, pad, mode=mode))[..., :tall, :wide]
        if (tall, wide) != (h, w):
            y = F.interpolate(y, (h, w), mode="bilinear", align_corners=False)
        out.append(y[0].argmax(0).byte().cpu().numpy())
    return out


def judged(found: list[np.ndarray], pictures: Pictures, seed: int) -> Scores:
    """mIoU, pixel accuracy and per class at the size of the files, with intervals over pictures."""
    scenes = pictures.scenes
    tables = [judge.confusion(f, scenes.mask(s), len(scenes.classes)) for f, s in zip(found, pictures.part)]
    return judge.segmentation(tables, scenes.classes, seed=seed)


def truth(scene: Scene, scenes: Scenes) -> np.ndarray:
    """A scene's mask, at the size of its file. -> (H, W) uint8"""
    return scenes.mask(scene)


def drawn(found: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return mask_on(pixels, found)
