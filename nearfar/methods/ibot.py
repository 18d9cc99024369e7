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
from nearfar.encoders.tokens import block_masks, transformer, with_tokens
from nearfar.errors import UserError
from nearfar.losses import dino, update_centre
from nearfar.losses.rows import reduced, widened
from nearfar.methods.dino import last_layer, projector
from nearfar.methods.parts import Progress, Step, cosine, follow, positive, shares, twin, usage

SUPERVISED = False
CONTENT = "image"
POLICY = ("dino", "dino-small")
PRESETS = {
    "small": {"encoder": "timm:vit_tiny_patch16_224", "optim": {"lr": 0.001, "weight_decay": 0.04, "clip": 3.0},
              "settings": {"prototypes": 256, "hidden": 512, "dim": 32, "norm": "batch", "momentum": 0.95,
                           "warmup_epochs": 2.0, "frozen_epochs": 0.1}},
    # bytedance/ibot, README: 800 epochs on 16 × 64 images, crops; main_ibot.py: 0.0005 · 1024/256, ten of warm-up, down
    # to 10⁻⁶. There each parameter's gradient is clipped at 3, here all of them together. The small crops are left out
    # where the transformer takes one size alone
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


class Method(nn.Module):
    views = 2

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        net = transformer(encoder)
        self.small_views = bool(getattr(net, "dynamic_img_size", False))
        self.encoder, self.config = encoder, config
        self.projector = projector(encoder.features, config)
        self.prototypes = last_layer(config)
        self.twin = twin(self._parts())
        self.token = nn.Parameter(torch.zeros(encoder.features))  # in a hidden patch's place
        self.register_buffer("centres", torch.zeros(2, config.prototypes))  # of [CLS], of patches
        self.fresh: list[Tensor] = []

    def _parts(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.projector, self.prototypes])

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def _scores(self, parts: nn.ModuleList, h: Tensor) -> Tensor:
        """What the last layer says of features or tokens. (…, d) -> (…, K)"""
        _, projector, prototypes = parts
        z = widened(projector(h.flatten(0, -2)), unit=True)  # (rows, dim)
        return widened(prototypes(z), unit=False).unflatten(0, h.shape[:-1])

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        c, b, x, mine = self.config, len(index), torch.cat(views[:2]), self._parts()
        with torch.no_grad():
            seen = with_tokens(self.twin[0], transformer(self.twin[0]), x)  # (2B, 1 + P, d)
            t = self._scores(self.twin, seen)  # (2B, 1 + P, K)
        hidden = self._hidden(x, b, progress).to(x.device)  # (2B, P)
        h = with_tokens(self.encoder, transformer(self.encoder), x, hidden, self.token)  # (2B, 1 + P, d)
        s = self._scores(mine, h)  # (2B, 1 + P, K)
        sizes = dict.fromkeys(v.shape[-2:] for v in views[2:])
        small = [self.encoder(torch.cat([v for v in views[2:] if v.shape[-2:] == size])) for size in sizes]
        rows = torch.cat([s[:, 0], *(self._scores(mine, h_v) for h_v in small)])  # (V·B, K)
        warm = min(1.0, progress.epoch / c.warmup_epochs) if c.warmup_epochs > 0 else 1.0
        temperature = c.start_temperature + (c.teacher_temperature - c.start_temperature) * warm
        cls = dino(rows.split(b), t[:, 0].split(b), self.centres[0], student_temperature=c.student_temperature,
                   teacher_temperature=temperature)  # fmt: skip
        wanted = ((t[:, 1:] - self.centres[1]) / temperature).softmax(2)  # (2B, P, K)
        costs = -(wanted * (s[:, 1:] / c.student_temperature).log_softmax(2)).sum(2) * hidden  # (2B, P)
        costs = costs.sum(1) / hidden.sum(1).clamp(min=1)  # (2B,): the mean over a view's hidden patches
        patch = reduced(costs, torch.ones_like(costs), "mean")
        self.fresh = [t[:, 0], t[:, 1:].mean(1)]  # (2B, K) each
        used = usage(((t[:, 0] - self.centres[0]) / temperature).softmax(1))
        chance = math.log(c.prototypes) * (1 + c.patch_weight * c.masked)  # views with nothing hidden cost nothing
        stats = {"chance": chance, "class_loss": cls.detach(), "patch_loss": patch.detach(), "prototype_usage": used}
        features = h[:, 0].detach()  # (2B, d)
        with torch.no_grad():
            z = self.projector(features)  # (2B, dim)
        return Step(cls + c.patch_weight * patch, features, z, index.repeat(2), stats)

    def _hidden(self, x: Tensor, b: int, progress: Progress) -> Tensor:
        """My rows of the masks of all processes' views. (2B, P)"""
        c, size = self.config, transformer(self.encoder).patch_embed.patch_size
        counts = [n for (n,) in dist.exchange([b], x.device)]
        first = sum(counts[: dist.rank()])
        masks = block_masks(x.shape[-2] // size[0], x.shape[-1] // size[1], 2 * sum(counts), progress.generator,
                            share=c.mask_share, spread=c.mask_spread, masked=c.masked)  # fmt: skip
        return torch.cat([half[first : first + b] for half in masks.chunk(2)])

    def before_step(self, progress: Progress) -> None:
        if progress.epoch < self.config.frozen_epochs:
            for p in self.prototypes.parameters():
                p.grad = None

    def after_step(self, progress: Progress) -> None:
        follow(self.twin, self._parts(), cosine(self.config.momentum, 1.0, progress.share))
        for centre, said in zip(self.centres, self.fresh):
            centre.copy_(update_centre(centre, [said], self.config.centre_momentum))
