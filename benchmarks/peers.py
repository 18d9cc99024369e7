"""SimCLR, MoCo v2, SwAV and Barlow Twins against lightly's: the same encoder, images, batch and epochs, one judge.

    pip install lightly
    python benchmarks/prepare.py cifar10 "$NEARFAR_DATA" cifar10.npz --train 10000 --test 3000
    python benchmarks/peers.py cifar10.npz --out peers.jsonl
    python benchmarks/peers.py cifar10.npz --out peers.jsonl --table

Each run is a process of its own with two threads and appends a line to `--out`; what is there already is passed over.
Within a seed and method nearfar and lightly run one right after the other, in an order that alternates.

nearfar     its own recipe `small` of the method.
lightly     its parts as its CIFAR-10 benchmark puts them together (docs/source/getting_started/benchmarks/
            cifar10_benchmark.py, 2023-03-27): heads, losses, transforms at 32 pixels without blur, a DataLoader with
            two workers, SGD with learning rate 0.06 a 128 images (SwAV: Adam, 0.001), half a cosine by epochs.
            Kinder than there: workers stay between epochs; bfloat16 where nearfar uses it; Barlow Twins takes LARS
            from lightly's ImageNet benchmark, as that SGD does not train it here. See lightly_methods.py.
lightly-sgd         Barlow Twins with that SGD, to see it (the others have it anyway and are passed over).
lightly-optimiser   the same with nearfar's optimiser and schedule.
lightly-as-ours     with nearfar's temperature and projector's sizes, too; what is left are the views and the engine.

`swav` is 2 crops of 32 pixels on both sides; `swav-crops`, not run unless asked for, 4 of 16 beside them: lightly has
no small ones on CIFAR-10, so theirs are of the areas of nearfar's preset `small-crops`.

Timed is training alone, on lightly's side from the first batch asked for, on ours all of `learn`. Memory is the
largest resident size of the training process up to training's end (in brackets: before it began, with libraries and
images, without those that only the other side installs), and apart from it the workers': the sum of their largest
sizes, which count again what they share, and in brackets what was theirs alone at the end.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from resident import peak

METHODS = ("simclr", "moco", "swav", "barlow-twins", "swav-crops")
WHO = ("nearfar", "lightly", "lightly-sgd", "lightly-optimiser", "lightly-as-ours")
SCORES = {"knn": "kNN", "linear": "linear", "ten": "10 labels linear"}


def recipe_of(method: str, **changes: Any):
    """nearfar's own; ``swav-crops`` is SwAV with small crops."""
    from nearfar import recipe

    return recipe.of(*{"swav-crops": ("swav", "small-crops")}.get(method, (method,)), **changes)


def peer_of(method: str, who: str, seed: int) -> tuple[Any, Any]:
    """The encoder and, around it, lightly's method."""
    import lightly_methods
    import torch

    from nearfar.encoders import image_encoder
    from nearfar.views.policies import plan_of

    recipe = recipe_of(method)
    torch.manual_seed(seed)  # so that the encoder's first weights are nearfar's
    # the transform normalises with ImageNet's figures, so the encoder is given none of its own
    encoder = image_encoder(recipe.encoder, (32, 32, 3), torch.zeros(3), torch.ones(3), width=recipe.width)
    config = recipe.method_config() if who == "lightly-as-ours" else None
    small = {"small": plan_of(recipe.policy, {})[-1]} if method == "swav-crops" else {}
    return encoder, getattr(lightly_methods, recipe.method.replace("-", "_"))(encoder, config, **small)


def lightly(given: argparse.Namespace, method: str, who: str, seed: int) -> dict:
    import numpy as np
    import torch
    from lightly.data import LightlyDataset
    from lightly_methods import Pictures
    from torch.utils.data import DataLoader

    from nearfar.build import has_fast_bf16
    from nearfar.training.optim import build, set_rates

    warnings.filterwarnings("ignore", module="lightly|torch")
    with np.load(given.data) as held:
        data = Pictures(held["x_train"])
    encoder, peer = peer_of(method, who, seed)
    loader = DataLoader(LightlyDataset.from_torch_dataset(data, transform=peer.transform), given.batch, shuffle=True,
                        drop_last=True, num_workers=given.workers, persistent_workers=given.workers > 0)  # fmt: skip
    steps = math.ceil(given.epochs * len(loader))  # as nearfar counts
    if who in ("lightly-optimiser", "lightly-as-ours"):
        ours = recipe_of(method).optim
        optimiser = build(ours, peer.trained)
        advance = lambda done: set_rates(optimiser, ours, done / steps)  # noqa: E731
        advance(0)
    else:
        peer.optimiser = "sgd" if who == "lightly-sgd" else peer.optimiser
        optimiser, advance = peer.learner(given.batch, steps, len(loader))
    peer.trained.train()
    losses, seen, before, start = [], 0, peak(), time.perf_counter()
    while len(losses) < steps:
        for views, _, _ in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
                z = peer.forward(views)
            loss = peer.loss([part.float() for part in z])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
            advance(len(losses))
            seen += sum(map(len, views))
            if len(losses) == steps:
                break
    took = time.perf_counter() - start
    rows = {"steps": steps, "seconds": took, "views": seen, "losses": [float(losses[0]), float(losses[-1])],
            "memory": peak(), "memory_before": before}  # fmt: skip
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return rows | workers_memory() | judged(given, encoder, lambda pixels: (pixels - mean) / std)


def workers_memory() -> dict:
    """MB of the loader's processes: the sum of the largest resident sizes, and what is no other process's now."""
    kB = defaultdict(int)
    for child in multiprocessing.active_children():
        for name in ("status", "smaps_rollup"):
            try:
                for line in Path(f"/proc/{child.pid}/{name}").read_text().splitlines():
                    key, _, value = line.partition(":")
                    if key in ("VmHWM", "Private_Clean", "Private_Dirty"):
                        kB[key] += int(value.split()[0])
            except OSError:
                pass
    return {"workers": kB["VmHWM"] / 1024, "workers_private": (kB["Private_Clean"] + kB["Private_Dirty"]) / 1024}


def nearfar(given: argparse.Namespace, method: str, who: str, seed: int) -> dict:
    from lightning_fabric import Fabric  # noqa: F401 - so that the import is not timed

    from nearfar.build import image_views, resolve
    from nearfar.data import open_source
    from nearfar.learning import Hooks, fresh, learn

    source = open_source(given.data).train
    recipe = resolve(recipe_of(method, source="array", epochs=given.epochs, batch=given.batch, seed=seed), source)
    model = fresh(source, recipe)
    losses, before, start = [], peak(), time.perf_counter()
    learnt = learn(source, recipe, model, Hooks(show=False, log=lambda row: losses.append(row["loss"])))
    took, memory = time.perf_counter() - start, peak()
    steps = learnt.pace.last_step
    made = image_views(recipe, learnt.input, model.views, small=getattr(model, "small_views", False))
    rows = {"steps": steps, "seconds": took, "views": steps * given.batch * len(made.sizes),
            "losses": [losses[0], losses[-1]], "memory": memory, "memory_before": before}  # fmt: skip
    return rows | workers_memory() | judged(given, learnt.method.encoder, lambda pixels: pixels)


def judged(given: argparse.Namespace, encoder: Any, prepare: Callable) -> dict:
    """nearfar's judges on features of plain images: (B, C, H, W) in [0, 1], as ``prepare`` makes them."""
    import numpy as np
    import torch

    from nearfar.data import open_source
    from nearfar.evaluate import few_label, knn, linear_probe
    from nearfar.views.image import plain

    splits = open_source(given.data)
    features = []
    encoder.eval()
    with torch.no_grad():
        for part in (splits.train, splits.test):
            chunks = np.array_split(np.arange(len(part)), max(1, len(part) // 500))
            pixels = (plain(part.read(at), float(part.low), float(part.high)) for at in chunks)
            features.append(torch.cat([encoder(prepare(p)).float() for p in pixels]).numpy())  # (N, features)
    rows = features[0], splits.train.labels, features[1], splits.test.labels
    classes = list(splits.train.classes or map(str, np.unique(rows[1])))
    few = few_label(*rows, labels_per_class=10)["10 labels linear"]
    found = {"knn": knn(*rows, classes).result, "linear": linear_probe(*rows, classes).result, "ten": few}
    return {name: result.value for name, result in found.items()}


def one(given: argparse.Namespace, method: str, who: str, seed: int) -> dict:
    """One run, in this process."""
    import torch

    # each as it is installed alone: Fabric imports lightly's torchmetrics where it finds it, lightly nearfar's timm
    sys.modules["torchmetrics" if who == "nearfar" else "timm"] = None
    torch.set_num_threads(given.threads)
    row = (nearfar if who == "nearfar" else lightly)(given, method, who, seed)
    return asked(given, method, who, seed) | row | versions()


def asked(given: argparse.Namespace, method: str, who: str, seed: int) -> dict:
    """What tells one run from another."""
    same = {"data": Path(given.data).name, "epochs": given.epochs, "batch": given.batch, "threads": given.threads,
            "workers_asked": given.workers}  # fmt: skip
    return {"method": method, "who": who, "seed": seed} | same


def versions() -> dict:
    from importlib.metadata import version

    from nearfar.environment import commit

    return {"torch": version("torch"), "lightly": version("lightly"), "nearfar": commit()}


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def run_all(given: argparse.Namespace) -> int:
    """Every run that is not there yet, each in a process of its own; returns how many failed."""
    there = [{key: row[key] for key in asked(given, "", "", 0)} for row in lines(given.out)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(given.threads))
    failed = 0
    for seed, method in ((s, m) for s in given.seeds for m in given.methods):
        for who in given.who[:: -1 if (seed + METHODS.index(method)) % 2 else 1]:
            if asked(given, method, who, seed) in there or (who == "lightly-sgd" and method != "barlow-twins"):
                continue
            command = [sys.executable, __file__, *sys.argv[1:], "--one", method, who, str(seed)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads
                                  | {"CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
            if done.returncode:
                failed += 1
                print(f"{method} {who} {seed} failed", file=sys.stderr, flush=True)
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            scores = "  ".join(f"{name} {row[name]:.3f}" for name in SCORES)
            print(f"{method} {who} {seed}: {scores}  {row['seconds']:.0f} s, {row['views'] / row['seconds']:,.0f} "
                  f"views/s, {row['memory']:.0f} MB", flush=True)  # fmt: skip
    return failed


def spread(values: list[float], form: str) -> str:
    """Mean and half of Student's 95 % interval over seeds."""
    from scipy.stats import t

    n, mean = len(values), statistics.mean(values)
    return f"{mean:{form}}" + (f" ±{t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5:.3f}" if n > 1 else "")


def median(rows: list[dict], value: Callable[[dict], float]) -> float:
    return statistics.median(map(value, rows))


def side(method: str, who: str, rows: list[dict]) -> str:
    """A row: one side's figures over seeds."""
    scores = " | ".join(spread([r[name] for r in rows], ".3f") for name in SCORES)
    seconds, rate = median(rows, itemgetter("seconds")), median(rows, lambda r: r["views"] / r["seconds"])
    mb = [f"{median(rows, itemgetter(k)):,.0f}" for k in ("memory", "memory_before", "workers", "workers_private")]
    return (f"| {method} | {who} | {len(rows)} | {scores} | {seconds:.0f} | {rate:,.0f} | {mb[0]} ({mb[1]}) | "
            f"{mb[2]} ({mb[3]}) |")  # fmt: skip


def against(method: str, who: str, pairs: list[tuple[dict, dict]]) -> str:
    """A row: nearfar less another in scores, the other over nearfar in seconds, nearfar over the other in memory."""
    scores = " | ".join(spread([a[name] - b[name] for a, b in pairs], "+.3f") for name in SCORES)
    ours, theirs = zip(*pairs)
    seconds = [median(rows, itemgetter("seconds")) for rows in (ours, theirs)]
    memory = [median(rows, itemgetter("memory")) for rows in (ours, theirs)]
    whole = median(theirs, lambda r: r["memory"] + r["workers_private"])
    each = [b["seconds"] / a["seconds"] for a, b in pairs]
    return (f"| {method} | {who} | {len(pairs)} | {scores} | {seconds[1] / seconds[0]:.2f} ({min(each):.2f} to "
            f"{max(each):.2f}) | {memory[0] / memory[1]:.2f} ({memory[0] / whole:.2f}) |")  # fmt: skip


def table(rows: list[dict]) -> None:
    """Two Markdown tables a setting: each side's figures, and nearfar against each of the others, paired by seed."""
    settings = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        key = tuple(row[k] for k in ("data", "epochs", "batch", "threads", "workers_asked"))
        settings[key][row["method"], row["who"]][row["seed"]] = row
    heads = " | ".join(SCORES.values())
    for key, runs in settings.items():
        names = sorted(runs, key=lambda name: (METHODS.index(name[0]), WHO.index(name[1])))
        print("{}, {:g} epochs, batch {}, {} threads, lightly with {} workers\n".format(*key))
        print(f"| method | who | seeds | {heads} | seconds | views/s | memory, MB (before) | workers, MB (own) |\n"
              f"|---|---|{'---:|' * 8}")  # fmt: skip
        print("\n".join(side(*name, list(runs[name].values())) for name in names))
        print(f"\n| method | nearfar less | pairs | {heads} | times faster (pairs) | memory, share (with workers) |\n"
              f"|---|---|{'---:|' * 6}")  # fmt: skip
        for method, who in names:
            ours, theirs = runs.get((method, WHO[0]), {}), runs[method, who]
            if who != WHO[0] and ours.keys() & theirs.keys():
                print(against(method, who, [(ours[s], theirs[s]) for s in sorted(ours.keys() & theirs.keys())]))
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="an .npz that prepare.py made")
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl, appended to")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:4])
    parser.add_argument("--who", nargs="+", choices=WHO, default=WHO[:2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="of lightly's loader")
    parser.add_argument("--table", action="store_true", help="print what is in --out; nothing is run")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "WHO", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        method, who, seed = given.one
        print(json.dumps(one(given, method, who, int(seed))))
    elif given.table:
        table(lines(given.out))
    else:
        sys.exit(run_all(given) > 0)


if __name__ == "__main__":
    main()
