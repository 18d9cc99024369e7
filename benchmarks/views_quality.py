"""Is what is learnt from our views worse than what is learnt from torchvision's? The same recipe, the same steps.

    python benchmarks/prepare.py cifar10 "$NEARFAR_DATA" cifar10.npz --train 10000 --test 3000
    python benchmarks/views_quality.py cifar10.npz --views nearfar torchvision --seeds 0 1 2 --out quality.jsonl
    python benchmarks/views_quality.py --table quality.jsonl

SimCLR with the small CNN, `--steps` steps of 256 images. `nearfar` are our views as training uses them, `exact` ours
with colour operations one by one, hue in HSV and a clamp after each, `torchvision` are v2's RandomResizedCrop,
RandomHorizontalFlip, ColorJitter and RandomGrayscale on PIL images with the same parameters, in two processes. The
judge is the same: kNN and a linear probe on test images. A line is added to the file for each run; runs that are in
it already are passed over.
"""

import argparse
import dataclasses
import json
import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from nearfar import build
from nearfar.data import open_source
from nearfar.evaluate import evaluate
from nearfar.learning import fresh, learn
from nearfar.recipe import Recipe
from nearfar.views.policies import plan_of

COLUMNS = ("1 label linear", "5 labels linear", "10 labels linear", "kNN", "linear")


def _transform(policy):
    from torchvision.transforms import v2

    jitter = v2.ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    return v2.Compose([
        v2.RandomResizedCrop(policy.height, scale=(policy.crop_min, policy.crop_max),
                             ratio=(1 / policy.crop_ratio, policy.crop_ratio)),
        v2.RandomHorizontalFlip(policy.flip), v2.RandomApply([jitter], policy.colour), v2.RandomGrayscale(policy.grey),
    ])  # fmt: skip


def _worker(given):
    """Two views of each image of a part of a batch. -> (2, B, H, W, C) uint8"""
    from PIL import Image

    content, seed, policy = given
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    make = _transform(argparse.Namespace(**policy, height=content.shape[1]))
    pictures = [Image.fromarray(i[..., 0] if i.shape[2] == 1 else i) for i in content]
    seen = np.stack([np.stack([np.asarray(make(p)) for p in pictures]) for _ in range(2)])
    return seen.reshape(2, *content.shape)


class Torchvision:
    """torchvision's views as ``views(content, generator, device)``."""

    def __init__(self, policy, pool) -> None:
        self.policy, self.pool = dataclasses.asdict(policy), pool

    def __call__(self, content, generator, device="cpu"):
        seed = generator.initial_seed() % 2**62
        parts = [(part, seed + i, self.policy) for i, part in enumerate(np.array_split(content, 2))]
        seen = np.concatenate(self.pool.map(_worker, parts), 1)  # (2, B, H, W, C)
        return [torch.from_numpy(v).permute(0, 3, 1, 2).float().div_(255).to(device) for v in seen]


def run(data: Path, kind: str, seed: int, steps: int, pool) -> dict:
    splits = open_source(data)
    recipe = Recipe(source=str(data), steps=steps, seed=seed, views={"exact": kind == "exact"})
    recipe = build.resolve(recipe, splits.train)
    policy = plan_of(recipe.policy, recipe.views)[0]
    theirs = Torchvision(policy, pool) if kind == "torchvision" else None
    learnt = learn(splits.train, recipe, fresh(splits.train, recipe), views=theirs)
    spaces = {kind: tuple(build.embed(learnt.method, part, learnt.input) for part in (splits.train, splits.test))}
    judged = evaluate(spaces, splits.train.labels, splits.test.labels)[kind]
    return {"data": data.stem, "views": kind, "seed": seed, "steps": steps, "policy": recipe.policy,
            "seconds": round(learnt.clock.total), "views_seconds": round(learnt.clock.views, 1),
            **{c: [judged[c].value, judged[c].low, judged[c].high] for c in COLUMNS}}  # fmt: skip


def table(path: Path) -> None:
    """Means over seeds with 95 % intervals (Student's over seeds), and the paired difference from torchvision's."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    half = lambda v: t.ppf(0.975, len(v) - 1) * np.std(v, ddof=1) / len(v) ** 0.5 if len(v) > 1 else float("nan")  # noqa: E731
    print(f"| data | views | {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * len(COLUMNS)}")
    for data in dict.fromkeys(r["data"] for r in rows):
        of = {r["views"]: {} for r in rows if r["data"] == data}
        for r in rows:
            if r["data"] == data:
                of[r["views"]][r["seed"]] = r
        for kind, seeds in of.items():
            cells = [[s[c][0] for s in seeds.values()] for c in COLUMNS]
            said = " | ".join(f"{np.mean(v):.3f} ±{half(v):.3f}" for v in cells)
            print(f"| {data} | {kind} ({len(seeds)} seeds) | {said} |")
        for kind in of.keys() - {"torchvision"} if "torchvision" in of else ():
            both = sorted(of[kind].keys() & of["torchvision"].keys())
            cells = [[of[kind][s][c][0] - of["torchvision"][s][c][0] for s in both] for c in COLUMNS]
            said = " | ".join(f"{np.mean(v):+.3f} ±{half(v):.3f}" for v in cells)
            print(f"| {data} | {kind} less torchvision | {said} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--views", nargs="+", default=["nearfar", "torchvision"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table:
        return table(given.table)
    warnings.filterwarnings("ignore", module="torchvision")
    done = {(r["data"], r["views"], r["seed"]) for r in map(json.loads, given.out.read_text().splitlines())} \
        if given.out.exists() else set()  # fmt: skip
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for seed in given.seeds:
            for data in given.data:
                for kind in given.views:
                    if (data.stem, kind, seed) in done:
                        continue
                    row = run(data, kind, seed, given.steps, pool)
                    with given.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)


if __name__ == "__main__":
    main()
