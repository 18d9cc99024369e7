"""How a model of any origin is named on the command line, and what may be changed of how it is used."""

from __future__ import annotations

from dataclasses import dataclass

LIBRARIES = ("torchvision", "timm", "transformers")
KNOWN = ("torchvision:NAME, timm:NAME, transformers:NAME or :FOLDER, each with @random for fresh weights, "
         "torchvision:NAME@FILE.safetensors, timm:NAME@FILE.safetensors, or FILE.onnx")  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """What a model of any origin takes, where it does not say so itself or where that is to be changed."""

    mean: tuple[float, ...] = ()
    """of a foreign model: subtracted from pixels in [0, 1], one value or one a channel"""
    std: tuple[float, ...] = ()
    """of a foreign model: what pixels are then divided by (0.00392 for a model that takes 0 to 255)"""
    input_size: int = 0
    """of a foreign model: pixels a side that images are resized to; its own where left out"""
    image_size: int = 0
    """of a foreign model: pixels a side at which the source is opened, as train's; the model's own size comes after"""


def is_foreign(text: str) -> bool:
    """Whether a name is that of a model of another origin, not a run's folder.

    >>> is_foreign("timm:resnet18"), is_foreign("m.onnx"), is_foreign("runs/digits-simclr")
    (True, True, False)
    """
    library, colon, name = text.partition(":")
    return text.lower().endswith(".onnx") or (library in LIBRARIES and bool(colon))
