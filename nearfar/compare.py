"""Which differences between runs are real: over the test items, the draws of labels and the seeds that all share."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearfar.data import limits, npz
from nearfar.errors import UserError
from nearfar.evaluate import Evaluation, evaluate, multilabel, of_difference_over_seeds, of_paired_draws
from nearfar.training.checkpoint import write_bytes

JUDGES = ("kNN", "linear")


@dataclass(frozen=True)
class Judged:
    """What a run foretold of each test item, and what that is worth."""

    name: str
    split: str
    y: np.ndarray  # (N,), or (N, K) where an item has several labels
    worth: Mapping[str, np.ndarray]  # by judge, (N,): a hit or none, or the item's ranking average precision
    few: Mapping[str, np.ndarray]  # by column of few labels, (draws,): accuracies
    draw_seed: int


@dataclass(frozen=True)
class Difference:
    """What ``name`` is worth less what ``base`` is, with its 95 % interval; real where that leaves out 0.

    By accuracy, or by ranking average precision where an item has several labels.
    """

    judge: str
    name: str
    base: str
    value: float
    low: float
    high: float
    of: str = "accuracy"
    seeds: tuple[int, int] = (1, 1)  # of name, of base
    spread: tuple[float | None, float | None] = (None, None)  # standard deviation over the seeds of each, where several

    @property
    def real(self) -> bool:
        return self.low > 0 or self.high < 0


def write(path: Path, result: Evaluation, y_test: np.ndarray) -> None:
    """Write ``predictions.npz``, whole or not at all: ``y`` and, as EMBEDDING/JUDGE, what was foretold.

    Of items with several labels also, as EMBEDDING/JUDGE/LRAP, each item's ranking average precision.
    """
    side = path.with_name(f".{path.name}.tmp.npz")
    said = {f"{name}/{judge}": j.predictions for name, held in result.judgements.items() for judge, j in held.items()}
    said |= {f"{name}/{judge}/LRAP": j.by_item for name, held in result.judgements.items()
             for judge, j in held.items() if j.by_item is not None}  # fmt: skip
    np.savez_compressed(side, y=y_test, **said)
    side.replace(path)


def files_of(path: Path) -> tuple[Path, Path]:
    """(results, predictions) of a run's folder, or of an embedding file that was judged."""
    if path.is_dir():
        return path / "results.json", path / "predictions.npz"
    return path.with_suffix(".results.json"), path.with_suffix(".predictions.npz")


def read(path: Path) -> Judged:
    """What was foretold on test items; a line that says what to run where nothing was."""
    results, predictions = files_of(path)
    if not path.exists():
        raise UserError(f"{path}: no such run or file")
    try:
        held = limits.json_of(results)["evaluation"]
        split, names = held["protocol"]["split hash"], [row["embedding"] for row in held["rows"]]
        arrays = npz.read(predictions)
        y, several = arrays["y"], arrays["y"].ndim == 2
        worth = {judge: arrays[f"{names[0]}/{judge}/LRAP"] if several else arrays[f"{names[0]}/{judge}"] == y
                 for judge in JUDGES}  # fmt: skip
        cells = held["rows"][0]["cells"].items()
        few = {k: np.array(c["detail"]["draws"], np.float64) for k, c in cells if "draws" in c.get("detail", {})}
        split += held["protocol"].get("items hash", "")
        return Judged(str(path), split, y, worth, few, held["protocol"].get("seed", 0))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise UserError(f"{path} has no predictions to compare: run nearfar evaluate {path} first") from None


def compare(paths: Sequence[str | Path], *, seed: int = 0) -> list[Difference]:
    """Each kind of run against the first, judge by judge.

    A kind is a run, or several seeds of one with commas between them (``"a1,a2"``) or as a pattern (``"runs/a-*"``). On
    all labels: the bootstrap over seeds and test items; at few labels: Student's over the same draws. Raises
    ``UserError`` where they were judged on different items.
    """
    if len(paths) < 2:
        raise UserError(f"{len(paths)} run: give two or more to compare")
    first, *others = ([read(p) for p in seeds_of(given)] for given in paths)
    base, *names = (str(given) for given in paths)
    for run in [*first, *(run for other in others for run in other)]:
        if run.split != first[0].split or not np.array_equal(run.y, first[0].y):
            raise UserError(f"{run.name} and {first[0].name} were judged on different items: "
                            "evaluate both on the same source, with the same --seed and --holdout")  # fmt: skip
    of = "accuracy" if first[0].y.ndim == 1 else "ranking average precision"
    out = []
    for name, other in zip(names, others):
        for judge in JUDGES:
            a, b = (np.stack([run.worth[judge] for run in kind]).astype(np.float64) for kind in (other, first))
            worth = of_difference_over_seeds(a, b, seed)
            out.append(Difference(judge, name, base, *worth, of, (len(a), len(b)), (_spread(a), _spread(b))))
        for column, a, b in _few(other, first):
            worth = of_paired_draws(a, b)
            out.append(Difference(column, name, base, *worth, of, (len(a), len(b)), (_spread(a), _spread(b))))
    return out


def seeds_of(given: str | Path) -> list[Path]:
    """The runs of one kind: a path, several with commas between them, or a pattern with ``*``, ``?`` or ``[``.

    >>> [p.as_posix() for p in seeds_of("runs/a-0,runs/a-1")]
    ['runs/a-0', 'runs/a-1']
    """
    found: list[Path] = []
    for part in [str(given)] if Path(given).exists() else str(given).split(","):
        if not part.strip():
            raise UserError(f"{given}: a run's name is missing between the commas")
        if Path(part).exists() or not glob.has_magic(part):
            found.append(Path(part))
            continue
        matched = sorted(Path(p) for p in glob.glob(part) if not p.endswith((".results.json", ".predictions.npz")))
        if not matched:
            raise UserError(f"{part}: no run or file is named so")
        found += matched
    twice = [p for i, p in enumerate(found) if p in found[:i]]
    if twice:
        raise UserError(f"{given}: {twice[0]} is named twice; seeds of one kind are runs of their own")
    return found


def _few(*kinds: list[Judged]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Columns of few labels that all runs have, at the draws that all have. Yields name, (S, D), (T, D)"""
    runs = [run for kind in kinds for run in kind]
    if len({run.draw_seed for run in runs}) > 1:  # other draws of labels: nothing to pair
        return
    for column in runs[0].few:
        if all(column in run.few for run in runs):
            shared = min(len(run.few[column]) for run in runs)
            if shared > 1:
                a, b = (np.stack([run.few[column][:shared] for run in kind]) for kind in kinds)
                yield column, a, b


def _spread(values: np.ndarray) -> float | None:
    """Standard deviation over seeds of their means, where there are several. (S, n)"""
    return float(values.mean(1).std(ddof=1)) if len(values) > 1 else None


def judge_file(path: Path, *, draws: int = 10, labels: tuple[int | str, ...] = (1, 5, 10), seed: int = 0,
               more: bool = False) -> Evaluation:  # fmt: skip
    """Judge an embedding of any origin, and write ``STEM.results.json`` and ``STEM.predictions.npz`` beside it.

    The .npz holds ``features`` (N, d), ``labels`` (N,) and ``split`` (N,) of "train" and "test" (what ``nearfar embed``
    writes), or ``x_train``, ``y_train``, ``x_test``, ``y_test``; ``classes`` may name the classes. Labels (N, K) of
    zeros and ones are several an item.
    """
    a, ya, b, yb, classes = _parts(path)
    result = evaluate({path.stem: (a, b)}, ya, yb, classes, draws=draws, labels_per_class=labels, seed=seed,
                      more=more)  # fmt: skip
    results, predictions = files_of(path)
    write(predictions, result, yb)
    write_bytes(results, json.dumps({"evaluation": result.to_dict(), "source": path.name}, indent=1))
    return result


def _parts(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...] | None]:
    try:
        held = npz.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, npz.Unreadable):
        raise UserError(f"{path} is no .npz of plain arrays, or is cut short") from None
    known = [{"features", "labels", "split"}, {"x_train", "y_train", "x_test", "y_test"}]
    if not any(names <= set(held) for names in known):
        raise UserError(f"{path} holds {', '.join(sorted(held)) or 'nothing'}: give features, labels and split, "
                        "or x_train, y_train, x_test and y_test")  # fmt: skip
    if known[0] <= set(held):
        x, y, split = held["features"], held["labels"], held["split"].astype(str)
        if not len(x) == len(y) == len(split):
            raise UserError(f"{path}: {len(x)} features, {len(y)} labels, {len(split)} splits: give one each")
        train, test = split == "train", split == "test"
        parts = [x[train], y[train], x[test], y[test]]
    else:
        parts = [held[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    if any(x.ndim != 2 for x in parts[::2]):
        raise UserError(f"{path}: features of shape {parts[0].shape}: give (N, d)")
    for x in parts[::2]:
        if x.dtype.kind not in "fiu":
            raise UserError(f"{path}: features of type {x.dtype}: give numbers")
    encoded = _several if parts[1].ndim == 2 else _encoded
    ya, yb, classes = encoded(path, parts[1], parts[3], held.get("classes"))
    return parts[0].astype(np.float32), ya, parts[2].astype(np.float32), yb, classes


def _several(path: Path, ya: np.ndarray, yb: np.ndarray, names: np.ndarray | None) -> tuple:
    """Labels as zeros and ones. -> (N, K), (M, K), K names"""
    try:
        multilabel.check(ya, yb)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    called = names is not None and names.ndim == 1 and len(names) == ya.shape[1]
    return ya.astype(np.int64), yb.astype(np.int64), tuple(map(str, names if called else range(ya.shape[1])))


def _encoded(path: Path, ya: np.ndarray, yb: np.ndarray, names: np.ndarray | None) -> tuple:
    """Labels as 0..K-1, in the training part's numbers. -> (N,), (M,), K names"""
    if ya.ndim != 1 or yb.ndim != 1:
        raise UserError(f"{path}: labels of shapes {ya.shape} and {yb.shape}: give (N,), or (N, K) for both parts")
    if not len(ya) or not len(yb):
        raise UserError(f"{path}: {len(ya)} training and {len(yb)} test rows: both are needed")
    if ya.dtype.kind in "iu" and min(ya.min(), yb.min()) < 0:
        raise UserError(f"{path}: label {min(ya.min(), yb.min())}: rows without a label cannot judge; leave them out")
    kinds, codes = np.unique(ya, return_inverse=True)
    new = np.setdiff1d(yb, kinds)
    if len(new):
        raise UserError(f"{path}: test label {new[0]} is not among the training labels: add or remove it")
    called = names is not None and ya.dtype.kind in "iu" and len(names) > kinds.max()
    classes = tuple(str(names[k]) if called else str(k) for k in kinds)
    return codes, np.searchsorted(kinds, yb), classes
