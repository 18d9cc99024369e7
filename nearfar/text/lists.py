"""Python's lists of texts, and Hugging Face's data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nearfar.data import named
from nearfar.data.source import shown
from nearfar.errors import UserError, brief
from nearfar.text.columns import SLOTS
from nearfar.text.gather import Gather, Reading
from nearfar.text.options import TextOptions
from nearfar.text.records import Texts
from nearfar.text.tables import as_text, of_batches

_AT_ONCE = 1000  # rows


def is_two(spec: Any) -> bool:
    """(texts, labels) or (pairs, scores), not a tuple of two texts."""
    return isinstance(spec, tuple) and len(spec) == 2 and not isinstance(spec[0], str)


def from_list(spec: Any, how: Reading) -> Texts:
    """Texts, pairs or triplets; with them labels, or numbers, which score pairs."""
    rows, beside = spec if is_two(spec) else (spec, None)
    width = _width(rows)
    if beside is not None and len(beside) != len(rows):
        raise UserError(f"{len(beside)} labels or scores for {len(rows)} texts: give one each")
    scored = beside is not None and width > 1 and not isinstance(beside[0], str)
    into = Gather("the list", SLOTS[width], how.max_bad, "row")
    for i, row in enumerate(rows):
        texts = [row] if isinstance(row, str) else row
        if not isinstance(texts, Sequence) or len(texts) != width or not all(isinstance(t, str) for t in texts):
            raise UserError(f"row {i} is {brief(row)}: give texts, or pairs, or triplets of them, all alike")
        value = None if beside is None else beside[i].item() if isinstance(beside[i], np.generic) else beside[i]
        label = "" if beside is None or scored else as_text(value)
        if label is None:
            raise UserError(f"label {i} is {brief(value)}: give a name or a whole number")
        into.add(texts, i, label=label, score=("" if value is None else value) if scored else None)
    return into.texts(how.options.range())


def _width(rows: Sequence[Any]) -> int:
    """Texts a row."""
    if not len(rows):
        raise UserError("the list of texts is empty")
    width = 1 if isinstance(rows[0], str) else len(rows[0])
    if width not in SLOTS:
        raise UserError(f"rows of {width} texts: give single texts, pairs or triplets")
    return width


def hugging_face_parts(name: str, how: Reading) -> dict[str, Callable[[TextOptions], Texts]]:
    """A data set of the hub (NAME or NAME@CONFIG) or a folder of one. -> what reads each split, in batches of rows"""
    where = f"text:hf:{shown(name)}"
    _, parts = named.hugging_face_parts(name, where)

    def reader(split: str) -> Callable[[TextOptions], Texts]:
        def read(options: TextOptions) -> Texts:
            into = Gather(f"{where}:{split}" if len(parts) > 1 else where, max_bad=how.max_bad, item="row")
            return of_batches(into, list(parts[split].features), lambda names: _batches(parts[split], names), options)

        return read

    return {split: reader(split) for split in parts}


def _batches(part: Any, names: list[str]) -> Iterator[dict[str, list[Any]]]:
    """A data set's columns, some rows at a time; classes by name, those that are kept back (-1) as none."""
    held = part.select_columns(names)
    to_name = {n: f.int2str for n, f in held.features.items() if hasattr(f, "int2str")}
    for batch in held.iter(_AT_ONCE):
        for name, of in to_name.items():
            batch[name] = [None if v is None or v < 0 else of(v) for v in batch[name]]
        yield batch
