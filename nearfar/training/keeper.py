"""A run's checkpoints: folders with a manifest of SHA-256, written to the side, synchronised and renamed.

    checkpoints/step-00000300/method.safetensors    the method's weights and buffers: what is used
                              training.safetensors  the optimiser, generators: what going on needs; none at the end
                              manifest.json         what each file is to be, what was trained on what, where it stood

A folder of that name is whole: whoever is killed meanwhile leaves a hidden one, which the next one removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nearfar.errors import UserError, one_line

MANIFEST = "manifest.json"
METHOD, TRAINING = "method.safetensors", "training.safetensors"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written."""

    path: Path
    about: dict[str, Any]
    files: tuple[str, ...]

    @property
    def step(self) -> int:
        return int(_NAME.fullmatch(self.path.name)[1])

    def tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.path / name)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{self.path / name} cannot be read ({one_line(error)})") from None


def checked(path: Path, only: str = "") -> Checkpoint:
    """Open a checkpoint after holding every file, or ``only`` one, against the manifest, and that against itself.

    Raises ``UserError`` that names the file which is missing, cut short, or differs by as little as a bit.
    """
    manifest = path / MANIFEST
    try:
        text = manifest.read_bytes()
        body = json.loads(text)["body"]
        sound = text == _manifest(body) and _is_whole(body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        why = "is missing" if not manifest.exists() else "is not as it was written"
        raise UserError(f"{manifest} {why}: this checkpoint cannot be trusted")
    for name, (size, sha) in body["files"].items():
        if only and name != only:
            continue
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing")
        if file.stat().st_size != size:
            raise UserError(f"{file} is damaged: it has {file.stat().st_size:,} bytes and had {size:,}")
        if sha != _sha256(file):
            raise UserError(f"{file} is damaged: its content does not match its SHA-256")
    return Checkpoint(path, body["about"], tuple(body["files"]))


def _is_whole(body: Mapping[str, Any]) -> bool:
    """Whether a manifest has what it must: the method's file among those that there are, each with size and digest."""
    files = body["files"]
    known = METHOD in files and {*files} <= {METHOD, TRAINING} and all(len(held) == 2 for held in files.values())
    return known and isinstance(body["about"], dict)


def listed(folder: Path) -> list[Path]:
    """The checkpoints there are, the last first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in found if _NAME.fullmatch(p.name)), key=lambda p: p.name, reverse=True)


def newest(folder: Path, say: Callable[[str], None], only: str = "") -> Checkpoint:
    """The last checkpoint that is as it was written; those that are not are named.

    Raises ``UserError`` where there is none.
    """
    bad = ""
    for path in listed(folder):
        try:
            found = checked(path, only)
        except UserError as error:
            say(f"{error}; taking the checkpoint before")
            bad = bad or str(error)
        else:
            return found
    raise UserError(f"{folder} holds no checkpoint that can be used: {bad or 'none has been written yet'}")


class Keeper:
    """Writes checkpoints while training goes on, one at a time, on a thread.

    Args:
        folder: where they lie.
        keep: how many of the last stay; beside them the one with the best ``score`` does.
        say: is told in one line where one could not be written; the ones before stand.
    """

    def __init__(self, folder: Path, keep: int = 2, say: Callable[[str], None] = lambda text: None) -> None:
        self._folder, self._keep, self._say = folder, keep, say
        self._pool = ThreadPoolExecutor(1, "nearfar-checkpoint")
        self._pool.submit(int).result()  # its thread is had now: where memory is short there may be none later
        self._job: Future | None = None
        self._error: Exception | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)

    @property
    def busy(self) -> bool:
        return self._job is not None and not self._job.done()

    def write(self, step: int, files: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint of CPU tensors that nobody changes; ``about`` is JSON with ``score`` or None."""
        self.wait()
        self._job = self._pool.submit(self._write, step, files, about)

    def wait(self) -> bool:
        """Wait for what is being written; whether it was, or nothing was to be."""
        if self._job is not None:
            self._job.result()
            self._job = None
        return self._error is None

    def _write(self, step: int, files: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
        path = self._folder / f"step-{step:08}"
        side = self._folder / f".{path.name}.{os.getpid()}"
        try:
            shutil.rmtree(side, ignore_errors=True)
            side.mkdir()
            held = {}
            for name, tensors in files.items():
                save_file(dict(tensors), side / name)
                held[name] = ((side / name).stat().st_size, _sha256(side / name))
                _synchronise(side / name)
            (side / MANIFEST).write_bytes(_manifest({"about": dict(about), "files": held}))
            _synchronise(side / MANIFEST)
            _synchronise(side)
            if path.exists():  # of an attempt that got as far as this step and is being repeated
                os.rename(path, self._folder / f".old-{path.name}")
            os.rename(side, path)
            _synchronise(self._folder)
            self._error = None
        except (OSError, SafetensorError, MemoryError) as error:
            self.failed(step, error)
        else:
            self._prune()
        finally:
            shutil.rmtree(side, ignore_errors=True)

    def failed(self, step: int, error: Exception) -> None:
        """Say that a checkpoint could not be written: a full disk, most of all."""
        self._error = error
        last = next((p.name for p in listed(self._folder)), None)
        stands = f"{last} stands" if last else "there is none yet"
        self._say(f"the checkpoint of step {step} could not be written ({one_line(error)}): {stands}")

    def _prune(self) -> None:
        """Remove all but the last few and the best."""
        for path in self._folder.glob(".old-*"):
            shutil.rmtree(path, ignore_errors=True)
        paths = listed(self._folder)
        scores = {p: s for p in paths if (s := _score(p)) is not None}
        best = max(scores, key=scores.get, default=None)
        for path in paths[self._keep :]:
            if path != best:
                away = self._folder / f".old-{path.name}"
                os.rename(path, away)
                shutil.rmtree(away, ignore_errors=True)


def _score(path: Path) -> float | None:
    try:
        return json.loads((path / MANIFEST).read_bytes())["body"]["about"].get("score")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _text(held: Mapping[str, Any]) -> bytes:
    return json.dumps(held, sort_keys=True, indent=1).encode()


def _manifest(body: Mapping[str, Any]) -> bytes:
    """The one way to write it, with its digest, so that whatever is written otherwise has been changed."""
    return _text({"body": body, "sha256": hashlib.sha256(_text(body)).hexdigest()})


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synchronise(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        if not path.is_dir():  # some disks do not synchronise folders
            raise
    finally:
        os.close(fd)
