"""Reads a run's folder; what is absent or cut is None, never a crash."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.data import limits, npz
from nearfar.errors import UserError


@dataclass(frozen=True)
class Folder:
    path: Path
    recipe: dict[str, Any]
    recipe_text: str
    metrics: list[dict[str, Any]]
    results: dict[str, Any]
    environment: dict[str, Any]
    clock: dict[str, Any]
    gallery: dict[str, np.ndarray]
    findings: list[dict[str, Any]] | None  # the doctor's; None where no doctor watched
    skipped: list[dict[str, Any]] | None  # images that were left out; None where that was not noted

    @property
    def item(self) -> str:
        """What was learnt from, one of them."""
        return "text" if "text" in self.recipe else "image"


def _json(path: Path) -> dict[str, Any]:
    try:
        held = limits.json_of(path)
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def arrays(path: Path) -> dict[str, np.ndarray]:
    """What an .npz holds; nothing where it is absent or cut."""
    try:
        return npz.read(path)
    except (OSError, npz.Unreadable):
        return {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl or doctor.jsonl up to a line cut short by a kill."""
    return [row for row in _lines(path) if _is_step(row.get("step"))]


def _is_step(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 2**53


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of one a line; lines that hold none are passed over."""
    rows = []
    try:
        lines = limits.bytes_of(path, limits.JSON).decode("utf-8", "replace").splitlines()
    except (OSError, limits.TooLarge):
        return rows
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read(path: Path) -> Folder:
    """Read what lies in a run's folder."""
    if not (path / "recipe.toml").is_file():
        raise UserError(f"{path} is no run: it holds no recipe.toml" if path.exists() else f"{path}: no such run")
    try:
        text = limits.bytes_of(path / "recipe.toml", limits.TOML).decode("utf-8")
        recipe = limits.toml_of(text)
    except (ValueError, OSError):  # no TOML, no UTF-8
        raise UserError(f"{path / 'recipe.toml'} is no TOML") from None
    return Folder(path, recipe, text, _rows(path / "metrics.jsonl"), _json(path / "results.json"),
                  _json(path / "environment.json"), _json(path / "clock.json"), arrays(path / "gallery.npz"),
                  _rows(path / "doctor.jsonl") if (path / "doctor.jsonl").is_file() else None,
                  _lines(path / "skipped.jsonl") if (path / "skipped.jsonl").is_file() else None)  # fmt: skip


def table_of(evaluation: dict[str, Any]) -> None:
    """Print the table of a results.json."""
    from rich.console import Console
    from rich.table import Table

    heads = list(evaluation["rows"][0]["cells"])
    table = Table(title=evaluation["protocol"]["title"])
    table.add_column("embedding")
    for head in heads:
        table.add_column(head.replace(" ", "\n"), justify="right")
    for row in evaluation["rows"]:
        cells = (row["cells"][h] for h in heads)
        table.add_row(row["embedding"], *(f"{c['value']:.3f}\n±{(c['high'] - c['low']) / 2:.3f}" for c in cells))
    Console(width=100, markup=False, emoji=False).print(table)
