"""Where a run's folder lies, whether it may be used, and how it is made: whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np

from nearfar import recipe as recipes
from nearfar.data import Source
from nearfar.environment import describe_environment
from nearfar.errors import UserError
from nearfar.recipe import Recipe
from nearfar.run import CHECKPOINTS, SKIPPED, TOKENIZER, skipped_lines
from nearfar.training.checkpoint import write_bytes
from nearfar.training.engine import Engine
from nearfar.training.lock import alone


def free_name(recipe: Recipe, again: bool = False) -> Path:
    """``runs/SOURCE-METHOD``, with a number where that is taken; ``again``: the last that was taken."""
    name = Path(str(recipe.source).rstrip("/")).name.replace(":", "-")
    stem = name.partition("{")[0].rstrip("-_.") or "run"  # of shards' pattern what comes before the numbers
    base = Path("runs") / f"{stem.split('.')[0] or stem}-{recipe.method}"
    path, last, n = base, base, 2
    while path.exists():
        path, last, n = base.with_name(f"{base.name}-{n}"), path, n + 1
    return last if again else path


def restarted() -> bool:
    """Whether torchrun or SLURM has started this command anew, after a process died or the job was requeued."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def restarted_in(folder: Path) -> bool:
    return restarted() and (folder / "recipe.toml").is_file()


def make(
    folder: Path, force: bool, recipe: Recipe, engine: Engine, data: Source, test: Source | None = None
) -> None:
    """Make the run's folder, whole or not at all; never write into one that holds anything, unless forced."""
    if folder.exists():
        refuse_if_used(folder, force)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "recipe.toml").is_file():
        raise UserError(f"{folder} holds other things than a run: --force will not delete it; pass another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    side = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        (side / CHECKPOINTS).mkdir(parents=True)
        write_bytes(side / "recipe.toml", recipes.to_toml(recipe))
        write_bytes(side / "engine.json", json.dumps(dataclasses.asdict(engine), indent=1))
        write_bytes(side / "environment.json", json.dumps(describe_environment(), indent=1))
        if data.origin is not None:
            write_bytes(side / TOKENIZER, data.origin.tokenizer.to_json())
        np.save(side / "seen.npy", data.item_hashes)
        write_bytes(side / SKIPPED, skipped_lines(data, test))
        (side / "doctor.jsonl").touch()  # empty: watched, and nothing found
        if folder.is_dir():
            shutil.rmtree(folder)
        os.rename(side, folder)
    finally:
        shutil.rmtree(side, ignore_errors=True)


def refuse_if_used(folder: Path, force: bool) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give --out a new folder")
    if not force and any(folder.iterdir()):
        again = f", --resume {folder} to go on with it" if (folder / "recipe.toml").is_file() else ""
        raise UserError(f"{folder} is in use: pass another --out{again}, or --force to replace it")
    if (folder / "recipe.toml").is_file():
        with alone(folder):
            pass
