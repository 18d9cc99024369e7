"""Encoders: from a batch of samples to a batch of features."""

from nearfar.encoders.image import ImageEncoder, image_encoder
from nearfar.encoders.project import mlp

__all__ = ["ImageEncoder", "image_encoder", "mlp"]
