"""Instance discrimination: every picture is a class of its own, and a memory bank holds the classes' directions.

Wu, Xiong, Yu, Lin 2018, *Unsupervised Feature Learning via Non-Parametric Instance-level Discrimination*
(arXiv:1805.01978). v = g(f(x̃)) of one view, of length one; a picture's probability is a softmax over the bank's rows,
exp(v·m_i / τ) / Z, and the loss its -log. Where rows are many, noise-contrastive estimation takes m drawn ones: is this
row the picture's, or noise? with Z as it was in the first batch. The bank's row moves half way to the new v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import info_nce, sigmoid
from nearfar.losses.rows import widened
from nearfar.methods.parts import Bank, Progress, Step, head, positive, shares

SUPERVISED = False
POLICY = ("moco-v1", "simclr-small")
PRESETS = {
    # few pictures: the softmax over all of them, exactly, as the paper on CIFAR-10. In the few epochs of a short run
    # rows lag behind: small steps, embeddings centred over the batch and rows that begin as embeddings keep them
    # comparable, without which it learns nothing; chosen on CIFAR-10's training images
    "small": {"settings": {"nce": False, "negatives": 0, "random_start": False, "last_norm": True, "depth": 2},
              "optim": {"lr": 0.0005}},
    # zhirongw/lemniscate.pytorch, main.py: SGD, a tenth from epoch 120 and a hundredth from 160 on
    "paper": {"encoder": "torchvision:resnet50", "image_size": 224, "batch": 256, "epochs": 200.0, "policy": "moco-v1",
              "optim": {"name": "sgd", "lr": 0.03, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": False,
                        "warmup": 0.0, "schedule": "step"}},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    temperature: float = 0.07
    """τ of the softmax over pictures"""
    nce: bool = True
    """noise-contrastive estimation in place of the softmax"""
    negatives: int = 4096
    """rows of the bank that are drawn for a batch; 0: all of them"""
    momentum: float = 0.5
    """how much of a row of the bank stays when its picture is seen"""
    random_start: bool = True
    """rows begin as random directions; else as their pictures' first embeddings, and count from then on"""
    depth: int = 1
    """linear layers of the projector"""
    hidden: int = 0
    """width of the projector's hidden layers; 0: as wide as the features"""
    dim: int = 128
    """dimensions of the bank's rows"""
    norm: str = "batch"
    """normalisation in the projector's hidden layers: batch, layer or none"""
    last_norm: bool = False
    """the same normalisation of its output: rows written at different times then have a centre in common"""

    def __post_init__(self) -> None:
        positive(self, "temperature", "depth", "dim")
        shares(self, "momentum")
        if self.negatives < 0 or self.hidden < 0:
            raise UserError(f"negatives {self.negatives} and hidden {self.hidden} must not be negative")


class Memory(nn.Module):
    """The bank as keys: a row for each picture, of which all or some drawn ones are held against a batch.

    Args:
        images: of the training set. dim: of a row.
        negatives: rows that are drawn beside the batch's own; 0: all rows.
        momentum: how much of a row stays when its picture is seen.
        random_start: rows begin as random directions, the papers' way; else a picture's first embedding is its first
            row, and pictures that have not been seen are nobody's negatives.
    """

    def __init__(self, images: int, dim: int, negatives: int, momentum: float, random_start: bool) -> None:
        super().__init__()
        self.bank = Bank(images, dim)
        self.negatives, self.momentum, self.random_start = negatives, momentum, random_start
        self.fresh: tuple[Tensor, Tensor] | None = None

    def forward(self, z: Tensor, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The keys that a batch's embeddings, without gradient, are held against. z (B, dim) -> (K, dim), (K,)"""
        self.fresh = (index, z)
        rows, seen, n = self.bank.rows, self.bank.seen, len(self.bank.rows)
        everyone = dist.gather(index)
        numbers = torch.arange(n, device=rows.device)
        if 0 < self.negatives < n:
            others = torch.randint(n, (self.negatives,), generator=generator).to(rows.device)
            numbers = torch.unique(torch.cat([everyone, others]))  # (K,)
        if not self.random_start and not bool(seen.all()):
            rows, known, new = rows.clone(), seen.clone(), ~seen[everyone]
            rows[everyone[new]] = dist.gather(widened(z, unit=True).to(rows.dtype))[new]
            known[everyone] = True
            numbers = numbers[known[numbers]]
        return rows[numbers], numbers

    def write(self) -> None:
        """Move the rows of the batch, from all processes."""
        index, z = self.fresh
        new = ~self.bank.seen[index] & (not self.random_start)
        self.bank.write(index[new], z[new])
        self.bank.write(index[~new], z[~new], momentum=self.momentum)


class Method(nn.Module):
    views = 1

    def __init__(self, encoder: nn.Module, config: Config, classes: int = 0, images: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, c = encoder, config, config
        self.projector = head(encoder.features, c)
        self.memory = Memory(images, c.dim, c.negatives, c.momentum, c.random_start)
        self.register_buffer("log_partition", torch.tensor(math.inf))  # log Z; unmeasured before the first batch

    def project(self, features: Tensor) -> Tensor:
        return self.projector(features)  # (B, dim)

    def estimation(self, z: Tensor, index: Tensor, keys: Tensor, numbers: Tensor) -> Tensor:
        """NCE: P / (P + m/n) is the chance that a row is the picture's, P = exp(v·m_i / τ) / Z. A logistic loss."""
        m, n, temperature = max(1, len(keys) - 1), len(self.memory.bank.rows), self.config.temperature
        if self.log_partition.isinf():
            s = widened(z.detach(), unit=True) @ keys.to(torch.promote_types(z.dtype, torch.float32)).T  # (B, K)
            both = dist.total(torch.stack([(s.double() / temperature).exp().sum(), s.new_tensor(s.numel()).double()]))
            self.log_partition.copy_((n * both[0] / both[1]).log())
        bias = -(self.log_partition + math.log(m / n))
        return sigmoid(z, index, keys, numbers, temperature=temperature, bias=bias)

    def forward(self, views: list[Tensor], index: Tensor, labels: Tensor | None, progress: Progress) -> Step:
        h = self.encoder(views[0])  # (B, features)
        z = self.project(h)  # (B, dim)
        keys, numbers = self.memory(z.detach(), index, progress.generator)
        if self.config.nce:
            loss, m = self.estimation(z, index, keys, numbers), max(1, len(keys) - 1)
            chance = math.log1p(m) + m * math.log1p(1 / m)
        else:
            loss = info_nce(z, index, keys, numbers, temperature=self.config.temperature)
            chance = math.log(len(keys))
        row = self.memory.bank.rows[index].to(z.dtype)  # stands for another view of it, to be watched
        return Step(loss, h.detach(), torch.cat([z.detach(), row]), index.repeat(2), {"chance": chance})

    def after_step(self, progress: Progress) -> None:
        self.memory.write()
