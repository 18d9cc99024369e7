"""Does the doctor name what is wrong? Five runs broken on purpose, and every method as it should be.

    python benchmarks/prepare.py cifar10 "$NEARFAR_DATA" cifar10.npz --train 10000 --test 3000
    python benchmarks/doctor.py cifar10.npz --out doctor.jsonl
    python benchmarks/doctor.py --table doctor.jsonl

Each run is `--steps` steps of its method's recipe `small` with a CNN of `--width`. A line is added to the file for
each run; runs that are in it already are passed over. The table says, for each, at which step what was found.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from nearfar import build, methods
from nearfar import recipe as recipes
from nearfar.data import open_source
from nearfar.learning import Hooks, fresh, learn

# what is broken: (method, settings, factor of the learning rate, one picture only, what the doctor is to find)
BROKEN = {
    "SimSiam without stop-gradient": ("simsiam", {"stop_gradient": False}, 1, False, {"collapse", "few_directions"}),
    "SimCLR at temperature 0.0001": ("simclr", {"temperature": 1e-4}, 1, False, {"temperature"}),
    "SimCLR at 100 times its learning rate": ("simclr", {}, 100, False, {"learning_rate", "not_finite"}),
    "DINO without centring": ("dino", {"centring": False}, 1, False, {"one_prototype"}),
    "SimCLR on one picture, many times": ("simclr", {}, 1, True, {"equal_images"}),
}


def cases() -> dict[str, tuple]:
    ours = [name for name in methods.names("image") if "encoder" not in methods.module(name).PRESETS["small"]]
    return BROKEN | {f"{name}, healthy": (name, {}, 1, False, set()) for name in ours}


def run(data: Path, case: str, *, steps: int, width: int, batch: int, seed: int = 0) -> dict:
    """Train one case; what was found, beside what should have been."""
    method, settings, factor, equal, expected = cases()[case]
    splits = open_source(data)
    train, test = splits.train, splits.test
    if equal:
        train, test = open_source(np.repeat(train.read(np.arange(1)), len(train), axis=0)).train, None
    recipe = recipes.of(method, source=str(data.name), steps=steps, width=width, batch=batch, seed=seed)
    optim = dataclasses.replace(recipe.optim, lr=recipe.optim.lr * factor)
    recipe = build.resolve(recipe.changed(settings=recipe.settings | settings, optim=optim), train)
    found, rows, ended = [], [], ""
    try:
        learn(train, recipe, fresh(train, recipe), Hooks(show=False, log=rows.append, tell=found.append),
              held_out=test)
    except ValueError as error:  # the loss stopped being finite
        ended = str(error)
    knn = [row["knn_online"] for row in rows if "knn_online" in row]
    return {"case": case, "steps": steps, "found": [dataclasses.asdict(f) for f in found], "ended": ended,
            "right": found[0].name in expected if found and expected else not found and not expected,
            "loss": rows[-1]["loss"], "knn": knn[-1] if knn else None}  # fmt: skip


def table(held: list[dict]) -> str:
    lines = ["| run | at step | what the doctor says | right |", "|---|---:|---|---|"]
    for row in sorted(held, key=lambda r: r["case"] not in BROKEN):
        said = [(f["step"], f"{f['seen']}. Likely cause: {f['cause']}. What to do: {f['remedy']}.")
                for f in row["found"]]  # fmt: skip
        at = "<br>".join(str(step) for step, _ in said)
        lines.append(f"| {row['case']} | {at} | {'<br>'.join(text for _, text in said) or 'nothing was found'} | "
                     f"{'yes' if row['right'] else '**no**'} |")  # fmt: skip
    return "\n".join(lines)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("doctor.jsonl"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name contains one of these")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.table:
        print(table(read(given.table)))
        return
    if given.threads:
        torch.set_num_threads(given.threads)
    for case in cases():
        done = {row["case"] for row in read(given.out)}
        if case in done or (given.only and not any(word in case for word in given.only)):
            continue
        row = run(given.data, case, steps=given.steps, width=given.width, batch=given.batch)
        with open(given.out, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{case}: {', '.join(f['name'] for f in row['found']) or 'nothing'}", flush=True)
    print(table(read(given.out)))


if __name__ == "__main__":
    main()
