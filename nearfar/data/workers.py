"""Decoders at work: one pool of threads that stays, and batches asked for ahead of time."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from nearfar.data.pictures import decode, quiet, reason
from nearfar.data.source import shown
from nearfar.errors import UserError

DIGEST = 16  # bytes of the BLAKE2b of a file's content
_WHOLE = 2**26  # bytes up to which a file is read at once, so that what is hashed is what is decoded
_LOCK = threading.Lock()
_pool: ThreadPoolExecutor | None = None


class Content(Protocol):
    """An image file that lies within another one; its text is its name."""

    def read(self, most: int | None = None) -> bytes:
        """The file, or no more than its first ``most`` bytes."""
        ...


Place = Path | Content


class Extent(NamedTuple):
    """Bytes of a file."""

    path: str
    at: int
    size: int
    name: str

    def read(self, most: int | None = None) -> bytes:
        size = self.size if most is None else min(self.size, most)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.at)
            content = file.read(size)
        if len(content) < size:
            raise OSError(errno.EIO, f"{shown(self.path)} has become shorter")
        return content

    def __str__(self) -> str:
        return self.name


class Failed(NamedTuple):
    """Why a file cannot be used; ``lasting`` where the same content would fail again."""

    why: str
    lasting: bool


def workers() -> int:
    """Threads that decode. Pillow lets go of the GIL while it decodes and resizes, so they work at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores + 1)


def pool() -> ThreadPoolExecutor:
    """The process's decoders, started when first wanted."""
    global _pool
    with _LOCK:
        if _pool is None:
            _pool = ThreadPoolExecutor(workers(), "nearfar-decoder")
        return _pool


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _LOCK
    _pool, _LOCK = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def attempt(job: Callable, *given: object) -> Any:
    """What a job gives, or ``Failed``."""
    try:
        return job(*given)
    except Exception as error:  # Pillow's decoders raise all kinds
        return Failed(reason(error), not (isinstance(error, MemoryError) or getattr(error, "errno", None)))


def each(job: Callable, things: Iterable, ahead: int = 256) -> Iterator:
    """``attempt(job, thing)`` for each on the pool, in order, at most ``ahead`` of them begun and not asked for."""
    waiting: deque[Future] = deque()
    try:
        for thing in things:
            waiting.append(pool().submit(attempt, job, thing))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for left in waiting:
            left.cancel()


def digest(place: Place) -> bytes:
    """Of a file's content, read in pieces."""
    if not isinstance(place, Path):
        return hashlib.blake2b(place.read(), digest_size=DIGEST).digest()
    with open(place, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST)).digest()


def decode_at(place: Place, channels: int, size: int) -> np.ndarray:
    """``decode`` of a file wherever it lies."""
    return decode(place if isinstance(place, Path) else BytesIO(place.read()), channels, size)


def digest_and_decode(place: Place, channels: int, size: int) -> tuple[bytes, np.ndarray | Failed]:
    """One reading of a file for both."""
    if isinstance(place, Path) and os.stat(place).st_size > _WHOLE:
        return digest(place), attempt(decode, place, channels, size)
    content = place.read_bytes() if isinstance(place, Path) else place.read()
    sha = hashlib.blake2b(content, digest_size=DIGEST).digest()
    return sha, attempt(decode, BytesIO(content), channels, size)


def still(place: Place, pixels: np.ndarray | Failed, shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels of a file that could be decoded when its folder was opened, or one line that says why no longer."""
    if isinstance(pixels, Failed) or pixels.shape != shape:
        why = pixels.why if isinstance(pixels, Failed) else "its size has changed"
        raise UserError(f"{shown(place)} cannot be read any more: {why}")
    return pixels


class Decoding:
    """A batch on its way: decoders are at work on it, and ``result`` waits for them."""

    def __init__(self, places: list[Place], shape: tuple[int, int, int], size: int) -> None:
        self._hush = ExitStack()
        self._hush.enter_context(quiet())
        self._places, self._shape = places, shape
        self._jobs: list[Future | None] = [pool().submit(attempt, decode_at, p, shape[2], size) for p in places]

    def result(self) -> np.ndarray:
        """The pixels in the order asked for. (B, H, W, C) uint8"""
        out = np.empty((len(self._places), *self._shape), np.uint8)  # (B, H, W, C)
        try:
            for i, job in enumerate(self._jobs):
                out[i] = still(self._places[i], job.result(), self._shape)
                self._jobs[i] = None  # its pixels are held once
        finally:
            self.cancel()
        return out

    def cancel(self) -> None:
        """Let go of what is not begun."""
        for job in self._jobs:
            if job is not None:
                job.cancel()
        self._jobs = []
        self._hush.close()


def streamed(place: Callable[[int], Place], shape: tuple[int, int, int], size: int) -> Callable[[np.ndarray], Decoding]:
    """A starter of batches that are decoded anew each time, for what is kept nowhere."""
    return lambda index: Decoding([place(int(i)) for i in index], shape, size)
