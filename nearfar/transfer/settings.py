"""How a transfer is trained: the same for every encoder that is set beside another."""

from __future__ import annotations

from dataclasses import dataclass, field

from nearfar.errors import UserError
from nearfar.training.optim import Optim

MODES = ("frozen", "fine-tuned")


@dataclass(frozen=True)
class Settings:
    """Everything that decides one training, beside encoder, data and seed."""

    head: str = ""
    """what stands on the encoder; the task's first where it is left out"""
    steps: int = 300
    """optimiser steps"""
    batch: int = 8
    """pictures a step"""
    image_size: int = 320
    """pixels of the longer side that pictures are brought to; 0: their own"""
    crop: int = 0
    """segmentation: pixels a side of what is trained on; 0: image_size, at most 256"""
    width: int = 128
    """channels of the feature pyramid under a detector"""
    output_stride: int = 8
    """segmentation: pixels between cells of the encoder's last map"""
    encoder_rate: float = 0.3
    """factor of a pre-trained encoder's learning rate where it is fine-tuned; random weights learn at the full rate"""
    precision: str = "auto"
    """auto, 32-true or bf16-mixed; auto: bf16 where the hardware has it"""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.001, weight_decay=0.0001, beta2=0.999, clip=10.0))

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "image_size": 0, "crop": 0, "width": 64, "output_stride": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"{name} {getattr(self, name)}: give {low} or more")
        if self.width % 32:
            raise UserError(f"width {self.width}: give a multiple of 32, which detectors' heads normalise in groups of")
        if self.encoder_rate <= 0:
            raise UserError(f"encoder_rate {self.encoder_rate}: give a factor above 0 (frozen is a mode of its own)")
        if 0 < self.image_size < 32:
            raise UserError(f"image_size {self.image_size}: give 32 pixels or more, or 0 for the pictures' own")
