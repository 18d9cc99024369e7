"""The file of a set's decoded pixels: a head, rows of uint8 that are memory-mapped, and what they were made from.

    head    4096 bytes: a magic line, JSON, and the SHA-256 of the head in the last 32; the JSON holds that of the tail
    rows    (N, H, W, C) uint8
    tail    a digest of every file, the CRC-32 and the 64-bit hash of every row, and as JSON why files have no row

Head, tail and length are checked at each opening; a row is checked when it is first read, as reading all of them
at each opening would take longer than what they save.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nearfar.data import cache
from nearfar.data.source import item_hash
from nearfar.data.workers import DIGEST

HEAD = 4096
_MAGIC = b"nearfar pixels 2\n"


class Damaged(OSError):
    """A file of the cache is not as it was written."""


@dataclass
class Pixels:
    """An open file of pixels."""

    path: Path
    rows: np.ndarray  # (N, H, W, C) uint8, mapped
    digests: np.ndarray  # (F, DIGEST) uint8 of every file's content; zeros where it is not to be trusted
    reasons: dict[int, str]  # files that have no row, and why
    sums: np.ndarray  # (N,) uint32
    hashes: np.ndarray  # (N,) uint64 of every row, as Source.item_hashes
    sound: np.ndarray  # (N,) bool: rows that have been checked
    inode: int

    def take(self, index: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Rows in the order asked for, and which of them are damaged. -> (B, H, W, C), places in the batch"""
        out = np.take(self.rows, index, axis=0)  # (B, H, W, C)
        damaged = []
        for place in np.flatnonzero(~self.sound[index]):
            row = index[place]
            if zlib.crc32(out[place]) == self.sums[row]:
                self.sound[row] = True
            else:
                damaged.append(int(place))
        return out, damaged

    def files(self) -> np.ndarray:
        """Which file each row is of. (N,)"""
        return np.setdiff1d(np.arange(len(self.digests)), np.fromiter(self.reasons, np.int64, len(self.reasons)))

    def remove(self) -> None:
        """Take the file away, unless another has taken its place."""
        with suppress(OSError):
            if os.stat(self.path).st_ino == self.inode:
                os.unlink(self.path)


class Writer:
    """Writes rows as they come; nothing is readable before ``finish``."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int]) -> None:
        self._file, self._shape, self._sums, self._hashes = file, shape, array("I"), array("Q")
        file.seek(HEAD)

    def add(self, row: np.ndarray) -> None:
        """The next row. (H, W, C) uint8"""
        row = np.ascontiguousarray(row)
        self._sums.append(zlib.crc32(row))
        self._hashes.append(item_hash(row))
        self._file.write(row.data)

    def finish(self, rule: str, digests: np.ndarray, reasons: Mapping[int, str]) -> None:
        """Write what the rows were made from, and the head."""
        tail = digests.tobytes() + np.array(self._sums, "<u4").tobytes() + np.array(self._hashes, "<u8").tobytes()
        tail += json.dumps(list(reasons.items())).encode()
        about = {"rule": rule, "shape": self._shape, "rows": len(self._sums), "files": len(digests),
                 "tail": len(tail), "sha256": hashlib.sha256(tail).hexdigest()}  # fmt: skip
        head = (_MAGIC + json.dumps(about).encode()).ljust(HEAD - 32, b" ")
        self._file.write(tail)
        self._file.truncate()
        self._file.seek(0)
        self._file.write(head + hashlib.sha256(head).digest())


def size(files: int, shape: tuple[int, int, int]) -> int:
    """Bytes that a set takes at most, with what its index takes, unless names and reasons are long."""
    return HEAD + files * (math.prod(shape) + DIGEST + 12 + 200) + 4096


def key(rule: str, digests: np.ndarray) -> str:
    """The name of a set's pixels: what they are decoded from, in order, and how."""
    sha = hashlib.blake2b(rule.encode(), digest_size=16)
    sha.update(digests.tobytes())
    return sha.hexdigest()


def rows_of(digests: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of the wanted digests lies, -1 where it does not. (n, DIGEST), (m, DIGEST) -> (m,)"""
    if not len(digests):
        return np.full(len(wanted), -1)
    own, keys = (np.ascontiguousarray(d[:, :8]).view(np.uint64)[:, 0] for d in (digests, wanted))
    order = np.argsort(own)
    rows = order[np.searchsorted(own, keys, sorter=order).clip(max=len(own) - 1)]
    return np.where((digests[rows] == wanted).all(1), rows, -1)


def head(path: Path) -> dict[str, Any]:
    """What a file of pixels says it is. Raises ``Damaged``."""
    with open(path, "rb") as file:
        return _head(file)


def _head(file: BinaryIO) -> dict[str, Any]:
    raw = file.read(HEAD)
    if len(raw) < HEAD or hashlib.sha256(raw[:-32]).digest() != raw[-32:] or not raw.startswith(_MAGIC):
        raise Damaged("its head is not as it was written")
    return json.loads(raw[len(_MAGIC) : -32])


def load(path: Path) -> Pixels | None:
    """Open a file of pixels; None where there is none. It is in use until the rows are let go. Raises ``Damaged``."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        cache.share(file)
        about = _head(file)
        n, files = about["rows"], about["files"]
        end = HEAD + n * math.prod(about["shape"])
        if os.fstat(file.fileno()).st_size != end + about["tail"]:
            raise Damaged("it is cut short or too long")
        tail = np.memmap(file, np.uint8, "r", end, (about["tail"],)).view(np.ndarray)
        if hashlib.sha256(tail).hexdigest() != about["sha256"]:
            raise Damaged("its tail is not as it was written")
        # a map keeps a copy of the file's descriptor, and with it the lock
        rows = np.memmap(file, np.uint8, "r", HEAD, (n, *about["shape"])).view(np.ndarray)
        inode = os.fstat(file.fileno()).st_ino
    at = files * DIGEST
    digests = tail[:at].reshape(files, DIGEST)
    sums, hashes = tail[at : at + 4 * n].view("<u4"), tail[at + 4 * n : at + 12 * n].view("<u8")
    reasons = dict(json.loads(tail[at + 12 * n :].tobytes()))
    return Pixels(path, rows, digests, reasons, sums, hashes, np.zeros(n, bool), inode)
