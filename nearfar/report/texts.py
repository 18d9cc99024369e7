"""What the report shows of texts, where it shows pictures of images: lines to read, and pairs against their scores."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np

from nearfar.report import plots
from nearfar.report.load import Folder

_WORST = 5


def headline(rows: dict[str, dict[str, Any]]) -> str:
    """One sentence that says what the embedding is worth, beside what needs no training."""
    columns = {"Spearman": "Its cosines follow the scores that people gave at ρ =",
               "recall@1": "Of its texts' nearest, this share is the right one:",
               "10 labels linear": "With 10 labels a class a linear probe reads these features at",
               "linear": "With all labels a linear probe reads these features at"}  # fmt: skip
    for column, said in columns.items():
        values = {name: cells[column]["value"] for name, cells in rows.items() if column in cells}
        if "nearfar" in values:
            others = [f"{name} gives {v:.3f}" for name, v in values.items() if name not in ("nearfar", "projection")]
            return f"{said} {values['nearfar']:.3f}; {', '.join(others)}."
    return ""


def views(folder: Folder) -> str:
    """Texts, and their views in words."""
    g, out = folder.gallery, ""
    plain = str(g.get("views_noise", "")) == "none"
    for original, seen in zip(g["views_original"], g["views"][:, :1] if plain else g["views"]):
        lines = "".join(f"<li>{escape(str(text))}</li>" for text in seen)
        out += f'<div class="texts"><p><b>{escape(str(original))}</b></p><ul>{lines}</ul></div>'
    if plain:
        out += ("<p class=soft>No words are changed: two views of a text differ by the encoder's dropout alone, and what "
                "is drawn are the tokens it reads.</p>")  # fmt: skip
    return out


def neighbours(folder: Folder, called: Callable[[int], str]) -> str:
    """Each query with the texts nearest to it."""
    g, out = folder.gallery, ""
    texts, labels = g["texts"], g["labels"]
    for row, cosine in zip(g["neighbours"], g["neighbour_cosine"]):
        lines = ""
        for i, c in zip(row[1:], cosine[1:]):
            known, same = labels[i] >= 0, labels[i] == labels[row[0]]
            kind = ("same" if same else "other") if known else ""
            mark = ("✓ " if same else "✗ ") + called(i) if known else ""
            lines += (f'<li class="{kind}"><span class=soft>{c:.2f}</span> {escape(str(texts[i]))} '
                      f"<small class=soft>{escape(mark)}</small></li>")  # fmt: skip
        head = f" <small class=soft>{escape(called(row[0]))}</small>" if labels[row[0]] >= 0 else ""
        out += f'<div class="texts"><p><b>{escape(str(texts[row[0]]))}</b>{head}</p><ul>{lines}</ul></div>'
    return out


def pairs(folder: Folder) -> str:
    """Cosines against the scores that people gave, and the pairs where they disagree most."""
    g = folder.gallery
    if "pair_scores" not in g:
        return ""
    scores, names = g["pair_scores"], [str(n) for n in g["pair_spaces"]]
    held = dict(zip(names, g["pair_cosines"]))
    plot = plots.against_scores(scores, {n: held[n] for n in names[:3]}, _spearman(folder))
    rows = ""
    for kind, order in (("too near", _disagreement(held["nearfar"], scores)),
                        ("too far", -_disagreement(held["nearfar"], scores))):  # fmt: skip
        for i in np.argsort(-order, kind="stable")[:_WORST]:
            a, b = (escape(str(t)) for t in g["pair_texts"][i])
            rows += (f"<tr><td>{kind}</td><td>{held['nearfar'][i]:.2f}</td><td>{scores[i]:.2f}</td>"
                     f"<td class=said>{a}<br>{b}</td></tr>")  # fmt: skip
    return (f'<div class="wide">{plot}</div><p>Where its cosines and people disagree most, by rank:</p><div class="wide">'
            f"<table><tr><th></th><th>cosine</th><th>score</th><th>pair</th></tr>{rows}</table></div>")  # fmt: skip


def _spearman(folder: Folder) -> dict[str, float]:
    rows = (folder.results.get("evaluation") or {}).get("rows") or []
    return {row["embedding"]: row["cells"]["Spearman"]["value"] for row in rows if "Spearman" in row["cells"]}


def _disagreement(cosine: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How far a pair stands higher among the cosines than among the scores, as a share of all. (n,)"""
    place = lambda v: np.argsort(np.argsort(v, kind="stable"), kind="stable") / len(v)  # noqa: E731
    return place(cosine) - place(scores)
