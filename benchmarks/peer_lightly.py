"""The same encoder and the same minutes with lightly's views, loss, projector and its CIFAR-10 recipe.

    pip install lightly
    python benchmarks/peer_lightly.py cifar10.npz --minutes 2.5 --out runs/lightly-2m-0

Lightly's parts as its own CIFAR-10 benchmark puts them together: `SimCLRTransform(input_size=32, cj_strength=0.5,
gaussian_blur=0)` in a `DataLoader` with two workers, `SimCLRProjectionHead`, `NTXentLoss` (temperature 0.5), SGD
with momentum 0.9, weight decay 5e-4, learning rate 6e-2 at batch 128 scaled by the batch, half a cosine to 0. The
encoder is nearfar's small CNN in channels-last bfloat16, as in nearfar's own runs, and the judge is nearfar's.
`--temperature` and `--adamw` give the peer what nearfar's defaults were tuned to.
"""

import argparse
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from nearfar.encoders import image_encoder
from nearfar.evaluate import evaluate
from nearfar.views.image import plain


class Pictures(Dataset):
    def __init__(self, x: np.ndarray, transform: SimCLRTransform) -> None:
        self.x, self.transform = x, transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        return self.transform(Image.fromarray(self.x[i]).convert("RGB"))


def train(x: np.ndarray, given: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(given.seed)
    # the transform normalises with ImageNet's figures, so the encoder is given none of its own
    encoder = image_encoder("cnn", (*x.shape[1:3], 3), torch.zeros(3), torch.ones(3))
    head = SimCLRProjectionHead(encoder.features, encoder.features, 128)
    criterion = NTXentLoss(temperature=given.temperature)
    parameters = [*encoder.parameters(), *head.parameters()]
    lr = 6e-2 * given.batch / 128
    optimiser = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
    if given.adamw:
        lr = 3e-3
        optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    grey = {"cj_sat": 0.0, "cj_hue": 0.0, "random_gray_scale": 0.0} if x.ndim == 3 else {}
    transform = SimCLRTransform(input_size=x.shape[1], cj_strength=0.5, gaussian_blur=0.0, **grey)
    loader = DataLoader(Pictures(x, transform), given.batch, shuffle=True, drop_last=True, num_workers=2,
                        persistent_workers=True)  # fmt: skip
    steps, start = 0, time.perf_counter()
    while True:
        for views in loader:
            took = time.perf_counter() - start
            share = steps / given.steps if given.steps else took / (60 * given.minutes)
            if share >= 1:
                print(f"{steps} steps, {2 * steps * given.batch / took:,.0f} views/s", flush=True)
                return encoder.eval()
            for group in optimiser.param_groups:
                group["lr"] = lr * min(share / 0.05, 0.5 * (1 + math.cos(math.pi * share)))
            both = torch.cat(views).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                z = head(encoder(both))
            loss = criterion(*z.float().chunk(2))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            steps += 1


def embed(encoder: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    x = np.repeat(x[..., None], 3, 3) if x.ndim == 3 else x
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        parts = [encoder((plain(x[i : i + 500], 0.0, 255.0) - mean) / std) for i in range(0, len(x), 500)]
    return torch.cat(parts).float().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--steps", type=int, default=0, help="a budget in steps in place of minutes")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--adamw", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightly|torch")
    data = np.load(given.data)
    encoder = train(data["x_train"], given)
    features = {"lightly": (embed(encoder, data["x_train"]), embed(encoder, data["x_test"]))}
    judged = evaluate(features, data["y_train"].astype(np.int64), data["y_test"].astype(np.int64))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps({"evaluation": judged.to_dict()}))
    judged.render()


if __name__ == "__main__":
    main()
