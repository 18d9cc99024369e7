"""Which label-free measure of the features predicts the probes: rank correlations over runs, with intervals."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from nearfar.errors import UserError
from nearfar.evaluate import intervals
from nearfar.training.checkpoint import write_bytes

MEASURES = {  # of results.json["geometry"]: what the table says, and whether its authors hold more to be better
    "effective_rank": ("effective rank", "+"), "rankme": ("RankMe", "+"), "lidar": ("LiDAR", "+"),
    "alpha_req": ("α-ReQ, as |α − 1|", "−"), "alignment": ("alignment", "−"), "uniformity": ("uniformity", "−"),
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
    runs: int
    spearman: float
    spearman_low: float
    spearman_high: float
    kendall: float
    kendall_low: float
    kendall_high: float


def measured(path: Path) -> Measured:
    """Read a run's ``results.json``; a line that says what to run where something is missing."""
    if not path.exists():
        raise UserError(f"{path}: no such run")
    try:
        held = json.loads((path / "results.json").read_text(encoding="utf-8"))
        protocol = held["evaluation"]["protocol"]
        cells = next(row["cells"] for row in held["evaluation"]["rows"] if row["embedding"] == "nearfar")
        measures = {f"{space} {key}": held["geometry"][name][key] for name, space in SPACES.items() for key in MEASURES}
        accuracies = {probe: float(cells[probe]["value"]) for probe in TARGETS if probe in cells}
        split = protocol["split hash"] + protocol.get("items hash", "")
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise UserError(f"{path} has no label-free measures beside probes: run nearfar evaluate {path} with labelled "
                        "images") from None  # fmt: skip
    for space in SPACES.values():
        key = f"{space} alpha_req"
        measures[key] = None if measures[key] is None else abs(measures[key] - 1)
    return Measured(str(path), split, measures, accuracies)


def predictors(paths: Sequence[str | Path], *, seed: int = 0) -> list[Correlation]:
    """Correlate over runs, five or more, all judged on the same items; else ``UserError``.

    Spearman's ρ and Kendall's τ-b of each label-free measure, on features and on projections, with the accuracy of
    linear probes on the features. The 95 % intervals are of the percentile bootstrap over runs.
    """
    if len({Path(p).resolve() for p in paths}) < len(paths):
        raise UserError("a run is given twice: give each once")
    _enough(len(paths))
    return of_runs([measured(Path(p)) for p in paths], seed=seed)


def of_runs(runs: Sequence[Measured], *, seed: int = 0) -> list[Correlation]:
    """As :func:`predictors`, of what was read. A measure that some runs lack is judged over the others."""
    _enough(len(runs))
    for run in runs[1:]:
        if run.split != runs[0].split:
            raise UserError(f"{run.name} and {runs[0].name} were judged on different items: evaluate both on the same "
                            "source, with the same --seed and --holdout")  # fmt: skip
    out = []
    for probe in (p for p in TARGETS if all(p in run.accuracies for run in runs)):
        for key in runs[0].measures:
            space, measure = key.split(" ")
            pairs = [(r.measures[key], r.accuracies[probe]) for r in runs if r.measures[key] is not None]
            if len(pairs) < _LEAST:
                continue
            x, y = np.array(pairs, np.float64).T
            worth = [v for f in (spearman, kendall) for v in _with_interval(f, x, y, seed)]
            out.append(Correlation(space, measure, MEASURES[measure][1], probe, len(pairs), *worth))
    return out


def _enough(n: int) -> None:
    if n < _LEAST:
        raise UserError(f"{n} run{'s' * (n != 1)}: give {_LEAST} or more, a correlation over fewer says nothing")


def _with_interval(f, x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float, float]:  # noqa: ANN001
    """(value, low, high); draws in which all values are alike have no correlation and are left out."""
    low, high = intervals.of_statistic(lambda rows: f(x[rows], y[rows]), len(x), seed, times=1000)
    return f(x, y), low, high


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the ranks, ties sharing theirs; NaN where all of one are alike. (n,), (n,)

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 8.0, 27.0]))
    1.0
    """
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    return _ratio((a * b).sum(), (a * a).sum() * (b * b).sum())


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    r"""Kendall's τ-b: pairs in one order less pairs in the other, ties reckoned with; NaN where all of one are alike.

    .. math:: \frac{\sum_{ij} s^x_{ij} s^y_{ij}}{\sqrt{\sum_{ij} |s^x_{ij}| \sum_{ij} |s^y_{ij}|}},\quad
              s^x_{ij} = \mathrm{sign}(x_i - x_j)

    (n,), (n,)

    >>> kendall(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    -1.0
    """
    a, b = np.sign(x[:, None] - x), np.sign(y[:, None] - y)  # (n, n)
    return _ratio((a * b).sum(), np.abs(a).sum() * np.abs(b).sum())


def _ratio(top: float, squared: float) -> float:
    return float(top / np.sqrt(squared)) if squared > 0 else float("nan")


def table(found: Sequence[Correlation]) -> str:
    """Spearman's ρ and its interval as Markdown: a row a measure and space, a column a probe."""
    probes = [p for p in TARGETS if any(c.probe == p for c in found)]
    lines = ["| measure | of | claimed | " + " | ".join(probes) + " |", "|---|---|:---:|" + "---:|" * len(probes)]
    for space in SPACES.values():
        for measure, (title, claimed) in MEASURES.items():
            held = {c.probe: c for c in found if (c.space, c.measure) == (space, measure)}
            if held:
                cells = [cell(held[p]) for p in probes]
                lines.append(f"| {title} | {space} | {claimed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(c: Correlation) -> str:
    """ρ with its interval; without, where all runs are alike."""
    if not np.isfinite(c.spearman):
        return "–"
    return f"{c.spearman:+.2f} [{c.spearman_low:+.2f}, {c.spearman_high:+.2f}]".replace("-", "−")


def write(path: Path, runs: Sequence[Measured], found: Sequence[Correlation]) -> None:
    """JSON of the runs and of all correlations, with what they are of; null where there is none."""
    plain = [{k: None if v != v else v for k, v in asdict(c).items()} for c in found]
    protocol = {"intervals": "95 %, percentile bootstrap over runs, 1000 draws", "probes": "on features",
                "alpha_req": "|alpha - 1|"}  # fmt: skip
    held = {"protocol": protocol, "runs": [asdict(r) for r in runs], "correlations": plain}
    write_bytes(path, json.dumps(held, indent=1))


def picture(path: Path, runs: Sequence[Measured], found: Sequence[Correlation]) -> None:
    """Each measure against the linear probe, a dot a run, features above and projections below; .svg or .png."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if path.suffix not in (".svg", ".png"):
        raise UserError(f"{path}: give the picture a name that ends in .svg or .png")
    rho = {f"{c.space} {c.measure}": cell(c) for c in found if c.probe == "linear"}
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
        figure.savefig(held, format=path.suffix[1:], dpi=140, metadata={"Date": None} if path.suffix == ".svg" else {})
    write_bytes(path, held.getvalue())
