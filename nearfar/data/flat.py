"""Arrays in one .npz that are checked when it is opened and memory-mapped from then on."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

_PIECE = 2**22  # bytes that are looked at at a time
_LOCAL = struct.Struct("<26xHH")  # of a zip member's own head: how long its name and its extra field are


def write(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """As .npz, not compressed; zip keeps each member's CRC-32."""
    np.savez(file, **arrays)
    file.truncate(file.tell())


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays, mapped: what is written to them stays in memory. Raises all kinds where the file is damaged."""
    out = {}
    with open(path, "rb") as file, zipfile.ZipFile(file) as held:
        for member in held.infolist():
            if member.compress_type != zipfile.ZIP_STORED or not member.filename.endswith(".npy"):
                raise ValueError("it holds other things than arrays")
            file.seek(member.header_offset)
            start = member.header_offset + 30 + sum(_LOCAL.unpack(file.read(30)))
            file.seek(start)
            _check(file, member.file_size, member.CRC)
            file.seek(start)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, kind = read(file)
            if kind.hasobject or (fortran and len(shape) > 1):
                raise ValueError("it holds Python objects, or another order")
            room = start + member.file_size - file.tell()
            if kind.itemsize * int(np.prod(shape, dtype=object)) != room:
                raise ValueError("an array is not as long as its head says")
            out[member.filename[:-4]] = np.memmap(file, kind, "c", file.tell(), shape).view(np.ndarray) if room else \
                np.empty(shape, kind)  # fmt: skip
    return out


def _check(file: BinaryIO, size: int, crc: int) -> None:
    found = 0
    while size > 0:
        piece = file.read(min(size, _PIECE))
        if not piece:
            raise ValueError("it is cut short")
        found, size = zlib.crc32(piece, found), size - len(piece)
    if found != crc:
        raise ValueError("a checksum is wrong")
