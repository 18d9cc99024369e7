"""The page's section of transfers: tables beside random weights, gains, pictures of what was found."""

from __future__ import annotations

import base64
import io
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nearfar.data import limits
from nearfar.report.load import Folder, arrays
from nearfar.report.sections import cell

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")  # nothing else goes into a style
_HOW = "<p>Not done yet: <code>nearfar transfer RUN SOURCE</code> does.</p>"


def transfers(folder: Folder) -> str:
    """Every task that was transferred to, one after another."""
    parts = [_one(path.parent) for path in sorted((folder.path / "transfer").glob("*/results.json"))]
    return "".join(parts) or _HOW


def _one(path: Path) -> str:
    try:
        held = limits.json_of(path / "results.json")
        rows, columns = held["rows"], held["columns"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"<p class=soft>{escape(path.name)}: results.json cannot be read.</p>"
    settings = held["protocol"]["settings"]
    facts = (f"{held['source']} · head {settings['head']} · {settings['steps']} steps of {settings['batch']} · judged on "
             f"{held['protocol']['judged on pictures']:,} pictures")  # fmt: skip
    head = "".join(f"<th>{escape(c)}</th>" for c in columns) + _class_heads(rows)
    body = ""
    for row in rows:
        best = {c: max(r["cells"][c]["value"] for r in rows if r["labels"] == row["labels"]) for c in columns}
        cells = "".join(cell(c["value"], c["low"], c["high"], c["value"] == best[name])
                        for name, c in ((name, row["cells"][name]) for name in columns))  # fmt: skip
        body += (f"<tr><td>{escape(str(row['labels'] or 'all'))}</td><td>{escape(row['start'])}</td><td>{escape(row['mode'])}</td>"
                 f"{cells}{_class_cells(row)}</tr>")  # fmt: skip
    gains = "".join(
        f"<li>{escape(g['title'])}: pre-training adds {g['value']:+.3f} {escape(g['column'])} "
        f"({g['low']:+.3f} to {g['high']:+.3f}): {'real' if g['real'] else 'not told from nothing'}</li>"
        for g in held["gains"] if g["column"] == columns[0])  # fmt: skip
    notes = "".join(f"<p class=soft>{escape(str(n))}</p>" for n in held.get("notes", []))
    return (f"<h3>{escape(held['task'])}</h3><p class=soft>{escape(facts)}</p><div class=wide><table><tr><th>labels</th>"
            f"<th>encoder</th><th>mode</th>{head}</tr>{body}</table></div><ul>{gains}</ul>{notes}{_legend(held)}{_pictures(path)}")  # fmt: skip


def _legend(held: dict[str, Any]) -> str:
    """Which colour is which class."""
    named = held.get("legend") or {}
    return "<p>" + " ".join(f'<span class="dot" style="background:{escape(c)}"></span>{escape(str(name))}'
                            for name, c in named.items() if _COLOUR.fullmatch(c)) + "</p>" if named else ""  # fmt: skip


def _class_number(row: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
    """Which of the classes' numbers is shown, and of each class; none where there are many."""
    held = row["per_class"]
    key = next((k for k in ("AP50", "IoU", "f1") if held and k in held[0]), "")
    return key, [(c["name"], c[key]) for c in held] if key and len(held) <= 6 else []


def _class_heads(rows: list[dict[str, Any]]) -> str:
    key, held = _class_number(rows[0])
    return "".join(f"<th>{escape(key)}<br>{escape(str(name))}</th>" for name, _ in held)


def _class_cells(row: dict[str, Any]) -> str:
    return "".join(f"<td>{value:.3f}</td>" for _, value in _class_number(row)[1])


def _pictures(path: Path) -> str:
    """A line a test picture: the truth, then what each row of the first seed found."""
    drawn = {k: v for k, v in arrays(path / "pictures.npz").items() if k != "protocol"}
    lines: dict[str, list[tuple[str, np.ndarray]]] = {}
    for key, pixels in drawn.items():
        at, _, rest = key.partition("/")
        name, _, row = rest.rpartition("/")
        lines.setdefault(f"{at}/{name}", []).append((row, pixels))
    out = ""
    for line in lines.values():
        line.sort(key=lambda item: item[0] != "truth")
        out += '<div class="strip found">' + "".join(_figure(pixels, row) for row, pixels in line) + "</div>"
    return out


def _figure(pixels: np.ndarray, caption: str) -> str:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=85)
    data = base64.b64encode(held.getvalue()).decode()
    return (f'<figure><img src="data:image/jpeg;base64,{data}" alt="{escape(caption)}"><figcaption>{escape(caption)}'
            "</figcaption></figure>")  # fmt: skip
