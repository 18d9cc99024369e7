"""From what a person types to texts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nearfar.data.folder import SUFFIXES, to_stderr
from nearfar.data.source import shown
from nearfar.errors import UserError, one_line
from nearfar.text import lists, plain, tables
from nearfar.text.gather import Reading
from nearfar.text.options import TextOptions
from nearfar.text.parts import NEITHER, TEST, in_parts
from nearfar.text.pydoc import from_pydoc
from nearfar.text.records import Texts, TextSplits

_DEFAULT = TextOptions()
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_FILES = (".txt", *plain.OTHERS)
_OTHER = {*SUFFIXES, ".npy", ".npz", ".tar", ".xml"}  # files that make a folder one of something else
_LOOKED_AT = 200  # names in a folder by which it is told
_KNOWN = "a .txt, .csv, .tsv, .jsonl, .json, .parquet or .zip file, a folder of them, text:hf:NAME or pydoc"


def looks_like_text(spec: Any) -> bool:
    """Whether a source is of texts, by its name, its first item, or the names in a folder."""
    if isinstance(spec, Texts | TextSplits):
        return True
    if isinstance(spec, str | os.PathLike):
        text = os.fsdecode(spec)
        if text == "pydoc" or text.startswith("text:"):
            return True
        if os.path.isdir(text):
            return _folder_of_text(text)
        return text.lower().endswith(_FILES) and os.path.isfile(text)
    rows = spec[0] if lists.is_two(spec) else spec
    if not isinstance(rows, list | tuple) or not rows:
        return False
    return isinstance(rows[0], str) or (isinstance(rows[0], list | tuple) and bool(rows[0]) and
                                        isinstance(rows[0][0], str))  # fmt: skip


def open_texts(
    spec: Any, options: TextOptions = _DEFAULT, *, max_bad: float = 0.05, progress: Any = None,
    say: Callable[[str], None] = to_stderr,
) -> TextSplits:  # fmt: skip
    """Open a source of texts.

    Args:
        spec: a file of text (.txt: a line, a sentence or a document a text), of rows (.csv, .tsv, .jsonl, .json,
            .parquet), a folder with train.* and test.* of these, a folder or .zip of text files, ``text:hf:NAME``,
            ``pydoc``; or a list of texts, of pairs or triplets, ``(texts, labels)``, ``(pairs, scores)``.
        options: which columns are meant, and what a text is.
        max_bad: largest share of lines that cannot be read that is put up with.
        say: is told in one line what is left out.

    Raises ``UserError``, in one line that names the value and the fix.

    >>> splits = open_texts([("a boat", "a ship"), ("a car", "a cat")])
    >>> len(splits.train), splits.train.slots, splits.train.text(1, 1)
    (2, ('sentence1', 'sentence2'), 'a cat')
    """
    if isinstance(spec, TextSplits):
        return spec
    if isinstance(spec, Texts):
        return TextSplits(spec)
    how = Reading(options, max_bad, progress, say)
    if not isinstance(spec, str | os.PathLike):
        return TextSplits(lists.from_list(spec, how))
    text = os.fsdecode(spec).removeprefix("text:")
    if text == "pydoc":
        return TextSplits(from_pydoc())
    if text.startswith("hf:"):
        return in_parts(lists.hugging_face_parts(text.removeprefix("hf:"), how), f"text:{shown(text)}", how)
    if not text.strip() or not (os.path.isdir(text) or os.path.isfile(text)):
        raise UserError(f"{shown(text)!r}: no such file or folder: give {_KNOWN}")
    try:
        return _folder(Path(text), how) if os.path.isdir(text) else _file(Path(text), how)
    except OSError as error:
        raise UserError(f"{shown(text)} cannot be read: {one_line(error)}") from None


def _folder(path: Path, how: Reading) -> TextSplits:
    """train.* and test.*, the only table, or text files."""
    found = _files_of(path)
    parts = {name: file for name, file in found.items() if name in ("train", TEST, *NEITHER)}
    if "train" in parts:
        readers = {name: lambda options, file=file: _file(file, dataclasses.replace(how, options=options)).train
                   for name, file in parts.items()}  # fmt: skip
        return in_parts(readers, shown(path), how)
    if len(found) == 1 and not (file := next(iter(found.values()))).name.lower().endswith((".txt", ".zip")):
        return _file(file, how)
    left = sorted(p.name for p in found.values() if not p.name.lower().endswith(".txt"))
    splits = plain.from_folder(path, how)
    if left:
        how.say(f"{shown(path)}: {', '.join(map(shown, left[:9]))} left out: the .txt files are read")
    return splits


def _file(path: Path, how: Reading) -> TextSplits:
    kind = path.suffix.lower()
    if kind == ".json":
        return in_parts(tables.json_parts(path, how), shown(path), how)
    if kind == ".zip":
        return plain.from_zip(path, how)
    return TextSplits((tables.from_table if kind in _TABLES else plain.from_file)(path, how))


def _files_of(path: Path) -> dict[str, Path]:
    """Files of text in a folder by their names without ending, in small letters."""
    found: dict[str, Path] = {}
    for p in sorted(path.iterdir()):
        if p.suffix.lower() in _FILES and p.is_file() and not p.name.upper().startswith((".", "README")):
            name = p.stem.lower()
            if name in found and name in ("train", TEST):
                raise UserError(f"{shown(path)} holds {shown(found[name].name)} and {shown(p.name)}: leave one of them")
            found[name] = p
    return found


def _folder_of_text(folder: str) -> bool:
    """Whether the first names in a folder and below it are of texts, and none of pictures or arrays."""
    kinds: set[str] = set()
    tops = 0
    for at, names in _walk(folder):
        kinds |= {os.path.splitext(name)[1].lower() for name in names}
        if kinds & _OTHER:
            return False
        if at == folder:
            tables = [name for name in names if name.lower().endswith(plain.OTHERS)]
            tops = len(tables) if not any(n.lower().startswith("train.") for n in tables) else 1
    return ".txt" in kinds or tops == 1


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Folders with their first files' names, READMEs and hidden ones aside; not more than some of each."""
    left = [folder]
    for _ in range(_LOOKED_AT):
        if not left:
            return
        at, names = left.pop(0), []
        try:
            with os.scandir(at) as entries:
                for entry in islice(entries, _LOOKED_AT):
                    if not entry.name.upper().startswith((".", "README")):
                        (left if entry.is_dir() else names).append(entry.path if entry.is_dir() else entry.name)
        except OSError:
            continue
        yield at, names
