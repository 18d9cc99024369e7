"""What lies where in a tar archive, from its headers alone. Nothing is ever extracted.

Formats: ustar and pax (POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format"), and GNU's long
names and sizes (GNU tar manual, "Basic Tar Format").
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from nearfar.data.source import shown

BLOCK = 512
_WINDOW = 2**16  # bytes that are read at once where headers lie close together
_LONGEST = 2**20  # bytes of a long name, or of a pax header
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
          b"S": "a sparse file"}  # fmt: skip
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Broken(ValueError):
    """An archive is not as one is written; the message says why."""


class Member(NamedTuple):
    """A file of an archive: its bytes are ``size`` at ``at``. ``refused`` says why it is not to be read."""

    name: str
    at: int
    size: int
    refused: str = ""


class Window:
    """A file read at any place, by windows that are kept."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._start, self._held = file, 0, b""
        self.size = os.fstat(file.fileno()).st_size

    def read(self, at: int, size: int) -> bytes:
        """What is there, at most ``size`` bytes."""
        if at < self._start or at + size > self._start + len(self._held):
            self._file.seek(at)
            self._start, self._held = at, self._file.read(max(size, _WINDOW))
        return self._held[at - self._start : at - self._start + size]


def compression(start: bytes) -> str:
    """By what an archive that begins like this is compressed; empty where it is not."""
    return next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), "")


def members(path: Path, window: Window | None = None) -> Iterator[Member]:
    """Every file of an archive in its order, also what is refused; folders are passed over. Raises ``Broken``."""
    if window is None:
        with open(path, "rb", buffering=0) as file:
            yield from members(path, Window(file))
        return
    at, wide, own = 0, {}, {}  # what pax says of all members, and of the next one
    while at < window.size:
        head = window.read(at, BLOCK)
        if len(head) < BLOCK:
            raise Broken(f"it ends within a header at byte {at:,}")
        if not any(head):
            return
        _check(head, at)
        kind, size = head[156:157], _number(head[124:136], at)
        if kind in b"LKxg":
            text = _extra(window, at, size)
            if kind == b"L":
                own["path"] = _text(text)
            elif kind in b"xg":
                (own if kind == b"x" else wide).update(_pax(text, at))
            at = _after(at, size)
            continue
        said, own = wide | own, {}
        name = said.get("path") or _name(head)
        if "size" in said:
            size = _decimal(said["size"], at)
        plain = kind in b"0\0" or kind not in b"123456S"
        if not plain and kind != b"S":
            size = 0  # nothing follows a link or a folder, whatever its header says
        if at + BLOCK + size > window.size:
            over = at + BLOCK + size - window.size
            raise Broken(f"it is cut short: {shown(name)} at byte {at:,} would end {over:,} bytes after the file does")
        if kind != b"5" and not (plain and name.endswith("/")):
            yield Member(name, at + BLOCK, size, _refused(name, kind, said))
        at = _after(at, size)


def _after(at: int, size: int) -> int:
    return at + BLOCK + -(-size // BLOCK) * BLOCK


def _check(head: bytes, at: int) -> None:
    """The header's sum, its own field as blanks; bytes signed or not, as old archives have both."""
    try:
        said = int(head[148:156].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        said = -1
    plain = sum(head) - sum(head[148:156]) + 8 * 32
    if said != plain and said != plain - 256 * sum(b > 127 for b in head[:148] + head[156:]):
        raise Broken(f"the header at byte {at:,} has a wrong checksum")


def _number(field: bytes, at: int) -> int:
    """Octal digits, or base 256 as GNU writes what is too large for them."""
    if field[0] in (0o200, 0o377):
        value = int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0o377 else 0)
    else:
        try:
            value = int(field.split(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            raise Broken(f"the header at byte {at:,} has no number as its size") from None
    if value < 0:
        raise Broken(f"the header at byte {at:,} has a negative size")
    return value


def _decimal(text: str, at: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Broken(f"the header at byte {at:,} has no number as its size")
    return int(text)


def _extra(window: Window, at: int, size: int) -> bytes:
    if size > _LONGEST:
        raise Broken(f"the header at byte {at:,} has {size:,} bytes of names: more than {_LONGEST:,}")
    if at + BLOCK + size > window.size:
        raise Broken(f"it is cut short within a header at byte {at:,}")
    return window.read(at + BLOCK, size)


def _pax(text: bytes, at: int) -> dict[str, str]:
    """Records of ``LENGTH KEY=VALUE\\n``, the length that of the whole record."""
    out, start = {}, 0
    while start < len(text) and text[start]:
        digits, blank, _ = text[start : start + 20].partition(b" ")
        end = start + int(digits) if digits.isdigit() else 0
        key, equals, value = text[start + len(digits) + 1 : max(end - 1, 0)].partition(b"=")
        if not (blank and equals) or end > len(text) or text[end - 1 : end] != b"\n":
            raise Broken(f"the pax header at byte {at:,} is damaged")
        out[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        start = end
    return out


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(head: bytes) -> str:
    prefix = _text(head[345:500]) if head[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(head[:100])}" if prefix else _text(head[:100])


def _refused(name: str, kind: bytes, said: dict[str, str]) -> str:
    if kind in _KINDS:
        return f"it is {_KINDS[kind]}"
    if any(key.startswith("GNU.sparse") for key in said):
        return "it is a sparse file"
    if "\0" in name:
        return "its name holds a zero"
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        return "its name leads out of the archive"
    return ""
