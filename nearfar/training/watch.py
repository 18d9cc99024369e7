"""What is seen of a run while it trains: signs of health of a batch, and an online kNN on held-out images."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.evaluate.geometry import effective_rank
from nearfar.methods.parts import Step

ROWS = 256  # pictures of a batch that are looked at: eigenvalues of so many rows take a few milliseconds


class Watch:
    """The signs of a model's steps; nothing that it does moves a weight or draws a random number.

    Args:
        model: the method that is trained; the weights whose growth is watched are its encoder's.

    :meth:`look` is called where a row is logged.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        encoder = getattr(model, "encoder", model)
        self._kernels = [p.detach() for p in encoder.parameters() if p.requires_grad and p.ndim > 1]
        self.first = float(self._weights())  # the norm of the encoder's weights at the start

    def _weights(self) -> Tensor:
        return total_norm(self._kernels)

    @property
    def growth(self) -> float:
        """The norm of the encoder's weights, over what it was at the start."""
        return float(self._weights()) / self.first if self.first else 1.0

    def look(self, out: Step, images: Any, gradient: Tensor | None = None) -> dict[str, float]:
        """The signs of one step, after the optimiser's: docs/doctor.md says what each is.

        Args:
            out: the step's.
            images: the batch before views were made, (B, …).
            gradient: the gradient's norm where it was clipped; else it is taken from the parameters.
        """
        if gradient is None:
            gradient = total_norm([p.grad for p in self._parameters if p.grad is not None])
        row = {"gradient": float(gradient), "weight_growth": self.growth, "image_spread": image_spread(images)}
        row |= {name: float(value) for name, value in out.stats.items()}
        z, h = out.projections.float(), out.features.float()
        if bool(torch.isfinite(z).all()) and bool(torch.isfinite(h).all()):
            row |= similarities(z, out.groups) | _spectra(z, h, min(ROWS, len(images)))
        return row


def _spectra(z: Tensor, h: Tensor, n: int) -> dict[str, float]:
    """Spread and effective rank of the first view's rows, which are independent of each other."""
    mean, least = spread(z[:n])
    return {"spread": mean, "spread_least": least, "spread_features": spread(h[:n])[0],
            "effective_rank": effective_rank(h[:n], corrected=True),
            "effective_rank_projections": effective_rank(z[:n], corrected=True)}  # fmt: skip


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all of them together; of shards, that of the whole, for which all processes must ask. ()"""
    if not tensors:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)).float())
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def similarities(z: Tensor, groups: Tensor) -> dict[str, float]:
    """Mean cosines of positives and of negatives, alignment and uniformity, of the first pictures' views. (N, d), (N,)

    Alignment is the mean ‖u - v‖² of positives, uniformity log mean exp(-2 ‖u - v‖²) of negatives, on the unit sphere
    (Wang & Isola 2020). NaN where a batch has no such pair.
    """
    rows = torch.isin(groups, groups[:ROWS]).nonzero()[: 4 * ROWS, 0]
    u, g = F.normalize(z[rows], dim=1), groups[rows]
    cos, same = u @ u.T, g[:, None] == g[None, :]  # (n, n)
    p = same.float().fill_diagonal_(0)
    positive = float((cos * p).sum() / p.sum())
    other = cos[~same]
    uniformity = torch.logsumexp(4 * (other - 1), 0) - math.log(max(len(other), 1))
    return {"positive": positive, "negative": float(other.mean()), "alignment": 2 - 2 * positive,
            "uniformity": float(uniformity) if len(other) else math.nan}  # fmt: skip


def spread(z: Tensor) -> tuple[float, float]:
    """√d times the deviation of unit rows a dimension: its mean, 1 where even, and that of the least tenth. (n, d)"""
    each = F.normalize(z, dim=1).std(0, correction=0) * math.sqrt(z.shape[1])  # (d,)
    return float(each.mean()), float(each.sort().values[: max(1, len(each) // 10)].mean())


def image_spread(images: Any) -> float:
    """How far a batch's images differ: their deviation from the mean image, over that of all pixels' values.

    0 where all are equal; NaN where they are no array. images (B, …)
    """
    if not isinstance(images, np.ndarray) or images.ndim < 2 or len(images) < 2:
        return math.nan
    x = images[:64].reshape(min(len(images), 64), -1)
    x = torch.as_tensor(x[:, :: max(1, x.shape[1] // 2048)].astype(np.float32))  # (b, values)
    within, whole = x.var(0, correction=0).mean(), x.var(correction=0)
    return float((within / whole).sqrt()) if float(whole) > 0 else 0.0


class OnlineKNN:
    """kNN accuracy on held-out images, while it trains, against the training features of the last steps.

    Args:
        embed: gives the held-out images' features, (Q, d), in evaluation mode.
        labels: (Q,) theirs.
        size: training features that are kept.
        points: how often it is measured, evenly over the training.

    The features kept are those of augmented views, as training computed them, so they cost nothing and the accuracy
    is a little below that of an evaluation. The vote is :func:`nearfar.evaluate.knn`'s. Nothing is chosen by it.
    """

    def __init__(
        self, embed: Callable[[], np.ndarray], labels: np.ndarray, *, size: int = 4096, points: int = 10,
        k: int = 20, temperature: float = 0.07,
    ) -> None:  # fmt: skip
        self._embed, self._labels, self._size, self._points = embed, torch.as_tensor(labels).long(), size, points
        self._k, self._temperature = k, temperature
        self._kept: deque[tuple[Tensor, Tensor]] = deque()
        self._done = 0

    def keep(self, features: Tensor, labels: Tensor | None) -> None:
        """Take a step's features in: of its first view, row by row with the labels. (B·views, d), (B,)"""
        if labels is None or len(features) < len(labels):
            return
        self._kept.append((features[: len(labels)].float().clone(), labels))
        while sum(len(y) for _, y in self._kept) - len(self._kept[0][1]) >= self._size:
            self._kept.popleft()

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """What a checkpoint keeps of it: tensors, and JSON."""
        if not self._kept:
            return {}, {"done": self._done, "sizes": []}
        features, labels = (torch.cat(part) for part in zip(*self._kept))
        sizes = [len(y) for _, y in self._kept]
        return {"online.features": features, "online.labels": labels}, {"done": self._done, "sizes": sizes}

    def restore(self, tensors: dict[str, Tensor], state: dict, device: torch.device) -> None:
        """Stand where ``state`` was taken."""
        self._done = state["done"]
        if state["sizes"]:
            parts = (tensors[f"online.{name}"].to(device).split(state["sizes"]) for name in ("features", "labels"))
            self._kept = deque(zip(*parts))

    def judge(self, share: float, last: bool = False) -> dict[str, float]:
        """``{"knn_online": accuracy}`` at one of the points, else nothing. share in [0, 1]"""
        at = self._points if last else int(share * self._points)
        if at <= self._done or not self._kept:
            return {}
        self._done = at
        bank, y = (torch.cat(part) for part in zip(*self._kept))  # (n, d), (n,)
        q = torch.as_tensor(self._embed()).to(bank)
        cos = F.normalize(q, dim=1) @ F.normalize(bank, dim=1).T  # (Q, n)
        near, index = cos.topk(min(self._k, len(bank)))  # (Q, k)
        weight = ((near - near[:, :1]) / self._temperature).exp()
        votes = weight.new_zeros(len(q), int(max(y.max(), self._labels.max())) + 1)
        votes.scatter_add_(1, y[index].long(), weight)
        return {"knn_online": float((votes.argmax(1).cpu() == self._labels).float().mean())}
