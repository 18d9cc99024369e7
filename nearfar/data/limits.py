"""The largest inputs that are taken, each said once; what is above is refused before memory is taken for it."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

from nearfar.errors import UserError

PIXELS = 178_956_970  # of a picture, width × height: where Pillow takes one for a decompression bomb
UNPACKED, RATIO = 4 * 2**30, 100  # more than 4 GiB unpacked only where that is at most 100 times what it takes packed
JSON = 2 * 2**30  # bytes of annotations, of a run's results
XML = 8 * 2**20  # bytes of one picture's annotation
TOKENIZER = 2**28  # bytes of a tokeniser's file
TOML, DOTS = 2**18, 1000  # bytes of a recipe; dots in a line of it, as the time that a dotted key takes is quadratic


class TooLarge(UserError):
    """An input is above a stated limit."""


def check_unpacked(unpacked: int, packed: int, what: str) -> None:
    """Refuse what is packed too tightly to be anything but a bomb, by what it says of itself."""
    if unpacked > max(UNPACKED, RATIO * packed):
        raise TooLarge(f"{what} unpacks to {unpacked:,} bytes, more than {UNPACKED:,} and than {RATIO} times what it "
                       "takes: save it unpacked")  # fmt: skip


def bytes_of(path: Path, most: int) -> bytes:
    """A file's content, of which never more than ``most`` bytes are read. Raises ``TooLarge``, ``OSError``."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size <= most and len(raw := file.read(most + 1)) <= most:
            return raw
    raise TooLarge(f"it has more than {most:,} bytes")


def json_of(path: Path) -> Any:
    """What a JSON file holds. Raises ``TooLarge``, ``OSError``, ``ValueError`` (also where it nests too deeply)."""
    raw = bytes_of(path, JSON)
    try:
        return json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def toml_of(text: str) -> dict[str, Any]:
    """What TOML holds. Raises ``ValueError``, also where it nests too deeply."""
    if any(line.count(".") > DOTS for line in text.splitlines()):
        raise ValueError(f"it has a line with more than {DOTS:,} dots")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
