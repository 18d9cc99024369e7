"""Every judge on every embedding: one table, with the protocol it came from."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate import multilabel
from nearfar.evaluate.clusters import clustering
from nearfar.evaluate.probes import FEW_C, amount, few_label, knn, linear_probe
from nearfar.evaluate.records import Judgement, Result
from nearfar.evaluate.retrieval import retrieval
from nearfar.evaluate.sparse import is_sparse, not_finite


@dataclass(frozen=True)
class Evaluation:
    """Results by embedding and column, full judgements by embedding, and the protocol."""

    cells: dict[str, dict[str, Result]]
    judgements: dict[str, dict[str, Judgement]]
    classes: tuple[str, ...]
    protocol: dict[str, Any]
    notes: tuple[str, ...] = ()
    more: dict[str, dict[str, Result]] = field(default_factory=dict)  # retrieval and clustering, where asked for

    def __getitem__(self, embedding: str) -> dict[str, Result]:
        return self.cells[embedding]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        rows = [{"embedding": e, "cells": {k: r.to_dict() for k, r in c.items()}} for e, c in self.cells.items()]
        judged = {e: {k: {"metrics": j.metrics, "detail": j.result.detail} for k, j in js.items()}
                  for e, js in self.judgements.items()}  # fmt: skip
        more = {e: {k: r.to_dict() for k, r in held.items()} for e, held in self.more.items()}
        return {"rows": rows, "judgements": judged, "more": more, "classes": list(self.classes),
                "protocol": self.protocol, "notes": list(self.notes)}  # fmt: skip

    def table(self, cells: dict[str, dict[str, Result]] | None = None) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of text: value ± half of the interval."""
        cells = self.cells if cells is None else cells
        heads = list(next(iter(cells.values())))
        rows = [[e, *(f"{c[h].value:.3f} ±{(c[h].high - c[h].low) / 2:.3f}" for h in heads)]
                for e, c in cells.items()]  # fmt: skip
        return ["embedding", *heads], rows

    def render(self, console: Any = None) -> None:
        """Print the tables."""
        from rich.console import Console
        from rich.table import Table

        console = console or Console(width=None, markup=False, emoji=False)
        titles = {self.protocol["title"]: self.cells, "among the test items, each ranked against the others": self.more}
        for title, cells in titles.items():
            if not cells:
                continue
            heads, rows = self.table(cells)
            table = Table(title=title)
            for i, head in enumerate(heads):
                table.add_column(head.replace(" ", "\n") if i else head, justify="right" if i else "left")
            for row in rows:
                table.add_row(*(cell.replace(" ", "\n") if i else cell for i, cell in enumerate(row)))
            console.print(table)


def check(features: Mapping[str, tuple[np.ndarray, np.ndarray]], y_train: np.ndarray, y_test: np.ndarray) -> None:
    """One line for what cannot be judged."""
    if len(y_test) == 0:
        raise UserError("the test part is empty: nothing to judge by")
    kinds = np.unique(y_train)
    if len(kinds) < 2:
        raise UserError(f"evaluation needs at least two classes; all {len(y_train)} training labels are {kinds[0]}")
    new = np.setdiff1d(y_test, kinds)
    if len(new):
        raise UserError(f"test label {new[0]} is not among the training labels")
    _check_features(features, y_train, y_test)


def _check_features(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]], y_train: np.ndarray, y_test: np.ndarray
) -> None:
    for name, (a, b) in features.items():
        if a.shape[0] != len(y_train) or b.shape[0] != len(y_test):
            raise UserError(f"{name}: {a.shape[0]} and {b.shape[0]} rows for {len(y_train)} and {len(y_test)} labels")
        bad = not_finite(a) + not_finite(b)
        if bad:
            raise UserError(f"{name}: {bad} features are NaN or infinite: training diverged or the input is bad")


def evaluate(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]], y_train: np.ndarray, y_test: np.ndarray,
    classes: tuple[str, ...] | None = None, *, labels_per_class: tuple[int | str, ...] = (1, 5, 10), draws: int = 10,
    seed: int = 0, k: int = 20, temperature: float = 0.07, more: bool = False, what: str = "image",
    progress: Callable[[str], None] = lambda text: None,
) -> Evaluation:  # fmt: skip
    """Judge embeddings given as ``{name: (train (N, d), test (M, d))}``, dense or, as TF-IDF is, SciPy's sparse.

    Columns: kNN and linear probe at few labels a class (means over draws, the same draws for every
    embedding), then kNN and linear probe on all labels (bootstrap intervals over test items). With ``more``, how test
    items retrieve and cluster among themselves, which fits nothing: recall@1, MAP@R, MRR; NMI, AMI, ARI, purity.
    ``what`` an item is, as the title says it.

    Where an item has several labels, ``y`` is (N, K) of zeros and ones, and the columns are mean and micro average
    precision, macro F1 and ranking average precision of kNN and linear probe on all labels; more in ``metrics``.
    """
    y_train, y_test = np.asarray(y_train), np.asarray(y_test)
    if 2 in (y_train.ndim, y_test.ndim):
        return _several(features, y_train, y_test, classes, seed, k, temperature, more, progress)
    wanted = tuple(dict.fromkeys(amount(n) for n in labels_per_class))
    check(features, y_train, y_test)
    classes = tuple(classes or (str(i) for i in range(int(max(y_train.max(), y_test.max())) + 1)))
    smallest = int(np.unique(y_train, return_counts=True)[1].min())
    scarce = [n for n in wanted if isinstance(n, int) and n > smallest]
    few = [n for n in wanted if n not in scarce]
    notes = [f"{n} labels a class left out: a class has only {smallest} training {what}s" for n in scarce]
    cells, judgements = {}, {}
    for name, (a, b) in features.items():
        progress(name)
        row: dict[str, Result] = {}
        for n in few:
            row |= few_label(a, y_train, b, y_test, labels_per_class=n, draws=draws, seed=seed)
        full = {
            "kNN": knn(a, y_train, b, y_test, list(classes), k=k, temperature=temperature),
            "linear": linear_probe(a, y_train, b, y_test, list(classes), seed=seed),
        }
        cells[name] = row | {kind: j.result for kind, j in full.items()}
        judgements[name] = full
    if more and len(y_test) < 2:
        notes.append("retrieval and clustering left out: one test item has nothing to be ranked among")
    besides = {name: _besides(b, y_test, seed) for name, (_, b) in features.items()} if more and len(y_test) > 1 else {}
    protocol = _protocol(y_train, y_test, {
        "title": f"accuracy on {len(y_test):,} test {what}s, probes on {len(y_train):,} training {what}s",
        "k": k, "temperature": temperature, "draws": draws, "seed": seed,
        "few labels": f"stratified by class, the same draws for every embedding; shares rounded, at least one a class; "
                      f"logistic on unit rows, C = {FEW_C:g}, fixed",
        "intervals": "95 %: Student's over draws for few labels, bootstrap over test items for all labels",
    })  # fmt: skip
    return Evaluation(cells, judgements, classes, protocol, tuple(notes), besides)


_COLUMNS = ("mAP", "micro AP", "macro F1", "LRAP")


def _several(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]], y_train: np.ndarray, y_test: np.ndarray,
    classes: tuple[str, ...] | None, seed: int, k: int, temperature: float, more: bool, progress: Callable[[str], None],
) -> Evaluation:  # fmt: skip
    """Judge embeddings of items with several labels each."""
    multilabel.check(y_train, y_test)
    _check_features(features, y_train, y_test)
    if held := [name for name, (a, b) in features.items() if is_sparse(a) or is_sparse(b)]:
        raise UserError(f"{held[0]} is sparse, and items have several labels each: give dense rows")
    classes = tuple(map(str, range(y_train.shape[1]) if classes is None else classes))
    if len(classes) != y_train.shape[1]:
        raise UserError(f"{len(classes)} names for {y_train.shape[1]} classes: give one each")
    kept, notes = multilabel.judged_classes(y_train, y_test, classes)
    notes += ["retrieval and clustering left out: they are for one class an item"] if more else []
    cells, judgements = {}, {}
    for name, (a, b) in features.items():
        progress(name)
        near = multilabel.knn(a, y_train, b, k=k, temperature=temperature)
        far, detail = multilabel.linear_probe(a, y_train, b, seed=seed)
        judgements[name] = {
            "kNN": multilabel.judge("kNN", near, y_test, kept, classes, seed=seed, k=k, temperature=temperature),
            "linear": multilabel.judge("linear", far, y_test, kept, classes, seed=seed, **detail),
        }
        cells[name] = {f"{kind} {m}": Result(**j.metrics["measures"][m])
                       for kind, j in judgements[name].items() for m in _COLUMNS}  # fmt: skip
    protocol = _protocol(y_train, y_test, {
        "title": f"{kept.sum()} labels on {len(y_test):,} test items, probes on {len(y_train):,} training items",
        "labels": f"several an item, {kept.sum()} of {len(classes)} classes vary in both parts and are judged",
        "k": k, "temperature": temperature, "seed": seed, "threshold": multilabel.THRESHOLD,
        "linear C": "one for all classes, by log-likelihood on a fifth of the training part",
        "intervals": "95 %: bootstrap over test items",
    })  # fmt: skip
    return Evaluation(cells, judgements, classes, protocol, tuple(notes))


def _besides(z: np.ndarray, y: np.ndarray, seed: int) -> dict[str, Result]:
    found = retrieval(z, y, ks=(1,), seed=seed)
    return {name: found[name] for name in ("recall@1", "MAP@R", "MRR")} | clustering(z, y, seed=seed)


def _protocol(y_train: np.ndarray, y_test: np.ndarray, how: dict[str, Any]) -> dict[str, Any]:
    import sklearn

    sha = hashlib.sha256(np.asarray(y_train, np.int64).tobytes() + b"|" + np.asarray(y_test, np.int64).tobytes())
    return how | {
        "train": len(y_train), "test": len(y_test), "split hash": sha.hexdigest()[:16],
        "python": platform.python_version(), "numpy": np.__version__, "scikit-learn": sklearn.__version__,
    }  # fmt: skip
