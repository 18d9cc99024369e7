"""Optimisers by name, with weight decay on matrices and kernels only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearfar.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import nn, optim

_NAMES = ("adamw", "sgd")


@dataclass(frozen=True)
class Optim:
    name: str = "adamw"
    """adamw or sgd (with Nesterov momentum)"""
    lr: float = 0.003
    """peak learning rate"""
    weight_decay: float = 0.0001
    """decoupled for adamw; never on biases and normalisation"""
    momentum: float = 0.9
    """sgd's momentum, adamw's β₁"""
    warmup: float = 0.05
    """share of the training in which the learning rate rises from 0; a half cosine to 0 follows"""
    clip: float = 0.0
    """largest norm of the gradient; 0: unlimited"""

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise UserError(f"unknown optimiser {self.name!r}{nearest(self.name, _NAMES)}")
        if not self.lr > 0:
            raise UserError(f"optim.lr = {self.lr} must be above 0")
        if not 0 <= self.warmup < 1:
            raise UserError(f"optim.warmup = {self.warmup} is a share of the training: give 0 to below 1")
        if self.weight_decay < 0 or self.clip < 0:
            raise UserError("optim.weight_decay and optim.clip must not be negative")
        if not 0 <= self.momentum < 1:
            raise UserError(f"optim.momentum = {self.momentum}: give 0 to below 1")


def build(config: Optim, model: nn.Module) -> optim.Optimizer:
    """The optimiser over a model's trainable parameters, in two groups: decayed and not."""
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.99), fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
