"""Does every method learn? The same images, encoder and number of image-views for all, and several seeds.

    python benchmarks/prepare.py cifar10 "$NEARFAR_DATA" cifar10.npz --train 10000 --test 10000
    python benchmarks/methods.py cifar10.npz --views 200000 --seeds 0 1 2 --jobs 2 --out methods.jsonl
    python benchmarks/methods.py digits --views 100000 --seeds 0 1 2 --jobs 2 --out methods.jsonl
    python benchmarks/methods.py cifar10.npz --speed --out speed.jsonl
    python benchmarks/methods.py --table methods.jsonl --speed-from speed.jsonl

Each run is a process of its own with the method's own `small` preset. An image-view is one augmented view that goes
through the encoder; a small crop counts by its area (half the side: a quarter). Methods that take one view of an
image therefore take twice the steps of those that take two. Beside them stand raw pixels, the untrained encoder of each
seed (its BatchNorm measured on training images) and `supervised`, plain cross-entropy. Features are those after the
last step. The judge is nearfar's: kNN, linear probe (C from a split of the training part), probes on 1 and 10 labels a
class, on test images that chose nothing. `--jobs 2` runs two at once with a thread each; `--speed` runs each method
alone with all threads for a few steps, for images a second and peak memory. Runs that are in the file already are
passed over.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from nearfar import build, methods
from nearfar import recipe as recipes
from nearfar.data import open_source
from nearfar.evaluate import evaluate
from nearfar.learning import Hooks, fresh, learn
from nearfar.training.loop import LOG_EVERY

COLUMNS = ("1 label linear", "10 labels linear", "kNN", "linear")
SIGNS = ("loss", "positive", "negative", "spread", "effective_rank")
BASELINES = ("raw-pixels", "untrained")
# iBOT wants a vision transformer, the others share an encoder
OURS = [name for name in methods.names("image") if "encoder" not in methods.module(name).PRESETS["small"]]
BATCH = {"digits": 128}


def opened(data: str):
    recipe = recipes.of("simclr", source=data)
    return build.split(open_source(data), recipe)


def resolved(name: str, data: str, train, seed: int, views: int, width: int):
    """The method's small preset with as many steps as the views allow, and views an image."""
    recipe = recipes.of(name, source=data, seed=seed, steps=1, width=width)
    recipe = recipe.changed(batch=min(recipe.batch, BATCH.get(data, recipe.batch)))
    recipe = build.resolve(recipe, train)
    method = fresh(train, recipe)
    made = build.image_views(recipe, build.Input(tuple(train.shape), 0.0, 1.0), method.views,
                             small=getattr(method, "small_views", False))  # fmt: skip
    pixels = train.shape[0] * train.shape[1]
    each = sum(h * w / pixels for h, w in made.sizes)
    steps = round(views / (each * recipe.batch))
    return recipe.changed(steps=steps), each


def quality(name: str, data: str, seed: int, views: int, width: int) -> dict:
    """One run, judged."""
    train, test = opened(data)
    row = {"data": Path(data).stem, "method": name, "seed": seed, "views": views}
    if name == "raw-pixels":
        flat = [p.read(np.arange(len(p))).reshape(len(p), -1).astype(np.float32) / 255 for p in (train, test)]
        return row | judged(flat, train, test, seed)
    recipe, each = resolved("simclr" if name == "untrained" else name, data, train, seed, views, width)
    given = build.Input(tuple(train.shape), float(train.low), float(train.high))
    method, rows, said = fresh(train, recipe), [], []
    if name == "untrained":
        build.calibrate(method, train, given)
    else:
        learnt = learn(train, recipe, method, Hooks(rows.append, False, tell=lambda f: said.append(f.text)))
        row |= {"steps": recipe.steps, "each": each, "seconds": round(learnt.clock.total, 1),
                "settings": recipe.settings, "optim": vars(recipe.optim), "policy": recipe.policy,
                "precision": recipe.precision, "findings": said,
                "signs": {k: rows[-1].get(k) for k in SIGNS}}  # fmt: skip
    features = [build.embed(method, p, given) for p in (train, test)]
    return row | judged(features, train, test, seed)


def judged(features: list[np.ndarray], train, test, seed: int) -> dict:
    got = evaluate({"x": tuple(features)}, train.labels, test.labels, labels_per_class=(1, 10), seed=seed)["x"]
    draws = {c: got[c].detail["draws"] for c in COLUMNS if "draws" in got[c].detail}
    return {c: [got[c].value, got[c].low, got[c].high] for c in COLUMNS} | {"draws": draws}


def speed(name: str, data: str, steps: int = 40) -> dict:
    """Images a second (median over logged steps after the first ten) and the process's peak memory."""
    train, _ = opened(data)
    recipe, each = resolved(name, data, train, 0, 1, 0)
    recipe, rows = recipe.changed(steps=steps), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    learn(train, recipe, fresh(train, recipe), Hooks(rows.append, False))
    late = [r for r in rows if r["step"] >= LOG_EVERY]
    rates = [(b["step"] - a["step"]) * recipe.batch / (b["time"] - a["time"]) for a, b in itertools.pairwise(late)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"data": Path(data).stem, "method": name, "images_per_second": statistics.median(rates), "each": each,
            "peak_mb": round(peak), "before_mb": round(before),
            "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip


def half(values: list[float]) -> float:
    """Half of Student's 95 % interval over seeds."""
    n = len(values)
    return float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else float("nan")


def cell(runs: list[dict], column: str) -> tuple[float, float]:
    """Mean, and half an interval: the wider of Student's over seeds and the mean of the single runs' own."""
    values = [r[column][0] for r in runs]
    own = float(np.mean([(r[column][2] - r[column][1]) / 2 for r in runs]))
    return float(np.mean(values)), max(own, half(values)) if len(values) > 2 else own


def beats(runs: list[dict], base: list[dict], column: str) -> bool:
    """Is it above the baseline beyond the interval?

    Draws of few labels are the same for all embeddings of a seed, so they are held against each other pair by pair
    where they are known; else the means are, with both half-intervals in quadrature.
    """
    known = {r["seed"]: r["draws"][column] for r in base if column in r.get("draws", {})}
    mine = [(r["draws"][column], known[r["seed"]]) for r in runs if column in r.get("draws", {}) and r["seed"] in known]
    if mine:
        more = [a - b for ours, theirs in mine for a, b in zip(ours, theirs)]
        return float(np.mean(more)) > half(more)
    (a, da), (b, db) = cell(runs, column), cell(base, column)
    return a - b > (da**2 + db**2) ** 0.5


def table(path: Path, speed_path: Path | None) -> None:
    """Markdown, best linear probe first; † marks a number that is not above the untrained encoder's, ‡ raw pixels'."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    fast = {(r["data"], r["method"]): r for r in map(json.loads, speed_path.read_text().splitlines())} \
        if speed_path else {}  # fmt: skip
    for data in dict.fromkeys(r["data"] for r in rows):
        of: dict[str, list[dict]] = {}
        for r in rows:
            if r["data"] == data:
                of.setdefault(r["method"], []).append(r)
        print(f"\n{data}\n\n| method | seeds | steps | {' | '.join(COLUMNS)} | images/s | peak MB |")
        print(f"|---|---:|---:|{'---:|' * len(COLUMNS)}---:|---:|")
        for name in sorted(of, key=lambda m: -cell(of[m], "linear")[0]):
            runs, cells = of[name], []
            for column in COLUMNS:
                bases = () if name in BASELINES else (("†", "untrained"), ("‡", "raw-pixels"))
                mark = "".join(s for s, base in bases if base in of and not beats(runs, of[base], column))
                mean, wide = cell(runs, column)
                cells.append(f"{mean:.3f} ±{wide:.3f}{mark}")
            f = fast.get((data, name))
            rate, peak = (f"{f['images_per_second']:,.0f}", f"{f['peak_mb']:,}") if f else ("", "")
            print(f"| {name} | {len(runs)} | {runs[0].get('steps', '')} | {' | '.join(cells)} | {rate} | {peak} |")
        found = [(r["method"], r["seed"], f) for r in rows if r["data"] == data for f in r.get("findings", ())]
        print("\n" + ("\n".join(f"- {m}, seed {s}: {f}" for m, s, f in found) or "The doctor found nothing."))


def child(words: list[str], threads: int) -> dict | None:
    """Run one in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words, "--threads", str(threads), "--one"],
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        print(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", help="an .npz of benchmarks/prepare.py, or digits")
    parser.add_argument("--methods", nargs="+", default=[*BASELINES, *OURS])
    parser.add_argument("--views", type=int, default=200_000, help="image-views a run")
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--speed-from", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        return table(given.table, given.speed_from)
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.one:
        name, seed = given.methods[0], given.seeds[0]
        row = speed(name, given.data) if given.speed else quality(name, given.data, seed, given.views, given.width)
        return print(json.dumps(row))
    key = lambda r: (r["data"], r["method"], r.get("seed", 0))  # noqa: E731
    done = {key(json.loads(line)) for line in given.out.read_text().splitlines()} if given.out.exists() else set()
    seeds = [0] if given.speed else given.seeds
    wanted = [(m, s) for s in seeds for m in given.methods if not (given.speed and m in BASELINES)]
    wanted = [(m, s) for m, s in wanted if (Path(given.data).stem, m, s) not in done]
    cores = torch.get_num_threads()

    def one(what: tuple[str, int]) -> None:
        words = [given.data, "--methods", what[0], "--seeds", str(what[1]), "--views", str(given.views)]
        words += ["--width", str(given.width)] + ["--speed"] * given.speed
        row = child(words, max(1, cores // given.jobs))
        if row is not None:
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            said = {k: round(row[k][0], 3) for k in COLUMNS if k in row} or {k: row[k] for k in ("images_per_second",)}
            print(what, said, row.get("findings", ""), flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(one, wanted))


if __name__ == "__main__":
    main()
