"""The page's section of near-duplicates: pairs side by side, and what the numbers are without them."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from nearfar.report.load import Folder
from nearfar.report.sections import cell, figure


def duplicates(folder: Folder) -> str:
    """How many test images the training part holds too, the nearest pairs, and accuracy with and without them."""
    held: dict[str, Any] | None = folder.results.get("duplicates")
    if held is None:
        return "<p>Not looked for: there was no test part, or <code>nearfar evaluate RUN</code> has not been run anew.</p>"
    if "left out" in held:
        return f"<p>{escape(str(held['left out']))}.</p>"
    share, within = held["share"], held["within training"]
    said = (f"<p>{held['count']:,} of {held['of']:,} test images are near-duplicates of training images, {share['value']:.2%} "
            f"({share['low']:.2%} to {share['high']:.2%}), and {held['exact']:,} more are exact copies. Among {within['of']:,} "
            f"training images {within['count']:,} have a near-duplicate in the training part.</p>")  # fmt: skip
    return said + _pairs(folder, held["pairs"]) + _without(held.get("judged") or {})


def _pairs(folder: Folder, pairs: list[dict[str, Any]]) -> str:
    g = folder.gallery
    if "duplicates_test" not in g or not pairs:
        return ""
    out = ""
    for test, train, pair in zip(g["duplicates_test"], g["duplicates_train"], pairs):
        gap = np.full((test.shape[0], 1, test.shape[2]), 255, np.uint8)
        text = f"{pair['test']} | {pair['train']} · {pair['correlation']:.3f}"
        out += figure(np.concatenate([test, gap, train], 1), text, alt=f"test {pair['test']} beside {pair['train']}")
    return (f'<div class="strip pairs">{out}</div><p class=soft>Left the test image, right the training image; under '
            "them their names and the correlation of their pixels.</p>")  # fmt: skip


def _without(judged: dict[str, dict[str, dict[str, Any]]]) -> str:
    if not judged:
        return ""
    judges = list(next(iter(judged.values())))
    head = "".join(f"<th>{escape(j)}</th><th>{escape(j)}<br>without</th>" for j in judges)
    body = ""
    for name, cells in judged.items():
        numbers = (cells[j][which] for j in judges for which in ("all", "without"))
        text = "".join(cell(c["value"], c["low"], c["high"]) for c in numbers)
        body += f"<tr><td>{escape(name)}</td>{text}</tr>"
    return (f'<div class="wide"><table><tr><th>embedding</th>{head}</tr>{body}</table></div><p class=soft>Without: judged '
            "on the test images that are left; 95 % intervals under the numbers.</p>")  # fmt: skip
