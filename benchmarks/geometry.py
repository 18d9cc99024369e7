"""Which label-free measure predicts the probe? Many short runs of every self-supervised method, and the correlations.

    python benchmarks/geometry.py --out geometry.jsonl
    python benchmarks/geometry.py --table geometry.jsonl --picture geometry.svg

Each is a run of `nearfar train digits` by its method's recipe `small` with a CNN of `--width`: for `--few` and for
`--many` steps, and those with a temperature also at half and at double of it, for `--few`. A line is added to the file
for each run; runs that are in it already are passed over.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch

import nearfar
from nearfar import methods
from nearfar import recipe as recipes
from nearfar.predictors import Measured, measured, of_runs, picture, table


def cases(few: int, many: int) -> list[dict]:
    """What is trained, in an order that mixes methods, so that a part of them is a fair sample."""
    out = []
    for method in methods.names():
        module = methods.module(method)
        if module.SUPERVISED or "encoder" in module.PRESETS["small"]:
            continue
        base = recipes.of(method).settings
        out += [{"method": method, "steps": steps, "settings": {}} for steps in (few, many)]
        warm = base.get("temperature", getattr(module.Config(), "temperature", None))
        out += [{"method": method, "steps": few, "settings": {"temperature": warm * by}}
                for by in (0.5, 2.0) if warm is not None]  # fmt: skip
    random.Random(0).shuffle(out)
    return out


def run(case: dict, width: int, batch: int) -> dict:
    """Train and judge one case; what is kept of its results."""
    base = recipes.of(case["method"], width=width, batch=batch)
    base = base.changed(settings=base.settings | case["settings"])
    with tempfile.TemporaryDirectory() as folder:
        trained = nearfar.train("digits", recipe=base, steps=case["steps"], out=Path(folder) / "run", evaluate=False,
                                show=False)  # fmt: skip
        trained.evaluate(draws=3, labels_per_class=(1, 10))
        found = measured(trained.folder)
    return {"case": case, "split": found.split, "measures": found.measures, "accuracies": found.accuracies}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("geometry.jsonl"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--few", type=int, default=60)
    parser.add_argument("--many", type=int, default=240)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for case in [] if given.table else cases(given.few, given.many):
        if case in [row["case"] for row in read(given.out)]:
            continue
        row = run(case, given.width, given.batch)
        with open(given.out, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(case, row["accuracies"], flush=True)
    held = read(given.table or given.out)
    runs = [Measured(str(r["case"]), r["split"], r["measures"], r["accuracies"]) for r in held]
    found = of_runs(runs)
    print(f"{len(runs)} runs\n\n{table(found)}")
    if given.picture:
        picture(given.picture, runs, found)


if __name__ == "__main__":
    main()
