"""The cache's folder: where it lies, how large it may be, who is at work in it. All of it can be made anew."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nearfar.errors import UserError

try:
    import fcntl
except ImportError:  # no locks: two processes may do the same work, each on a file of its own
    fcntl = None

DEFAULT_GB = 32.0
_OURS = re.compile(r"[0-9a-f]{32}\.(pixels|index|shards)")
_SIDE = re.compile(r"\.([0-9a-f]{32})\..*\.tmp")


class Short(OSError):
    """There is no room for what is to be written."""


@dataclass(frozen=True)
class Cache:
    """A folder of files that are named by hashes. In bytes: ``limit`` of all of them, ``largest`` of one set."""

    folder: Path
    limit: int
    largest: int

    def path(self, key: str, kind: str) -> Path:
        return self.folder / f"{key}.{kind}"

    def used(self, path: Path) -> None:
        """Note that a file has been used now."""
        with suppress(OSError):  # another's cache, which can be read only
            os.utime(path)

    @contextmanager
    def turn(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Alone at work on ``key``, among threads and processes; ``waiting`` is told where another one is at it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path(key, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _taken(fd):
                waiting()
                _lock(fd, "EX")
            yield
        finally:
            os.close(fd)  # and with it the lock, as when a process dies

    @contextmanager
    def side(self, key: str, size: int) -> Iterator[Side]:
        """A file to write to, for who has the turn at ``key``; gone at the end unless committed.

        Raises ``Short`` where ``size`` bytes have no room even without what was not used for longest.
        """
        side = None
        try:
            with self.turn("room"):
                self._sweep(key)
                self._make_room(size)
                fd, name = tempfile.mkstemp(".tmp", f".{key}.", self.folder)
                side = Side(Path(name), os.fdopen(fd, "w+b"))
                side.file.truncate(size)  # so that others see what it will take
            yield side
        finally:
            if side is not None:
                side.drop()

    def _make_room(self, size: int) -> None:
        """Drop what was not used for longest until ``size`` bytes fit; nothing where they cannot."""
        held, total, promised = [], 0, 0
        for entry in os.scandir(self.folder):
            with suppress(OSError):  # another process has removed it
                about = entry.stat(follow_symlinks=False)
                if _OURS.fullmatch(entry.name):
                    held.append((about.st_mtime, about.st_size, Path(entry.path)))
                    total += about.st_size
                elif _SIDE.fullmatch(entry.name):
                    total += about.st_size
                    promised += max(0, about.st_size - getattr(about, "st_blocks", 0) * 512)
        room = spare(self.folder) - promised
        over, go = max(total + size - self.limit, size - room), []
        for _, taken, path in sorted(held):
            if over > 0 and not in_use(path):
                go.append(path)
                over -= taken
        if over > 0:
            tight = size > room
            raise Short(f"{self.folder} has {text(max(0, room))} free" if tight else
                        f"{self.folder} is bounded to {text(self.limit)} and what it holds is in use")  # fmt: skip
        for path in go:
            with suppress(OSError):
                path.unlink()

    def _sweep(self, mine: str) -> None:
        """Remove side files whose process was killed: nobody has the turn they belong to."""
        for entry in os.scandir(self.folder):
            known = _SIDE.fullmatch(entry.name)
            if known and (known[1] == mine or not in_use(self.path(known[1], "lock"))):
                with suppress(OSError):
                    os.unlink(entry.path)


@dataclass
class Side:
    """A file that is written beside its place."""

    path: Path
    file: BinaryIO

    def commit(self, path: Path) -> None:
        """Put it in its place, whole."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.path, path)

    def drop(self) -> None:
        """Remove what has not been committed."""
        with suppress(OSError):  # what is in its buffer has no room either
            self.file.close()
        with suppress(OSError):
            os.unlink(self.path)


def find(largest_gb: float | None = None) -> Cache | None:
    """The cache by the environment: NEARFAR_CACHE (a folder, or off) and NEARFAR_CACHE_GB."""
    limit = _bytes("NEARFAR_CACHE_GB", os.environ.get("NEARFAR_CACHE_GB") or DEFAULT_GB)
    largest = limit if largest_gb is None else min(limit, _bytes("cache_gb", largest_gb))
    folder = os.environ.get("NEARFAR_CACHE", "")
    if folder.lower() == "off":
        return None
    if not folder:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        folder = os.path.join(home, "nearfar")
    return Cache(Path(os.path.abspath(os.path.expanduser(folder))), limit, largest)


def _bytes(name: str, given: str | float) -> int:
    try:
        size = float(given)
    except ValueError:
        size = -1.0
    if not 0 <= size < 1e9:
        raise UserError(f"{name} = {given}: give a number of gigabytes, such as {DEFAULT_GB:g}")
    return int(size * 2**30)


def spare(folder: Path) -> int:
    """Bytes that may still be taken of a disk: the last gigabyte, or twentieth of a small one, is left alone."""
    disk = shutil.disk_usage(folder)
    return disk.free - min(2**30, disk.total // 20)


def share(file: BinaryIO) -> None:
    """Mark an open file as in use for as long as it, or a map of it, is open."""
    if fcntl is not None:
        _lock(file.fileno(), "SH")


def in_use(path: Path) -> bool:
    """Whether anybody holds a lock on a file, or that cannot be told."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return fcntl is None or _taken(fd, unknown=True)
    finally:
        os.close(fd)


def _taken(fd: int, unknown: bool = False) -> bool:
    """Take a file's lock; True where another has it, ``unknown`` where this disk has no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return unknown


def _lock(fd: int, kind: str) -> None:
    with suppress(OSError):  # a disk without locks
        fcntl.flock(fd, {"EX": fcntl.LOCK_EX, "SH": fcntl.LOCK_SH}[kind])


def text(size: float) -> str:
    """Bytes for a reader.

    >>> text(3_500_000), text(42 * 2**30)
    ('3.34 MB', '42 GB')
    """
    for unit, least in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if size >= least:
            return f"{size / least:.3g} {unit}" if size / least < 1000 else f"{size / least:,.0f} {unit}"
    return f"{size:.0f} bytes"
