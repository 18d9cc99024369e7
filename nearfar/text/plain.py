"""Plain text: a line, a sentence or a document a text; files, folders and zips of them."""

from __future__ import annotations

import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from nearfar.data import limits
from nearfar.data.source import shown
from nearfar.errors import UserError, one_line
from nearfar.text.gather import NOT_TEXT, TOO_LONG, Gather, Reading
from nearfar.text.lines import LONGEST, is_text, lines, opened
from nearfar.text.options import TextOptions
from nearfar.text.parts import in_parts
from nearfar.text.records import Texts, TextSplits
from nearfar.text.sentences import sentences

OTHERS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".json", ".zip")  # which are no plain text
_PIECE = 2**20  # letters of a block from which on its sentences are taken before it ends


def from_file(path: Path, how: Reading) -> Texts:
    """One file of text, whose documents are parted by blank lines."""
    into = Gather(shown(path), max_bad=how.max_bad)
    with opened(path, how.progress) as file:
        read(into, file, into.spec, how.options)
    return into.texts()


def read(
    into: Gather, file: BinaryIO, name: str, options: TextOptions, *, label: str = "", document: int = 0,
    whole: bool = False,
) -> int:  # fmt: skip
    """A file's texts, its documents counted from ``document``; returns the next one's number.

    A line is a text, or a document's sentences are, or a document is. Blank lines part documents, but not where the
    ``whole`` file is one.
    """
    unit, begun = "line" if options.unit == "auto" else options.unit, False
    block = _Block(into, name, label, unit)
    for number, line in lines(file, name, options.encoding):
        if line is not None and not line.strip():
            if not whole:
                block.close(document)
                document, begun = document + begun, False
            continue
        into.seen, begun = into.seen + 1, True
        if line is None:
            into.skip(number, TOO_LONG, name=name, bad=1)
        elif unit == "line":
            into.add([line], number, name=name, label=label, document=document)
        elif not is_text(line):
            into.skip(number, NOT_TEXT, name=name, bad=1)
        else:
            block.take(number, line, document)
    block.close(document)
    return document + (begun or whole)


@dataclass
class _Block:
    """Lines of a document, until their sentences, or they together, are a text."""

    into: Gather
    name: str
    label: str
    unit: str
    held: list[str] = field(default_factory=list)
    size: int = 0
    start: int = 0  # the first one's number
    most: int = _PIECE

    def take(self, number: int, line: str, document: int) -> None:
        self.start = self.start if self.size else number
        self.size += len(line) + 1
        if self.size > LONGEST:
            self.held.clear()  # it will be left out as too long
        else:
            self.held.append(line)
        if self.unit == "sentence" and self.most < self.size <= LONGEST:
            self._cut(document)

    def _cut(self, document: int) -> None:
        """Take all sentences but the last, which may go on."""
        last = ""
        for sentence in sentences("\n".join(self.held)):
            if last:
                self._add(last, document)
            last = sentence
        self.held, self.size = [last], len(last) + 1
        self.most = max(_PIECE, 2 * self.size)

    def _add(self, text: str, document: int) -> None:
        self.into.add([text], self.start, name=self.name, label=self.label, document=document)

    def close(self, document: int) -> None:
        if self.size > LONGEST:
            self.into.skip(self.start, TOO_LONG, name=self.name, bad=1)
        elif self.held:
            text = "\n".join(self.held)
            for one in sentences(text) if self.unit == "sentence" else [text]:
                self._add(one, document)
        self.held.clear()
        self.size, self.most = 0, _PIECE


def from_folder(path: Path, how: Reading) -> TextSplits:
    """Text files in a folder: each is a document; its subfolder's name is the label, or its own with label="file"."""
    names = []
    for at, folders, files in os.walk(path):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        names += [os.path.relpath(os.path.join(at, n), path).replace(os.sep, "/") for n in sorted(files)]
    names = _wanted(names, how.options)
    if not names:
        raise UserError(f"{shown(path)} holds no text: give a folder of .txt files, or with a train.csv or other table")
    return _many(path, names, lambda name: opened(path / name), how)


def from_zip(path: Path, how: Reading) -> TextSplits:
    """A zip of text files, as a folder of them."""
    try:
        with zipfile.ZipFile(path) as held:
            members = {m.filename: m for m in held.infolist() if not m.is_dir()}
            limits.check_unpacked(sum(m.file_size for m in members.values()), path.stat().st_size, shown(path))
            names = _wanted(sorted(members), how.options)
            if not names:
                raise UserError(f"{shown(path)} holds no text file: unpack it where it holds tables")
            top = {name.partition("/")[0] for name in names}
            cut = f"{top.pop()}/" if len(top) == 1 and all("/" in name for name in names) else ""
            return _many(path, [name.removeprefix(cut) for name in names],
                         lambda name: io.BufferedReader(held.open(members[cut + name])), how)  # fmt: skip
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{shown(path)} cannot be read: {one_line(error)}") from None


def _wanted(names: list[str], options: TextOptions) -> list[str]:
    """Text files: those in .txt, or, where the files are the classes or there is none, all that are no tables."""
    names = [n for n in names if not n.rpartition("/")[2].upper().startswith("README") and "/." not in f"/{n}"]
    texts = [n for n in names if n.lower().endswith(".txt")]
    if texts and options.label != "file":
        return texts
    return [n for n in names if not n.lower().endswith(OTHERS)]


def _many(path: Path, names: list[str], opened: Callable[[str], BinaryIO], how: Reading) -> TextSplits:
    """Files as documents, in train/ and test/ where there are both."""
    by_part = {part: [n for n in names if n.startswith(f"{part}/")] for part in ("train", "test")}
    if all(by_part.values()):
        return in_parts({part: partial(_read_all, f"{shown(path)}/{part}", held, f"{part}/", opened, how)
                         for part, held in by_part.items()}, shown(path), how)  # fmt: skip
    return TextSplits(_read_all(shown(path), names, "", opened, how, how.options))


def _read_all(
    spec: str, names: list[str], base: str, opened: Callable[[str], BinaryIO], how: Reading, options: TextOptions
) -> Texts:  # fmt: skip
    into, document, of_file = Gather(spec, max_bad=how.max_bad), 0, options.label == "file"
    folder = lambda name: name.removeprefix(base).rpartition("/")[0].partition("/")[0]  # noqa: E731
    by_folder = len({folder(name) for name in names} - {""}) > (not base)  # of a part one class is enough
    for name in names:
        label = name.rpartition("/")[2].removesuffix(".txt") if of_file else folder(name) if by_folder else ""
        with opened(name) as file:
            document = read(into, file, name, options, label=shown(label), document=document, whole=not of_file)
    return into.texts()
