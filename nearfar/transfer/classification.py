"""Classification: a linear or MLP head on an encoder, from the probe on; few labels a class."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.data import Source
from nearfar.encoders import mlp
from nearfar.evaluate import classification as scores
from nearfar.evaluate.probes import few_probe
from nearfar.evaluate.records import Scores, of_draws
from nearfar.training.loop import step_generator
from nearfar.transfer.settings import Settings
from nearfar.views.image import ImageViews, plain
from nearfar.views.policy import ImagePolicy

HEADS = ("linear", "mlp")
COLUMNS = ("accuracy", "macro F1")
_CHUNK, _TIMES = 256, 200


@dataclass(frozen=True)
class Labelled:
    """Labelled images of one shape, and the raw values that stand for 0 and 1."""

    part: Source
    low: float
    high: float
    flip: float = 0.5  # probability of a mirrored image in training
    kinds: int = field(default=0)  # classes of the data set

    def __len__(self) -> int:
        return len(self.part)


class Classifier(nn.Module):
    """A head on unit features. (B, C, H, W) in [0, 1] -> (B, K) logits, float32"""

    def __init__(self, encoder: nn.Module, classes: int, settings: Settings) -> None:
        super().__init__()
        self.encoder, self.mixed = encoder, settings.precision == "bf16-mixed"
        d = encoder.features
        linear = settings.head in ("", "linear")
        self.head = nn.Linear(d, classes) if linear else mlp(d, d, classes, norm="layer")

    def features(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            h = self.encoder(x)
        return F.normalize(h.float(), dim=1)  # (B, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def build(encoder: nn.Module, channels: int, classes: int, settings: Settings) -> Classifier:
    return Classifier(encoder, classes, settings)


def start(model: Classifier, pictures: Labelled) -> bool:
    """Set a linear head to the logistic probe on the same features (Kumar et al. 2022, arXiv:2202.10054).

    So a frozen encoder's row is the few-label probe itself, and fine-tuning goes on from there. -> whether it was set
    """
    if not isinstance(model.head, nn.Linear):
        return False
    y = pictures.part.labels
    kinds = np.unique(y)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(-1e4)  # classes without a label are never said
        if len(kinds) < 2:
            model.head.bias[kinds[0]] = 0.0
            return True
        probe = few_probe(_features(model, pictures), y)
        w, b = probe.coef_, probe.intercept_  # (1 | K, d), (1 | K,)
        if len(kinds) == 2:
            w, b = np.concatenate([-w, w]) / 2, np.concatenate([-b, b]) / 2
        model.head.weight[kinds] = torch.from_numpy(w).to(model.head.weight)
        model.head.bias[kinds] = torch.from_numpy(b).to(model.head.bias)
    return True


@torch.no_grad()
def _features(model: Classifier, pictures: Labelled) -> np.ndarray:
    """Unit features by the encoder in float32, as embeddings are judged. -> (N, d)"""
    plainly = copy.copy(model)
    plainly.mixed = False
    return np.concatenate([plainly.features(x).cpu().numpy() for x in _chunks(model, pictures)])


def _chunks(model: nn.Module, pictures: Labelled):
    model.eval()
    device = next(model.parameters()).device
    for at in range(0, len(pictures), _CHUNK):
        content = pictures.part.read(np.arange(at, min(at + _CHUNK, len(pictures))))
        yield plain(content, pictures.low, pictures.high, device)  # (B, C, H, W)


def batch_of(pictures: Labelled, rows: np.ndarray, settings: Settings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images cropped to 60 % or more and mirrored where that may be, with their classes."""
    colour = 0.0 if pictures.part.shape[2] != 3 else 0.5
    policy = ImagePolicy(crop_min=0.6, flip=pictures.flip, colour=colour, brightness=0.2, contrast=0.2, saturation=0.2,
                         hue=0.0, grey=0.0)  # fmt: skip
    views = ImageViews(policy, pictures.part.shape[:2], pictures.low, pictures.high, 1)
    drawn = step_generator(int(torch.randint(2**31, ())), 0)
    x = views(pictures.part.read(rows), drawn, device)[0]
    return x, torch.from_numpy(pictures.part.labels[rows]).to(device)


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


@torch.no_grad()
def predict(model: Classifier, pictures: Labelled, rows: range | None = None) -> np.ndarray:
    """The likeliest class of each image. -> (N,)"""
    part = pictures if rows is None else Labelled(pictures.part.subset(list(rows)), pictures.low, pictures.high)
    return np.concatenate([model(x).argmax(1).cpu().numpy() for x in _chunks(model, part)])


def judged(found: np.ndarray, pictures: Labelled, seed: int) -> Scores:
    """Accuracy and macro F1 with intervals over images drawn again with replacement."""
    y, names = pictures.part.labels, list(pictures.part.classes)
    held = scores(y, found, names)
    k, n, rng = len(names), len(y), np.random.default_rng(seed)
    weights = [rng.multinomial(n, np.full(n, 1 / n)) for _ in range(_TIMES)]  # the same items for every encoder
    drawn = np.stack([np.bincount(y * k + found, w, k * k).reshape(k, k) for w in weights])  # (T, K, K)
    hits = drawn.diagonal(0, 1, 2)  # (T, K)
    both = drawn.sum(1) + drawn.sum(2)
    values = {"accuracy": hits.sum(1) / n, "macro F1": (2 * hits / np.maximum(both, 1)).mean(1)}
    points = {"accuracy": held["accuracy"], "macro F1": held["macro"]["f1"]}
    return Scores(of_draws(points, values, n), tuple(held["per_class"]), values)
