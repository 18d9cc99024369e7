"""A head that was transferred, to be used: pictures in, boxes, masks or classes out."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nearfar.data import open_source
from nearfar.data.pictures import peek, quiet, reason
from nearfar.data.scenes import Scene, Scenes
from nearfar.data.source import shown
from nearfar.encoders import image_encoder
from nearfar.errors import UserError
from nearfar.training import checkpoint
from nearfar.training.optim import Optim
from nearfar.transfer.classification import Labelled
from nearfar.transfer.pictures import Pictures
from nearfar.transfer.settings import Settings

TASKS = ("classification", "detection", "segmentation")
_FILE = "model.safetensors"


def save(folder: Path, model: nn.Module, about: dict[str, Any], settings: Settings) -> None:
    """Write a trained head with its encoder, whole or not at all, without pickle."""
    held = about | {"settings": dataclasses.asdict(settings)}
    checkpoint.save(folder / _FILE, model.state_dict(), held)


class Transferred:
    """A trained head with its encoder, from the folder that ``nearfar transfer`` wrote.

    ``model`` is the module itself; ``task``, ``classes`` and ``about`` say what it is.
    """

    def __init__(self, folder: str | Path) -> None:
        tensors, self.about = checkpoint.load(Path(folder) / _FILE)
        try:
            held = dict(self.about["settings"])
            settings = Settings(**held | {"optim": Optim(**held["optim"])})
            self.task, self.classes = self.about["task"], tuple(self.about["classes"])
            if self.task not in TASKS:
                raise KeyError(self.task)
            self._task = importlib.import_module(f"nearfar.transfer.{self.task}")
            shape = tuple(self.about["input"])
            c = shape[2]
            encoder = image_encoder(self.about["encoder"], shape, torch.zeros(c), torch.ones(c),
                                    width=self.about["width"])  # fmt: skip
            self.model = self._task.build(encoder, c, len(self.classes), settings)
            self.model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise UserError(f"{folder}: {_FILE} is no transferred head: run nearfar transfer anew") from None
        self.settings, self.shape = settings, shape
        self.model.eval()

    def __repr__(self) -> str:
        return f"Transferred({self.task}, {self.settings.head}, {len(self.classes)} classes)"

    def predict(self, images: Sequence[str | Path] | Any) -> list[Any] | np.ndarray:
        """What is in pictures.

        Args:
            images: image files for detection and segmentation; for classification what ``train`` takes.

        Returns a list, for each picture: of detection a ``Found`` with boxes (n, 4) in the file's pixels, scores and
        classes by number, likeliest first; of segmentation (H, W) classes by number. Of classification the names (N,).
        """
        if self.task == "classification":
            side = self.shape[0] if self.shape[0] == self.shape[1] else 0
            splits = open_source(images, image_size=side, channels=self.shape[2])
            low, high = float(splits.train.low), float(splits.train.high)
            return np.array(self.classes)[self._task.predict(self.model, Labelled(splits.train, low, high))]
        images = [images] if isinstance(images, str | Path) else list(images)
        part = tuple(self._scene(Path(path)) for path in images)
        scenes = Scenes("pictures", "detection", self.classes, (), part)  # without truth
        return self._task.predict(self.model, Pictures(scenes, part, self.shape[2], self.settings.image_size),
                                  range(len(part)))  # fmt: skip

    def _scene(self, path: Path) -> Scene:
        try:
            with quiet():
                return Scene(path.name, path, peek(path)[0])
        except Exception as error:  # Pillow's decoders raise all kinds
            raise UserError(f"{shown(path)} cannot be read: {reason(error)}") from None
