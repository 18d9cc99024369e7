"""Decoders at work: one pool of threads that stays, and batches asked for ahead of time."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nearfar.data.pictures import decode, quiet, reason
from nearfar.data.source import shown
from nearfar.errors import UserError

DIGEST = 16  # bytes of the BLAKE2b of a file's content
_WHOLE = 2**26  # bytes up to which a file is read at once, so that what is hashed is what is decoded
_LOCK = threading.Lock()
_pool: ThreadPoolExecutor | None = None


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


def digest(path: Path) -> bytes:
    """Of a file's content, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST)).digest()


def digest_and_decode(path: Path, channels: int, size: int) -> tuple[bytes, np.ndarray | Failed]:
    """One reading of a file for both."""
    if os.stat(path).st_size > _WHOLE:
        return digest(path), attempt(decode, path, channels, size)
    content = path.read_bytes()
    sha = hashlib.blake2b(content, digest_size=DIGEST).digest()
    return sha, attempt(decode, BytesIO(content), channels, size)


def still(path: Path, pixels: np.ndarray | Failed, shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels of a file that could be decoded when its folder was opened, or one line that says why no longer."""
    if isinstance(pixels, Failed) or pixels.shape != shape:
        why = pixels.why if isinstance(pixels, Failed) else "its size has changed"
        raise UserError(f"{shown(path)} cannot be read any more: {why}")
    return pixels


class Decoding:
    """A batch on its way: decoders are at work on it, and ``result`` waits for them."""

    def __init__(self, paths: list[Path], shape: tuple[int, int, int], size: int) -> None:
        self._hush = ExitStack()
        self._hush.enter_context(quiet())
        self._paths, self._shape = paths, shape
        self._jobs: list[Future | None] = [pool().submit(attempt, decode, p, shape[2], size) for p in paths]

    def result(self) -> np.ndarray:
        """The pixels in the order asked for. (B, H, W, C) uint8"""
        out = np.empty((len(self._paths), *self._shape), np.uint8)  # (B, H, W, C)
        try:
            for i, job in enumerate(self._jobs):
                out[i] = still(self._paths[i], job.result(), self._shape)
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


def streamed(path: Callable[[int], Path], shape: tuple[int, int, int], size: int) -> Callable[[np.ndarray], Decoding]:
    """A starter of batches that are decoded anew each time, for what is kept nowhere."""
    return lambda index: Decoding([path(int(i)) for i in index], shape, size)
