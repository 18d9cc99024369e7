"""What embeddings of text are worth: objectives, encoders and budgets on the same text, judged on sets of other text.

    python benchmarks/text.py study --data "$NEARFAR_DATA" --seeds 0 1 2 --jobs 2 --out study.jsonl
    python benchmarks/text.py labels --data "$NEARFAR_DATA" --seeds 0 1 2 --jobs 2 --out labels.jsonl
    python benchmarks/text.py budget --data "$NEARFAR_DATA" --seeds 0 1 2 --out budget.jsonl --svg docs/text_budget.png
    python benchmarks/text.py scored --data "$NEARFAR_DATA" --seeds 0 1 2 --jobs 2 --out scored.jsonl
    python benchmarks/text.py --table study.jsonl

Training text, without labels: 14,750 sentences of Wikipedia and 23,000 of the addresses in text/sentences, sentence by
sentence. Judged on what no choice has seen: Spearman on STS-B's test pairs (the SentEval "all" protocol of one subset),
a linear probe on Banking77, CLINC150, polarity and subjectivity (their test part, or a fifth held out by a fixed seed),
and retrieval among Banking77's test questions (recall@1, MAP@R). What was chosen, rates and noise, was chosen on
STS-B's dev part. Each run is a process with one thread; features are those after the last step. TF-IDF is fitted on the
judged set's training part for probes (and on the training text for STS and retrieval), word vectors on the training
text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.stats import t

SETS = {"banking77": ("banking77", {}), "clinc150": ("clinc150/data_full.json", {}),
        "polarity": ("sentence_polarity.zip", {"label": "file", "encoding": "latin-1"}),
        "subjectivity": ("subjectivity.zip", {"label": "file", "encoding": "latin-1"})}  # fmt: skip
GROUND = [("sentences/wikipedia_14750.txt", {}),
          ("sentences/inaugural.zip", {"unit": "sentence", "encoding": "latin-1"}),
          ("sentences/state_union.zip", {"unit": "sentence", "encoding": "latin-1"})]  # fmt: skip
COLUMNS = ("STS-B", "recall@1", "MAP@R", *SETS, *(f"{name} F1" for name in SETS))
TRANSFORMER = {"encoder": "transformer", "width": 128, "text": {"layers": 2}}
# objective -> what differs from the same encoder, text and number of sentences
STUDY = {
    "untrained": {"steps": 0},
    "contrast: SimCSE": {"method": "simcse"},
    "contrast: neighbours": {"method": "quick-thoughts"},
    "contrast and masked words": {"method": "simcse", "settings": {"mlm": 0.1, "head": 0, "temperature": 0.1}},
    "cross-entropy: masked words": {"method": "masked-lm"},
    "cross-entropy: next word": {"method": "next-token"},
    "cross-entropy: TSDAE": {"method": "tsdae"},
}
BUDGETS = (0, 1, 3, 10, 30)


def lines(data: Path) -> list[str]:
    """The training text: a sentence a line, a blank line between documents."""
    from nearfar.text import TextOptions, open_texts

    out = []
    for name, options in GROUND:
        texts = open_texts(data / "text" / name, TextOptions(**options)).train
        ends = np.flatnonzero(np.diff(texts.documents)) + 1
        for i in range(len(texts)):
            out += [""] * (i in set(ends.tolist()) or i == 0) + [texts.text(i)]
    return out


def trained(source: str, plan: dict, seed: int, folder: str):
    """The run of a plan; with no steps the untrained encoder."""
    import torch

    import nearfar
    from nearfar.text import TextOptions
    from nearfar.training.optim import Optim

    torch.set_num_threads(1)
    plan = {"method": "simcse", "batch": 256} | plan
    idle = plan.get("steps") == 0
    if idle:
        plan |= {"steps": 1, "epochs": 0, "optim": {"lr": 1e-12}}
    plan |= {"text": TextOptions(**plan.get("text", {})), "seed": seed, "evaluate": False, "show": False}
    if "optim" in plan:
        plan["optim"] = Optim(**plan["optim"])
    return nearfar.train(source, out=folder, **plan)


def judged(embed, data: Path, brief: bool, fit=None) -> dict:
    """All columns of what turns texts into vectors, or STS; ``fit(texts)`` gives one fitted on them, of probes."""
    from nearfar.evaluate import linear_probe, retrieval
    from nearfar.evaluate.sentences import sts
    from nearfar.text import TextOptions, open_texts

    pairs = open_texts(data / "text" / "stsb" / "test.csv").train
    found = sts(embed(list(pairs.column(0))), embed(list(pairs.column(1))), pairs.scores)["Spearman"]
    row = {"STS-B": [found.value, found.low, found.high]}
    for name, (path, options) in () if brief else SETS.items():
        splits = open_texts(data / "text" / path, TextOptions(**options), say=lambda text: None)
        train, test = splits.train, splits.test
        if test is None:
            order = np.random.default_rng(0).permutation(len(train))
            train, test = (train.subset(np.sort(part)) for part in (order[len(order) // 5 :], order[: len(order) // 5]))
        texts = [list(part.column()) for part in (train, test)]
        fitted = fit(texts[0]) if fit else embed
        a, b = (fitted(part) for part in texts)
        probe = linear_probe(a, train.labels, b, test.labels, list(train.classes), seed=0)
        row[name] = [probe.result.value, probe.result.low, probe.result.high]
        row[f"{name} F1"] = [probe.metrics["macro"]["f1"]] * 3
        row[f"{name} precision, recall"] = [probe.metrics["macro"][k] for k in ("precision", "recall")]
        if name == "banking77":
            got = retrieval(embed(texts[1]), test.labels, ks=(1,), seed=0)
            row |= {k: [got[k].value, got[k].low, got[k].high] for k in ("recall@1", "MAP@R")}
    return row


def child(what: str, data: Path, source: str) -> dict:
    """One row, in a process of its own."""
    job = json.loads(what)
    began = time.perf_counter()
    if job["name"] in ("TF-IDF", "averaged word vectors", "SIF word vectors"):
        from nearfar import lexical
        from nearfar.text import open_texts

        ground = open_texts(job.get("source") or source).train
        texts = list(ground.every())
        if job["name"] == "TF-IDF":
            return job | judged(lexical.tf_idf(texts), data, job["brief"], lexical.tf_idf)
        words = lexical.word_vectors(texts)
        return job | judged(words.averaged if "averaged" in job["name"] else words.sif, data, job["brief"])
    with tempfile.TemporaryDirectory() as folder:
        plan = dict(job["plan"])
        if first := plan.pop("first", None):
            trained(source, first, job["seed"], f"{folder}/first")
            plan["init"] = f"{folder}/first"
        run = trained(job.get("source") or source, plan, job["seed"], f"{folder}/run")
        seconds = time.perf_counter() - began
        job |= {"seconds": round(seconds, 1), "texts": run.about["step"] * run.recipe.batch}
        return job | judged(run.embed, data, job["brief"])


def jobs(args) -> list[dict]:
    held = [{"name": name, "plan": {}, "seed": 0} for name in ("TF-IDF", "averaged word vectors", "SIF word vectors")]
    plans = {}
    if args.what == "study":
        plans = {name: TRANSFORMER | {"epochs": args.epochs} | plan for name, plan in STUDY.items()}
        plans |= {f"bag, {name}": {"encoder": "bag", "epochs": args.epochs} | STUDY[name]
                  for name in ("untrained", "contrast: SimCSE", "contrast: neighbours")}  # fmt: skip
        plans |= {f"gru, {name}": {"encoder": "gru", "width": 128, "epochs": args.epochs} | STUDY[name]
                  for name in ("untrained", "contrast: SimCSE")}  # fmt: skip
    if args.what == "budget":
        budgets = {n: {"epochs": float(n)} if n else {"steps": 0} for n in BUDGETS}
        plans = {f"bag, {n} epochs": {"encoder": "bag"} | budget for n, budget in budgets.items()}
    if args.what == "labels":
        source = str(Path(args.data) / "text" / "banking77")
        plans = {"labels, untrained": {"encoder": "bag", "steps": 0}}
        plans |= {f"labels, {name}": {"encoder": "bag", "epochs": 30.0, "method": method}
                  for name, method in (("contrast: SupCon", "supcon"), ("cross-entropy", "supervised"))}  # fmt: skip
    if args.what == "scored":
        source = str(Path(args.data) / "text" / "stsb" / "train.csv")
        base, first = {"encoder": "bag", "batch": 64}, {"encoder": "bag", "epochs": 10.0}
        plans = {"cosent alone": base | {"epochs": 10.0, "method": "cosent"}}
        plans |= {f"SimCSE, then {name}": base | {"epochs": 5.0, "method": name, "first": first}
                  for name in ("cosent", "angle", "logistic")}  # fmt: skip
    if args.what in ("labels", "scored"):
        held = held if args.what == "scored" else []
        return held + [{"name": n, "plan": p, "seed": s, "source": source} for n, p in plans.items()
                       for s in args.seeds]  # fmt: skip
    return held + [{"name": n, "plan": p, "seed": s} for n, p in plans.items() for s in args.seeds]


def table(path: Path) -> None:
    rows: dict[str, list[dict]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["name"], []).append(row)
    columns = [c for c in COLUMNS if all(c in r for runs in rows.values() for r in runs)]
    print(f"| embedding | {' | '.join(columns)} | seconds |\n|---|{'---:|' * (len(columns) + 1)}")
    for name, runs in rows.items():
        cells = []
        for column in columns:
            values = [r[column][0] for r in runs]
            half = float(np.mean([(r[column][2] - r[column][1]) / 2 for r in runs]))
            if len(values) > 2:
                half = max(half, float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5))
            cells.append(f"{np.mean(values):.3f} ±{half:.3f}" if half else f"{np.mean(values):.3f}")
        print(f"| {name} ({len(runs)}) | {' | '.join(cells)} | {np.median([r.get('seconds', 0) for r in runs]):.0f} |")


def curve(path: Path, out: str) -> None:
    """Spearman on STS-B over the budget, with what needs none as lines."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    figure = Figure(figsize=(6, 3.6))
    axes = figure.add_subplot()
    points: dict[float, list[float]] = {}
    for row in rows:
        if row["name"].startswith("bag"):
            points.setdefault(float(row["plan"].get("epochs", 0)), []).append(row["STS-B"][0])
    x = sorted(points)
    axes.errorbar(x, [np.mean(points[e]) for e in x], [np.ptp(points[e]) / 2 for e in x], marker="o",
                  label="bag, SimCSE")  # fmt: skip
    for row, colour in zip((r for r in rows if not r["name"].startswith("bag")), ("#E69F00", "#009E73", "#CC79A7")):
        axes.axhline(row["STS-B"][0], ls="--", label=row["name"], color=colour)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="passes over 38,000 sentences (0: untrained)", ylabel="Spearman's ρ, STS-B test", xticks=x,
             xticklabels=[f"{e:g}" for e in x])  # fmt: skip
    axes.set_xlim(-0.2, 1.3 * max(x))
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=("study", "labels", "budget", "scored"))
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--svg")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--child")
    parser.add_argument("--source")
    args = parser.parse_args()
    if args.table:
        return table(args.table)
    if args.child:
        print(json.dumps(child(args.child, Path(args.data), args.source)))
        return None
    args.out.touch()
    done = {(r["name"], r["seed"]) for r in map(json.loads, args.out.read_text().splitlines())}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "sentences.txt"
        source.write_text("\n".join(lines(Path(args.data))))

        def one(job: dict) -> None:
            job = job | {"brief": args.what in ("budget", "scored")}
            command = [sys.executable, __file__, "--child", json.dumps(job), "--data", args.data,
                       "--source", str(source)]  # fmt: skip
            got = subprocess.run(command, capture_output=True, text=True)
            if got.returncode:
                print(job["name"], got.stderr[-800:], file=sys.stderr)
                return
            with open(args.out, "a") as file:
                file.write(got.stdout.strip().splitlines()[-1] + "\n")
            print(job["name"], job["seed"], file=sys.stderr)

        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(one, [j for j in jobs(args) if (j["name"], j["seed"]) not in done]))
    table(args.out)
    if args.svg:
        curve(args.out, args.svg)
    return None


if __name__ == "__main__":
    main()
