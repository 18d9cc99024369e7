"""iBOT: DINO, and from the patches that are left the student foretells how the teacher sees those that were hidden.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong 2021, *iBOT: Image BERT Pre-Training with Online Tokenizer* (arXiv:2111.07832).
Of half the pictures' large views blocks of patches are taken away, a learnt token in their place. The student's
[CLS] token learns the teacher's of another view, as in DINO; its tokens at the hidden places learn the teacher's of
the same view, which saw all. One head serves both, with a centre and a temperature each. A vision transformer only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import dino, update_centre
from nearfar.losses.rows import reduced, widened
from nearfar.methods.dino import last_layer, projector
from nearfar.methods.parts import Progress, Step, cosine, follow, positive, shares, twin, usage

SUPERVISED = False
POLICY = ("dino", "dino-small")
PRESETS = {
    "small": {"encoder": "timm:vit_tiny_patch16_224", "optim": {"lr": 0.001, "weight_decay": 0.04, "clip": 3.0},
              "settings": {"prototypes": 256, "hidden": 512, "dim": 32, "norm": "batch", "momentum": 0.95,
                           "warmup_epochs": 2.0, "frozen_epochs": 0.1}},
    # bytedance/ibot, README: 800 epochs on 16 × 64 images; main_ibot.py: 0.0005 · 1024/256, ten of warm-up, down to
    # 10⁻⁶. There with ten small crops of 0.05 to 0.25, large ones from 0.25 on; each gradient clipped at 3, not all
    "paper": {"encoder": "timm:vit_small_patch16_224", "image_size": 224, "batch": 1024, "epochs": 800.0,
              "policy": "dino", "settings": {"lengths": True},
              "views": [{"crop_min": 0.25}, {"crop_min": 0.25}, {"crop_max": 0.25, "count": 10}],
              "optim": {"lr": 0.002, "weight_decay": 0.04, "weight_decay_end": 0.4, "beta2": 0.999, "clip": 3.0,
                        "warmup": 0.0125, "lr_end": 0.0005}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    prototypes: int = 8192
    """K, outputs of the last layer"""
    patch_weight: float = 1.0
    """weight of the hidden patches' loss beside [CLS]'s"""
    mask_share: float = 0.3
    """share of a view's patches that are hidden, on average, where any are"""
    mask_spread: float = 0.2
    """how much that share is less or more, uniform"""
    masked: float = 0.5
    """share of the pictures' views of which any are"""
    student_temperature: float = 0.1
    """τ_s of the student's softmax"""
    teacher_temperature: float = 0.07
    """τ_t of the teacher's, once warm"""
    start_temperature: float = 0.04
    """τ_t at the start"""
    warmup_epochs: float = 30.0
    """epochs in which τ_t rises from its start"""
    centre_momentum: float = 0.9
    """how much of the centres stays at each step"""
    momentum: float = 0.996
    """how much of the teacher stays at each step, at the start; 1 at the end"""
    frozen_epochs: float = 1.0
    """epochs in which the last layer stands still"""
    lengths: bool = False
    """let the last layer's rows learn their lengths, which are 1 else"""
    depth: int = 3
    """linear layers of the projector"""
    hidden: int = 2048
    """width of the projector's hidden layers"""
    dim: int = 256
    """dimensions before the last layer"""
    norm: str = "none"
    """normalisation in the projector: batch or none (the paper's)"""

    def __post_init__(self) -> None:
        positive(self, "prototypes", "student_temperature", "teacher_temperature", "start_temperature", "depth",
                 "hidden", "dim")  # fmt: skip
        shares(self, "mask_share", "mask_spread", "masked", "centre_momentum", "momentum")
        if self.norm not in ("batch", "none"):
            raise UserError(f"norm {self.norm!r}: give batch or none")


def transformer(encoder: nn.Module) -> nn.Module:
    """timm's vision transformer inside an encoder, or one line."""
    net = getattr(getattr(encoder, "backbone", None), "net", None)
    if not all(hasattr(net, part) for part in ("patch_embed", "blocks", "norm", "num_prefix_tokens")):
        raise UserError("ibot hides patches of a vision transformer and this encoder has none: "
                        "pass --encoder timm:vit_tiny_patch16_224")  # fmt: skip
    return net


def encode(encoder: nn.Module, x: Tensor, hidden: Tensor | None = None, token: Tensor | None = None):
    """Features and patch tokens, with ``token`` in place of hidden patches. hidden (B, P) -> (B, d), (B, P, d)"""
    net, seen = transformer(encoder), []

    def hide(part: nn.Module, given: tuple, out: Tensor) -> Tensor:
        return torch.where(hidden.view(*out.shape[:-1], 1), token.to(out.dtype), out)

    handles = [net.norm.register_forward_hook(lambda part, given, out: seen.append(out))]
    if hidden is not None:
        handles.append(net.patch_embed.register_forward_hook(hide))
    try:
        features = encoder(x)
    finally:
        for handle in handles:
            handle.remove()
    return features, seen[0][:, net.num_prefix_tokens :]
