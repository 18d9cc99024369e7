"""Which label-free measure predicts the probe: many short runs on digits, and rank correlations over them.

    python benchmarks/geometry.py --out geometry.jsonl --picture docs/geometry.png

Every self-supervised method is trained for two budgets (SimCLR at several temperatures and widths); of each features
the label-free measures of results.json stand against the accuracy of the linear probe and of the probe at one label a
class, on test images that chose nothing. A line of JSON a run; what is there is not made again.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

import nearfar
from nearfar import methods
from nearfar.evaluate.predictors import predictive
from nearfar.report.plots import COLOURS

MEASURES = {"effective_rank": "effective rank", "rankme": "RankMe", "lidar": "LiDAR", "alpha_req": "α-ReQ",
            "alignment": "alignment", "uniformity": "uniformity"}  # fmt: skip
TARGETS = {"linear": "linear probe", "1 label linear": "probe, 1 label"}


def wanted() -> list[dict]:
    """The runs: every method without labels at two budgets, SimCLR at other temperatures and widths."""
    known = [m for m in methods.names("image") if not methods.module(m).SUPERVISED]
    runs = [{"method": m, "steps": steps} for steps in (40, 200) for m in known]
    runs += [{"method": "simclr", "steps": 200, "temperature": t} for t in (0.02, 0.5, 2.0)]
    return runs + [{"method": "simclr", "steps": 200, "width": w} for w in (4, 8, 64)]


def made(asked: dict) -> dict:
    """Train one, judge it, and keep what is correlated."""
    changes = dict(asked)
    if "temperature" in changes:
        changes["settings"] = {"temperature": changes.pop("temperature")}
    with tempfile.TemporaryDirectory() as folder:
        run = nearfar.train("digits", out=Path(folder) / "run", batch=128, show=False, **changes, evaluate=False)
        run.evaluate(draws=5, labels_per_class=(1,))
        held = json.loads((run.folder / "results.json").read_text())
    cells = next(r["cells"] for r in held["evaluation"]["rows"] if r["embedding"] == "nearfar")
    return asked | {"geometry": held["geometry"]["nearfar"], "scores": {t: cells[t]["value"] for t in TARGETS}}


def drawn(rows: list[dict], path: Path) -> None:
    """A scatter of each measure against the linear probe, a colour a budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for axis, (key, name) in zip(figure.subplots(2, 3).ravel(), MEASURES.items()):
        for i, steps in enumerate(sorted({r["steps"] for r in rows})):
            part = [r for r in rows if r["steps"] == steps]
            axis.scatter([r["geometry"][key] for r in part], [r["scores"]["linear"] for r in part], s=18,
                         color=COLOURS[i], label=f"{steps} steps")  # fmt: skip
        axis.set_xlabel(name)
        axis.set_ylabel("linear probe")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("geometry.jsonl"))
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.is_file() else []
    done = [{k: v for k, v in r.items() if k not in ("geometry", "scores")} for r in rows]
    for asked in wanted():
        if asked in done:
            continue
        try:
            rows.append(made(asked))
        except nearfar.UserError as error:
            print(f"{asked}: {error}", flush=True)
            continue
        with open(given.out, "a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(asked, rows[-1]["scores"], flush=True)
    print(f"| measure | {' | '.join(TARGETS.values())} |\n|---|{'---:|' * len(TARGETS)}")
    held = {key: np.array([r["geometry"][key] for r in rows]) for key in MEASURES}
    tables = [predictive(held, np.array([r["scores"][t] for r in rows])) for t in TARGETS]
    for key, name in MEASURES.items():
        cells = (f"{t[key].value:+.2f} ({t[key].low:+.2f} to {t[key].high:+.2f})" for t in tables)
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"{len(rows)} runs")
    if given.picture:
        drawn(rows, given.picture)


if __name__ == "__main__":
    main()
