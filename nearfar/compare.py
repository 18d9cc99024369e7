"""Which differences between runs are real: the paired bootstrap over the test items that all were judged on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate import Evaluation, evaluate, multilabel, of_difference
from nearfar.training.checkpoint import write_bytes

JUDGES = ("kNN", "linear")


@dataclass(frozen=True)
class Judged:
    """What a run foretold of each test item, and what that is worth."""

    name: str
    split: str
    y: np.ndarray  # (N,), or (N, K) where an item has several labels
    worth: Mapping[str, np.ndarray]  # by judge, (N,): a hit or none, or the item's ranking average precision


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
        held = json.loads(results.read_text(encoding="utf-8"))["evaluation"]
        split, names = held["protocol"]["split hash"], [row["embedding"] for row in held["rows"]]
        with open(predictions, "rb") as file, np.load(file, allow_pickle=False) as arrays:  # a cut file is closed, too
            y, several = arrays["y"], arrays["y"].ndim == 2
            worth = {judge: arrays[f"{names[0]}/{judge}/LRAP"] if several else arrays[f"{names[0]}/{judge}"] == y
                     for judge in JUDGES}  # fmt: skip
            return Judged(str(path), split + held["protocol"].get("items hash", ""), y, worth)
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} has no predictions to compare: run nearfar evaluate {path} first") from None


def compare(paths: Sequence[str | Path], *, seed: int = 0) -> list[Difference]:
    """Each run against the first, judge by judge. Raises ``UserError`` where they were judged on different items."""
    if len(paths) < 2:
        raise UserError(f"{len(paths)} run: give two or more to compare")
    first, *others = (read(Path(p)) for p in paths)
    out = []
    for other in others:
        if other.split != first.split or not np.array_equal(other.y, first.y):
            raise UserError(f"{other.name} and {first.name} were judged on different items: "
                            "evaluate both on the same source, with the same --seed and --holdout")  # fmt: skip
        for judge in JUDGES:
            of = "accuracy" if first.y.ndim == 1 else "ranking average precision"
            worth = of_difference(other.worth[judge], first.worth[judge], seed)
            out.append(Difference(judge, other.name, first.name, *worth, of))
    return out


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
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
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
