"""A run's encoder for use elsewhere: a sentence-transformers folder, ONNX, or its weights alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from nearfar.errors import UserError
from nearfar.exports import onnx, sentence_transformers, tokens, weights
from nearfar.run import Run, load

_FILES = (".onnx", ".safetensors")


def export(run: Run | str | Path, out: str | Path, *, force: bool = False) -> tuple[Path, ...]:
    """Write a run's encoder so that others can load it; whole or not at all. -> what was written

    Args:
        run: a run, or its folder.
        out: ``NAME.onnx``; ``NAME.safetensors``, the weights alone; else a folder for sentence-transformers, of texts.
            Of texts, ``NAME.tokenizer.json`` lies beside a file.
        force: replace what was exported there before.

    What is loaded gives the vectors of :meth:`Run.embed`: features before the projector, not normalised. Raises
    ``UserError`` where an encoder has no such form.
    """
    run, out = run if isinstance(run, Run) else load(run), Path(out)
    made = _writers(run, out)
    for path in made:
        _check_free(path, path.suffix.lower() not in _FILES and path == out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    sides = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in made}
    try:
        for path, write in made.items():
            write(sides[path])
        for path, side in sides.items():
            _move(side, path)
    finally:
        for side in sides.values():
            _remove(side)
    return tuple(made)


def _writers(run: Run, out: Path) -> dict[Path, Callable[[Path], None]]:
    """What is to be written where, what is asked for last."""
    suffix = out.suffix.lower()
    if suffix not in _FILES:
        sentence_transformers.check(run)
        return {out: lambda side: sentence_transformers.write(run, side)}
    write = onnx.write if suffix == ".onnx" else weights.write
    if suffix == ".onnx":
        onnx.check()
    beside = {out.with_suffix(".tokenizer.json"): lambda side: tokens.write(run, side)} if run.recipe.is_text else {}
    return beside | {out: lambda side: write(run, side)}


def _check_free(path: Path, folder: bool, force: bool) -> None:
    if not path.exists():
        return
    if not force:
        raise UserError(f"{path} is there already: pass another name, or --force to replace it")
    if not (path / sentence_transformers.MARK if folder else path).is_file():
        raise UserError(f"{path} is not what was exported before: pass another name")


def _move(side: Path, path: Path) -> None:
    """Put it in its place; a folder that was there goes aside first."""
    if not path.is_dir():
        side.replace(path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(old)
    side.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
