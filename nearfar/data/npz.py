"""The one reader of .npz files: whatever is wrong with one is one kind of error, and bombs are not unpacked."""

from __future__ import annotations

import sys
import warnings
import zipfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nearfar.data.limits import TooLarge, check_unpacked
from nearfar.errors import UserError, one_line


class Unreadable(UserError):
    """What a file holds is no .npz of plain arrays, or not as it was written."""


def read(path: Path, wanted: Container[str] | None = None) -> dict[str, np.ndarray | None]:
    """The arrays of an .npz by name, of members that are not ``wanted`` None; an .npy is one named ``x``.

    Raises ``Unreadable`` for what cannot be read, ``FileNotFoundError`` where there is no file.
    """
    try:
        with open(path, "rb") as file, unwarned():  # a cut file is closed, too
            if zipfile.is_zipfile(file):
                _refuse_bombs(file, wanted)
            file.seek(0)
            held = np.load(file, allow_pickle=False)
            if isinstance(held, np.ndarray):
                return {"x": held}
            with held:
                parts = {key: held[key] if wanted is None or key in wanted else None for key in held.files}
    except (FileNotFoundError, Unreadable):
        raise
    except TooLarge as error:
        raise Unreadable(str(error)) from None
    except Exception as error:  # damaged zip, damaged deflate, encryption, pickles, headers that are no Python
        raise Unreadable(unpickled(error)) from None
    for name, part in parts.items():
        if part is not None and not (isinstance(part, np.ndarray) and _is_text(part)):
            raise Unreadable(f"its member {name[:50]!r} is no array, or holds text that is none")
    return parts


@contextmanager
def unwarned() -> Iterator[None]:
    """Without what NumPy has to say of headers as they were written of old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_text(part: np.ndarray) -> bool:
    """False of text with numbers that stand for no letter: NumPy takes them, and no encoder does."""
    if part.dtype.kind != "U":
        return True
    codes = np.frombuffer(part.tobytes(), part.dtype.byteorder + "u4")
    return not codes.size or int(codes.max()) <= sys.maxunicode


def _refuse_bombs(file: BinaryIO, wanted: Container[str] | None) -> None:
    """By the sizes that the archive states, before anything is unpacked; zipfile gives no more than those."""
    with zipfile.ZipFile(file) as archive:
        members = [m for m in archive.infolist() if wanted is None or m.filename.removesuffix(".npy") in wanted]
    check_unpacked(sum(m.file_size for m in members), sum(m.compress_size for m in members), "it")


def unpickled(error: Exception) -> str:
    """NumPy takes whatever it does not know for a pickle, and says so."""
    text = one_line(error)
    if "pickle" in text or "Python objects" in text:
        return "it is damaged or holds Python objects: save numbers"
    return text
