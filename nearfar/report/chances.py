"""Sections on the probe's chances, and on what test items find among themselves."""

from __future__ import annotations

from html import escape
from typing import Any

from nearfar.report import plots
from nearfar.report.load import Folder
from nearfar.report.sections import cell


def calibration(folder: Folder) -> str:
    """A reliability diagram of the probe on our features, and each embedding's measures of its chances."""
    judged = (folder.results.get("evaluation") or {}).get("judgements") or {}
    found = {name: c for name, j in judged.items() if (c := j.get("linear", {}).get("metrics", {}).get("calibration"))}
    if "nearfar" not in found:
        return "<p>No labels were there to judge by, or <code>nearfar evaluate RUN</code> has not been run anew.</p>"
    heads = {"top5": "top-5", "log_loss": "log loss", "brier": "Brier", "ece": "calibration error"}
    body = ""
    for name, c in found.items():
        edges = c.get("intervals") or {}
        cells = "".join(cell(c[k], *edges[k]) if k in edges else f"<td>{c[k]:.3f}</td>" for k in heads)
        body += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    table = _table("embedding", list(heads.values()), body)
    return (f'<div class="half">{plots.reliability(found["nearfar"]["reliability"], found["nearfar"]["ece"])}</div>{table}'
            "<p class=soft>Top-5: the truth is among the five likeliest. Log loss and Brier score: lower is better, and "
            "both punish what is sure and wrong. Calibration error: how far sureness and accuracy lie apart, over bins "
            "by size; chance alone makes it larger than 0.</p>")  # fmt: skip


def among(folder: Folder) -> str:
    """Retrieval and clustering among the test items, where they were asked for."""
    held: dict[str, Any] = (folder.results.get("evaluation") or {}).get("more") or {}
    if not held:
        return "<p>Not judged: <code>nearfar evaluate RUN --more</code> does.</p>"
    heads = list(next(iter(held.values())))
    body = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(cell(c[h]["value"], c[h]["low"], c[h]["high"]) for h in heads) + "</tr>" for name, c in held.items()
    )  # fmt: skip
    return _table("embedding", heads, body) + (
        "<p class=soft>Recall@1: the nearest is of the same class. MAP@R: how much of the first R, as many as the class "
        "has, is. MRR: one over the place of the first that is. NMI, AMI, ARI, purity: do k-means' clusters agree with "
        "the classes; 1 is the same, and AMI and ARI are 0 by chance.</p>")  # fmt: skip


def _table(first: str, heads: list[str], body: str) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return f'<div class="wide"><table><tr><th>{first}</th>{head}</tr>{body}</table></div>'
