"""A file's lines, decoded as they are read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from nearfar.data.source import shown
from nearfar.errors import UserError, one_line

LONGEST = 16 * 2**20  # letters, and bytes, of a text
_PIECE, _SHOWN = 2**20, 2**25  # bytes that are read at a time; of a file from which on progress is shown
_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def opened(path: Path, progress: Callable[[int, int], None] | None = None) -> BinaryIO:
    """A file to read bytes from. progress: is told of bytes read and all bytes, where these are many."""
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}") from None
    return io.BufferedReader(file if progress is None or size < _SHOWN else _Watched(file, progress, size), _PIECE)


class _Watched(io.RawIOBase):
    """Bytes that are counted as they are read."""

    def __init__(self, file: io.RawIOBase, progress: Callable[[int, int], None], size: int) -> None:
        self._file, self._progress, self._size, self._done = file, progress, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:
        n = self._file.readinto(into)
        if n and self._done < self._size:
            self._done += n
            self._progress(min(self._done, self._size), self._size)
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def lines(file: io.BufferedReader, name: str, encoding: str) -> Iterator[tuple[int, str | None]]:
    """(number, line) without its end, \\n, \\r\\n or \\r; closes the file.

    None stands for a line longer than any text. Bytes that are no text in this encoding stay as surrogates; a byte
    order mark is left out. Raises ``UserError`` where the file is in UTF-16 or -32 and that was not said.
    """
    asked = encoding.lower().replace("_", "-")
    kind = "utf-8-sig" if asked in ("utf-8", "utf8") else encoding
    with io.TextIOWrapper(file, kind, errors="surrogateescape", newline=None) as text:
        if other := _other(file.peek(1024)[:1024], asked):
            raise UserError(f"{name} is {other.upper()}: pass --text.encoding {other}")
        number = 0
        while True:
            try:
                line = text.readline(LONGEST)
                whole = line.endswith("\n")
                while line and not whole and (rest := text.readline(LONGEST)):
                    line, whole = None, rest.endswith("\n")
            except UnicodeError as error:  # of encodings that cannot escape
                raise UserError(f"{name}, near line {number + 1}: {one_line(error)}") from None
            if line == "":
                return
            number += 1
            if number == 1 and line:
                line = line.removeprefix("\ufeff")
            yield number, None if line is None else line.rstrip("\n")


def _other(head: bytes, asked: str) -> str:
    """Whether a file that is read in another encoding is UTF-16 or UTF-32, by its mark or by a zero in every letter."""
    if asked.startswith(("utf-16", "utf16", "utf-32", "utf32")):
        return ""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    half = len(head) // 2
    if half >= 4 and head[1::2].count(0) > 0.9 * half and not head[::2].count(0):
        return "utf-16-le"
    return "utf-16-be" if half >= 4 and head[::2].count(0) > 0.9 * half and not head[1::2].count(0) else ""


def is_text(line: str) -> bool:
    """Whether all of a line was text in its encoding."""
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
