"""Hugging Face tables that are too large to hold decoded: rows stay in the mapped Arrow file until they are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.data.folder import Options, decoded_by, key_of
from nearfar.data.index import Index, stamp_of, unlooked
from nearfar.data.names import Names
from nearfar.data.source import Source, encode_labels


@dataclass(frozen=True)
class Row:
    """The image of one row, as it was encoded."""

    table: Any
    column: str
    i: int

    def read(self, most: int | None = None) -> bytes:
        held = self.table[self.i][self.column]
        if held is None or (held["bytes"] is None and not held["path"]):
            raise ValueError("it is missing")
        content = Path(held["path"]).read_bytes() if held["bytes"] is None else held["bytes"]
        return content if most is None else content[:most]

    def __str__(self) -> str:
        return f"row {self.i}"


def from_table(part: Any, image: str, label: str | None, where: str, given: Options) -> Source:
    """A source of a map-style table's rows, decoded once into the cache, or as they are read, as a folder's files are.

    ``part`` is a ``datasets.Dataset``, ``image`` its column of images, ``label`` that of class labels.
    """
    import datasets

    names = Names.of(map(str, range(len(part))))
    table = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    paths = [str(file["filename"]) for file in part.cache_files]
    key = key_of("hf", str(part.split), image, *paths)
    held, kept, skipped = decoded_by(
        given, where, key, names, lambda: _survey(names, paths), lambda i: Row(table, image, int(i)))
    labels, classes = None, None
    if label is not None and label in part.features:
        column = part.select_columns([label]).with_format("arrow")[:].column(label)
        codes = column.fill_null(-1).to_numpy()[held.kept]  # (n,)
        if (codes != -1).any():  # else they are kept back, as the hub marks it
            labels, classes = encode_labels(codes, len(codes), where, part.features[label].names)
    return Source(where, held.shape, held.reader, kept, labels, classes, skipped=skipped, starter=held.starter,
                  hashes=held.hashes)  # fmt: skip


def _survey(names: Names, paths: list[str]) -> Index:
    """A row is as it was where the table's files are; without files it is looked at anew."""
    stamps = np.full((len(names), 3), -1, np.int64)
    if paths:
        stamps[:] = np.max([stamp_of(os.stat(path)) for path in paths], axis=0)
    return unlooked(names, stamps)
