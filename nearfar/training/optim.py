"""Optimisers by name and their schedules; weight decay and LARS's scaling on matrices and kernels only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearfar.errors import UserError, nearest, require
from nearfar.training.schedule import SCHEDULES, learning_rate

if TYPE_CHECKING:
    from torch import nn, optim

_NAMES = ("adamw", "sgd", "lars")


@dataclass(frozen=True)
class Optim:
    name: str = "adamw"
    """adamw, sgd or lars (timm's)"""
    lr: float = 0.003
    """peak learning rate"""
    weight_decay: float = 0.0001
    """decoupled for adamw; never on biases and normalisation"""
    weight_decay_end: float = -1.0
    """weight decay at the end, reached along half a cosine; below 0: constant"""
    momentum: float = 0.9
    """sgd's and lars's momentum, adamw's β₁"""
    beta2: float = 0.99
    """adamw's β₂"""
    nesterov: bool = True
    """sgd with Nesterov's momentum"""
    trust: float = 0.001
    """lars: the trust coefficient"""
    bias_lr: float = 1.0
    """factor of the learning rate of biases and normalisation"""
    schedule: str = "cosine"
    """after the warm-up: cosine, constant or step"""
    lr_end: float = 0.0
    """where the cosine ends, as a share of the peak"""
    warmup: float = 0.05
    """share of the training in which the learning rate rises from 0"""
    clip: float = 0.0
    """largest norm of the gradient; 0: unlimited"""

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise UserError(f"unknown optimiser {self.name!r}{nearest(self.name, _NAMES)}")
        if self.schedule not in SCHEDULES:
            raise UserError(f"unknown optim.schedule {self.schedule!r}{nearest(self.schedule, SCHEDULES)}")
        for name in ("lr", "trust", "bias_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"optim.{name} = {getattr(self, name)} must be above 0")
        if not 0 <= self.warmup < 1:
            raise UserError(f"optim.warmup = {self.warmup} is a share of the training: give 0 to below 1")
        if self.weight_decay < 0 or self.clip < 0 or not 0 <= self.lr_end <= 1:
            raise UserError("optim.weight_decay and optim.clip must not be negative, optim.lr_end from 0 to 1")
        for name in ("momentum", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name} = {getattr(self, name)}: give 0 to below 1")


def build(config: Optim, model: nn.Module) -> optim.Optimizer:
    """The optimiser over a model's trainable parameters.

    Vectors (biases, normalisation) are not decayed, nor scaled by LARS. A method may hold ``rates``, from the beginning
    of parameters' names to a :class:`nearfar.methods.parts.Rate`: SimSiam's predictor, whose learning rate has no
    schedule, or proxies that learn a hundred times as fast.
    """
    import torch

    special = getattr(model, "rates", {})
    groups: dict[tuple, dict] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        rate = next((r for start, r in special.items() if name.startswith(start)), None)
        scale, constant = rate or (1.0, False)
        matrix = p.ndim > 1
        peak = config.lr * scale * (1.0 if matrix else config.bias_lr)
        decay = config.weight_decay if matrix else 0.0
        held = groups.setdefault((matrix, scale, constant), {
            "params": [], "lr": peak, "weight_decay": decay, "peak": peak, "decayed": matrix, "constant": constant,
        })  # fmt: skip
        held["params"].append(p)
    held = list(groups.values())
    if config.name == "adamw":
        return torch.optim.AdamW(held, lr=config.lr, betas=(config.momentum, config.beta2), fused=True)
    if config.name == "lars":
        lars = require("timm.optim", "timm", "optimiser lars").Lars  # adapts the groups that have a weight decay
        for group in held:  # so a decay of 0 must still be told apart from a vector's
            group["always_adapt"] = group["decayed"]
        return lars(held, lr=config.lr, momentum=config.momentum, trust_coeff=config.trust)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(held, lr=config.lr, momentum=config.momentum, nesterov=nesterov)


def set_rates(optimizer: optim.Optimizer, config: Optim, share: float) -> float:
    """Learning rates and weight decay where training stands; returns the first group's rate. share in [0, 1]"""
    factor = learning_rate(share, config.warmup, config.schedule, config.lr_end)
    decay = config.weight_decay
    if config.weight_decay_end >= 0:
        decay += (config.weight_decay_end - decay) * (1 - math.cos(math.pi * share)) / 2
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * (1.0 if group["constant"] else factor)
        if group["decayed"]:
            group["weight_decay"] = decay
    return optimizer.param_groups[0]["lr"]
