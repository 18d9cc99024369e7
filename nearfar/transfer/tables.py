"""What a transfer has done so far, row by row on disk, and the table of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_TIMES = 2000


class Cells:
    """The trainings that are done, a line each in a file; those of another protocol are passed over."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        self.path = path
        text = json.dumps(protocol, sort_keys=True, default=str)
        self.protocol = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._held: dict[str, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:  # cut by a kill: it is done again
                continue
            if row.get("protocol") == self.protocol:
                self._held[_key(row)] = row

    def has(self, key: dict[str, Any]) -> bool:
        return _key(key) in self._held

    def add(self, row: dict[str, Any]) -> None:
        row = row | {"protocol": self.protocol}
        whole = not self.path.is_file() or self.path.read_bytes()[-1:] in (b"\n", b"")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._held[_key(row)] = row

    def rows(self, keys: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that were asked for, in the order of their keys."""
        return [self._held[_key(k)] for k in keys]


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row[name] for name in ("labels", "seed", "start", "mode", "weights")])


def interval(drawn: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % of the mean over seeds, by the bootstrap over seeds and test items. drawn (seeds, draws of the items)

    Each time seeds are drawn again with replacement, and a draw of the test items, the same for all of them: two levels
    (Davison & Hinkley 1997, §3.8). With one seed, the interval over test items alone.
    """
    rng = np.random.default_rng(seed)
    n, times = drawn.shape
    seeds = rng.integers(0, n, (_TIMES, n))
    items = rng.integers(0, times, _TIMES) if n > 1 else np.arange(times)
    means = np.stack([drawn[s, i].mean() for s, i in zip(seeds, items)])
    low, high = np.nanquantile(means, (0.025, 0.975))
    return float(low), float(high)


def summary(rows: Iterable[dict[str, Any]], columns: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """The table: a row for each amount of labels, start and mode, means over seeds; and what pre-training adds.

    A difference is pre-trained less random with the same seed, the same labelled pictures and the same test items drawn
    again; it is real where its interval leaves out 0.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["labels"], row["mode"], row["start"]), []).append(row)
    table, gains = [], []
    for (labels, mode, start), held in groups.items():
        held = sorted(held, key=lambda r: r["seed"])
        cells = {}
        for c in columns:
            low, high = interval(_drawn(held, c))
            values = [r["results"][c]["value"] for r in held]
            cells[c] = {"value": float(np.mean(values)), "low": low, "high": high, "seeds": values}
        seconds = float(np.median([r["seconds"] for r in held]))
        table.append({"labels": labels, "mode": mode, "start": start, "cells": cells, "pictures": held[0]["pictures"],
                      "per_class": _classes(held), "seconds": seconds})  # fmt: skip
        other = groups.get((labels, mode, "random"))
        if start == "pre-trained" and other:
            gains += [_gain(labels, mode, c, held, other) for c in columns]
    order = {"random": 0, "pre-trained": 1, "frozen": 0, "fine-tuned": 2}
    asked = list(dict.fromkeys(r["labels"] for r in table))
    table.sort(key=lambda r: (asked.index(r["labels"]), order[r["start"]] + order[r["mode"]]))
    return {"rows": table, "gains": gains, "columns": list(columns), "classes": list(classes)}


def _drawn(held: list[dict[str, Any]], column: str) -> np.ndarray:
    return np.array([r["drawn"][column] for r in held], np.float64)  # (seeds, draws)


def _gain(labels: Any, mode: str, column: str, ours: list[dict], theirs: list[dict]) -> dict[str, Any]:
    by_seed = {r["seed"]: r for r in theirs}
    pairs = [(a, by_seed[a["seed"]]) for a in ours if a["seed"] in by_seed]
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    low, high = interval(_drawn(a, column) - _drawn(b, column))
    values = [x["results"][column]["value"] - y["results"][column]["value"] for x, y in pairs]
    title = f"{labels or 'all'} label{'s' * (labels != 1)}, {mode}"
    return {"title": title, "labels": labels, "mode": mode, "column": column, "value": float(np.mean(values)),
            "low": low, "high": high, "seeds": values, "real": bool(low > 0 or high < 0)}  # fmt: skip


def _classes(held: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds of each class's numbers."""
    out = []
    for same in zip(*(r["per_class"] for r in held)):
        numbers = {k for k, v in same[0].items() if isinstance(v, int | float)}
        out.append({k: float(np.mean([s[k] for s in same])) if k in numbers else v for k, v in same[0].items()})
    return out


def render(result: dict[str, Any]) -> None:
    """Print the table, and which gains are real."""
    from rich.console import Console
    from rich.table import Table

    spread = max(len(r["cells"][c]["seeds"]) for r in result["rows"] for c in result["columns"])
    table = Table(title=f"{result['task']}, {spread} seed{'s' * (spread > 1)}, judged on "
                        f"{result['protocol']['judged on pictures']:,} test pictures")  # fmt: skip
    for head in ("labels", "encoder", "mode"):
        table.add_column(head)
    for head in result["columns"]:
        table.add_column(head, justify="right")
    for row in result["rows"]:
        cells = (row["cells"][c] for c in result["columns"])
        table.add_row(str(row["labels"] or "all"), row["start"], row["mode"],
                      *(f"{c['value']:.3f}\n{c['low']:.3f}–{c['high']:.3f}" for c in cells))  # fmt: skip
    console = Console(width=None, markup=False, emoji=False)
    console.print(table)
    for gain in result["gains"]:
        if gain["column"] == result["columns"][0]:
            console.print(f"{gain['title']}: pre-training adds {gain['value']:+.3f} "
                          f"{gain['column']} ({gain['low']:+.3f} to {gain['high']:+.3f}), "
                          f"{'real' if gain['real'] else 'not told from nothing'}", highlight=False)  # fmt: skip
