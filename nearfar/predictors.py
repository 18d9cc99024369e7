"""Which label-free measure of the features predicts the probes: rank correlations over runs, with intervals."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nearfar.data import limits
from nearfar.errors import UserError
from nearfar.evaluate.predictors import kendall, predictive, spearman
from nearfar.evaluate.records import Result
from nearfar.training.checkpoint import write_bytes

MEASURES = {  # of results.json["geometry"]: what the table says, and whether its authors hold more to be better
    "effective_rank": ("effective rank", "+"), "rankme": ("RankMe", "+"), "lidar": ("LiDAR", "+"),
    "alpha_req": ("|α-ReQ − 1|", "−"), "alignment": ("alignment", "−"), "uniformity": ("uniformity", "−"),
}  # fmt: skip
SPACES = {"nearfar": "features", "projection": "projections"}
TARGETS = ("linear", "1 label linear", "10 labels linear")
_LEAST = 5


@dataclass(frozen=True)
class Measured:
    """What is known of a run: its items, its label-free measures by "SPACE MEASURE", its probes' accuracies."""

    name: str
    split: str
    measures: Mapping[str, float | None]
    accuracies: Mapping[str, float]


@dataclass(frozen=True)
class Correlation:
    """How the runs' order by a measure agrees with their order by a probe, with 95 % intervals over runs."""

    space: str
    measure: str
    claimed: str  # "+" where the measure's authors hold more to be better, "−" where less
    probe: str
    spearman: Result
    kendall: Result


def measured(path: Path) -> Measured:
    """Read a run's ``results.json``; a line that says what to run where something is missing."""
    if not path.exists():
        raise UserError(f"{path}: no such run")
    try:
        held = limits.json_of(path / "results.json")
        protocol = held["evaluation"]["protocol"]
        cells = next(row["cells"] for row in held["evaluation"]["rows"] if row["embedding"] == "nearfar")
        measures = {f"{space} {key}": None if (value := held["geometry"][name][key]) is None else float(value)
                    for name, space in SPACES.items() for key in MEASURES}  # fmt: skip
        accuracies = {probe: float(cells[probe]["value"]) for probe in TARGETS if probe in cells or probe == "linear"}
        split = protocol["split hash"] + protocol.get("items hash", "")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, StopIteration):
        raise UserError(f"{path} has no label-free measures beside probes: run nearfar evaluate {path} with labelled "
                        "images") from None  # fmt: skip
    for space in SPACES.values():
        key = f"{space} alpha_req"
        measures[key] = None if measures[key] is None else abs(measures[key] - 1)
    return Measured(str(path), split, measures, accuracies)


def predictors(paths: Sequence[str | Path], *, out: Sequence[str | Path] = (), seed: int = 0) -> list[Correlation]:
    """Correlate over runs, five or more, all judged on the same items; else ``UserError``.

    Spearman's ρ and Kendall's τ-b of each label-free measure, of features and of projections, with the accuracy of
    linear probes on the features. The 95 % intervals are of the percentile bootstrap over runs.

    ``out``: files to write: .json the numbers, .svg or .png a picture.
    """
    for name in map(Path, out):
        if name.suffix not in (".json", ".svg", ".png"):
            raise UserError(f"{name}: give a name that ends in .json, .svg or .png")
    twice = [str(p) for p in paths if sum(Path(p).resolve() == Path(q).resolve() for q in paths) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given more than once: give each run once")
    _enough(len(paths))
    runs = [measured(Path(p)) for p in paths]
    found = of_runs(runs, seed=seed)
    for name in map(Path, out):
        write(name, runs, found)
    return found


def of_runs(runs: Sequence[Measured], *, seed: int = 0) -> list[Correlation]:
    """As :func:`predictors`, of what was read. A measure that some runs lack is judged over the others."""
    _enough(len(runs))
    for run in runs[1:]:
        if run.split != runs[0].split:
            raise UserError(f"{run.name} and {runs[0].name} were judged on different items: evaluate both on the same "
                            "source, with the same --seed and --holdout")  # fmt: skip
    values = {key: np.array([r.measures[key] for r in runs], np.float64) for key in runs[0].measures}  # None: NaN
    values = {key: v for key, v in values.items() if np.isfinite(v).sum() >= _LEAST}
    out = []
    for probe in (p for p in TARGETS if all(p in run.accuracies for run in runs)):
        scores = np.array([run.accuracies[probe] for run in runs])
        rho, tau = (predictive(values, scores, seed=seed, correlation=f) for f in (spearman, kendall))
        for key in values:
            space, measure = key.split(" ")
            out.append(Correlation(space, measure, MEASURES[measure][1], probe, rho[key], tau[key]))
    return out


def _enough(n: int) -> None:
    if n < _LEAST:
        raise UserError(f"{n} run{'s' * (n != 1)}: give {_LEAST} or more, a correlation over fewer says nothing")


def cell(c: Result) -> str:
    """A correlation with its interval; a dash where all runs are alike."""
    return f"{c.value:+.2f} ({c.low:+.2f} to {c.high:+.2f})".replace("-", "−") if np.isfinite(c.value) else "–"


def write(path: Path, runs: Sequence[Measured], found: Sequence[Correlation]) -> None:
    """Write a .json of runs and correlations, or an .svg or .png of dots, by the name's ending."""
    if path.suffix == ".json":
        protocol = {"intervals": "95 %, percentile bootstrap over runs", "probes": "on the features",
                    "alpha_req": "|alpha - 1|"}  # fmt: skip
        held = {"protocol": protocol, "runs": [asdict(r) for r in runs], "correlations": [asdict(c) for c in found]}
        write_bytes(path, json.dumps(_plain(held), indent=1))
    else:
        write_bytes(path, picture(runs, found, path.suffix[1:]))


def _plain(held: object) -> object:
    """The same without NaN, which JSON has not."""
    if isinstance(held, dict):
        return {key: _plain(value) for key, value in held.items()}
    if isinstance(held, list):
        return [_plain(value) for value in held]
    return None if isinstance(held, float) and not np.isfinite(held) else held


def picture(runs: Sequence[Measured], found: Sequence[Correlation], kind: str = "svg") -> bytes:
    """Each measure against the linear probe, a dot a run, features above and projections below; svg or png."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rho = {f"{c.space} {c.measure}": cell(c.spearman) for c in found if c.probe == "linear"}
    style = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "predictors",
             "axes.titlesize": 8, "axes.titlelocation": "left"}  # fmt: skip
    held = io.BytesIO()
    with mpl.rc_context(style):
        figure = Figure(figsize=(2.2 * len(MEASURES), 4.8), layout="constrained")
        axes = figure.subplots(len(SPACES), len(MEASURES), sharey=True)
        for line, space in zip(axes, SPACES.values()):
            for axis, (measure, (title, _)) in zip(line, MEASURES.items()):
                key = f"{space} {measure}"
                dots = [(r.measures[key], r.accuracies["linear"]) for r in runs if r.measures[key] is not None]
                axis.scatter(*np.array(dots, float).reshape(-1, 2).T, s=14, color="#0072B2", alpha=0.7, lw=0)
                axis.set_title(f"{title}\nρ {rho.get(key, '–')}")
            line[0].set_ylabel(f"linear probe\n(measures of {space})")
        figure.savefig(held, format=kind, dpi=140, metadata={"Date": None} if kind == "svg" else None)
    return held.getvalue()
