"""Tables of texts: CSV, TSV, JSON, JSONL and Parquet."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from nearfar.data import limits
from nearfar.data.source import shown
from nearfar.errors import UserError, one_line, require
from nearfar.text.columns import KNOWN, Columns, choose, is_header
from nearfar.text.gather import NOT_TEXT, TOO_LONG, Gather, Reading
from nearfar.text.lines import LONGEST, is_text, lines, opened
from nearfar.text.options import TextOptions
from nearfar.text.records import Texts

_LOOKED_AT, _AT_ONCE = 1000, 1000  # rows by which columns are told; that are read from a Parquet file
Row = tuple[int, Sequence[Any]]  # number of a line or row, cells
Table = tuple[list[str] | None, Iterator[Row]]  # names of columns, where there are some


def from_table(path: Path, how: Reading) -> Texts:
    """A .csv, .tsv, .jsonl or .parquet file."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return from_parquet(path, how)
    into = Gather(shown(path), max_bad=how.max_bad)
    with opened(path, how.progress) as file:
        numbered = _decoded(lines(file, into.spec, how.options.encoding), into)
        if kind in (".jsonl", ".ndjson"):
            table = of_objects(_json_lines(numbered, into), into)
        else:
            table = _of_cells(numbered, kind, how.options, into)
        return gathered(into, *table, how.options)


def _decoded(numbered: Iterator[tuple[int, str | None]], into: Gather) -> Iterator[tuple[int, str]]:
    """Lines that are text; the others are noted."""
    for number, line in numbered:
        if line is not None and is_text(line):
            yield number, line
        else:
            into.skip(number, TOO_LONG if line is None else NOT_TEXT, bad=1)


def _of_cells(numbered: Iterator[tuple[int, str]], kind: str, options: TextOptions, into: Gather) -> Table:
    """A CSV file, which may part its columns by semicolons or tabs where its header shows it, or one with tabs."""
    head = next(numbered, None)
    if head is None:
        return [], iter(())
    delimiter = "\t" if kind == ".tsv" else _delimiter(head[1], options)
    rows = _cells(chain([head], numbered), delimiter, csv.QUOTE_NONE if kind == ".tsv" else csv.QUOTE_MINIMAL, into)
    looked = list(islice(rows, _LOOKED_AT))
    if looked and is_header([cells for _, cells in looked], options):
        return [cell.strip() for cell in looked[0][1]], chain(looked[1:], rows)
    return None, chain(looked, rows)


def _delimiter(head: str, options: TextOptions) -> str:
    for mark in ",;\t":
        names = [cell.strip(' "') for cell in head.split(mark)]
        if len(names) > 1 and is_header([names], options):
            return mark
    return ","


def _cells(numbered: Iterator[tuple[int, str]], delimiter: str, quoting: int, into: Gather) -> Iterator[Row]:
    """Rows of a CSV file. Those whose quotes are not right are noted; of a .tsv quotes are letters like any other."""
    first = last = 0

    def kept() -> Iterator[str]:
        nonlocal first, last
        for number, line in numbered:
            first, last = first or number, number
            yield line + "\n"

    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))
    reader = csv.reader(kept(), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        first = 0
        try:
            row = next(reader, None)
        except csv.Error as error:
            said = one_line(error)
            if "end of data" in said or "limit" in said:
                raise UserError(f"{into.place(first)}: a quote is opened and not closed: close it, or double those "
                                "that are part of the text") from None  # fmt: skip
            into.skip(first, f"its quotes are not closed well{f' in line {last}' * (last > first)}: {said}",
                      bad=last - first + 1)  # fmt: skip
            continue
        if row is None:
            return
        yield first, row


def _json_lines(numbered: Iterator[tuple[int, str]], into: Gather) -> Iterator[tuple[int, Any]]:
    for number, line in numbered:
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                into.skip(number, f"it is no JSON: {one_line(error)}", bad=1)


def of_objects(held: Iterable[tuple[int, Any]], into: Gather) -> Table:
    """Objects, whose keys are the columns, or lists, or strings; by what the first one is, others are noted."""
    held = iter(held)
    looked = list(islice(held, _LOOKED_AT))
    if not looked:
        return [], iter(())
    if not isinstance(looked[0][1], dict):
        rows = ((n, row if isinstance(row, list | tuple) else [row]) for n, row in chain(looked, held))
        return None, rows
    names = list(dict.fromkeys(key for _, row in looked if isinstance(row, dict) for key in row))

    def cells() -> Iterator[Row]:
        for number, row in chain(looked, held):
            if isinstance(row, dict):
                yield number, [row.get(key) for key in names]
            else:
                into.skip(number, "it is no object, as the first one is", bad=1)

    return names, cells()


def from_parquet(path: Path, how: Reading) -> Texts:
    """A Parquet file, of which only the columns that are wanted are read."""
    require("pyarrow", "parquet", f"reading {shown(path.name)}")
    import pyarrow.parquet as pq

    into = Gather(shown(path), max_bad=how.max_bad, item="row")
    try:
        with pq.ParquetFile(path) as file:
            batches = lambda names: (b.to_pydict() for b in file.iter_batches(_AT_ONCE, columns=names))  # noqa: E731
            return of_batches(into, list(file.schema_arrow.names), batches, how.options)
    except UserError:
        raise
    except Exception as error:  # Arrow raises all kinds
        raise UserError(f"{into.spec} cannot be read: {one_line(error)}") from None


def of_batches(
    into: Gather, names: list[str], batches: Callable[[list[str]], Iterable[dict[str, list[Any]]]], options: TextOptions
) -> Texts:  # fmt: skip
    """A table that is read some rows at a time, of which only the wanted columns are taken."""
    columns = choose(names, [], options, into.spec)
    wanted = [names[i] for i in columns.places]

    def rows() -> Iterator[Row]:
        number = 0
        for batch in batches(list(dict.fromkeys(wanted))):
            for cells in zip(*(batch[name] for name in wanted)):
                number += 1
                yield number, cells

    return _filled(into, rows(), len(wanted), columns.moved(), options)


def json_parts(path: Path, how: Reading) -> dict[str, Callable[[TextOptions], Texts]]:
    """A list of records, an object with a list a split, or one with a list a column. -> what reads each split"""
    name = shown(path)
    try:
        held = json.loads(limits.bytes_of(path, limits.JSON))
    except RecursionError:
        raise UserError(f"{name} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {one_line(error)}") from None
    parts = {"train": held} if isinstance(held, list) else held
    if not isinstance(parts, dict) or not parts or not all(isinstance(p, list) for p in parts.values()):
        raise UserError(f"{name} is neither a list of records nor an object with a list a split or column")
    wanted = {option.casefold() for option in (how.options.label, how.options.score, *how.options.columns.split(","))}
    if any(key.casefold() in KNOWN | wanted for key in parts) and len({len(p) for p in parts.values()}) == 1:
        parts = {"train": [dict(zip(parts, row)) for row in zip(*parts.values())]}

    def reader(split: str) -> Callable[[TextOptions], Texts]:
        def read(options: TextOptions) -> Texts:
            into = Gather(f"{name}:{shown(split)}" if len(parts) > 1 else name, max_bad=how.max_bad, item="record")
            return gathered(into, *of_objects(enumerate(parts[split], 1), into), options)

        return read

    return {split: reader(split) for split in parts}


def gathered(into: Gather, names: Sequence[str] | None, rows: Iterator[Row], options: TextOptions) -> Texts:
    """Rows of cells as texts; a row with other than its number of cells, or an empty text, is left out and noted."""
    rows = iter(rows)
    first = list(islice(rows, _LOOKED_AT))
    if not first:
        return into.texts()  # says what was left out
    width = len(names) if names else Counter(len(cells) for _, cells in first).most_common(1)[0][0]
    looked = [[as_text(c) or "" for c in cells] for _, cells in first]
    columns = choose(names or [str(i) for i in range(width)], looked, options, into.spec)
    return _filled(into, chain(first, rows), width, columns, options)


def _filled(into: Gather, rows: Iterable[Row], width: int, columns: Columns, options: TextOptions) -> Texts:
    into.slots = columns.slots
    for number, cells in rows:
        _take(into, number, cells, width, columns)
    return into.texts(options.range())


def _take(into: Gather, number: int, cells: Sequence[Any], width: int, columns: Columns) -> None:
    if not cells:  # an empty line
        return into.skip(number, "it is empty")
    if len(cells) < width or any(cells[width:]):
        return into.skip(number, f"it has {len(cells)} columns, not {width}", bad=1)
    texts = [as_text(cells[i]) for i in columns.texts]
    label = "" if columns.label is None else as_text(cells[columns.label])
    if None in texts or label is None:
        return into.skip(number, "it holds a list or an object where a text should be", bad=1)
    score = None if columns.score is None else cells[columns.score]
    return into.add(texts, number, label=label, score="" if columns.score is not None and score is None else score)


def as_text(cell: Any) -> str | None:
    """A cell as text; nothing as an empty one. None where it holds several things, or bytes."""
    if isinstance(cell, str):
        return cell
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, list | tuple | dict | bytes | bytearray):
        return None
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
