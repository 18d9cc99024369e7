"""The section on corrupted and augmented images, and its table for the terminal."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from nearfar.report import plots
from nearfar.report.load import Folder, read
from nearfar.report.sections import figure

_JUDGES = {"linear": "linear probe", "kNN": "kNN"}


def _words(name: str) -> str:
    return name.replace("_", " ").replace("jpeg", "JPEG")


def _half(cell: dict[str, Any]) -> str:
    return f"±{(cell['high'] - cell['low']) / 2:.3f}"


def _number(cell: dict[str, Any]) -> str:
    return "–" if cell["value"] is None else f"{cell['value']:.3f}"


def section(folder: Folder) -> str:
    """Pictures, accuracy by corruption and severity, the mean beside the baselines', the bars of sensitivity."""
    held = folder.results.get("robustness")
    if not held:
        return "<p>Not measured: <code>nearfar evaluate RUN --robust</code> does.</p>"
    p, judged = held["protocol"], held["corruptions"]
    said = f"{p['title'].capitalize()}, of {p['of']:,}; strengths: {p['parameters']}. Left out: {p['left out']}."
    parts = [f"<p class=soft>{escape(said)}</p>", _pictures(folder, p["tried"])]
    if judged:
        parts += [_heat(judged["nearfar"]["linear"], p), _beside(judged, p)]
    else:
        parts.append("<p>No labels were there to judge corrupted images by.</p>")
    return "".join(parts) + _sensitivity(held["sensitivity"])


def _pictures(folder: Folder, tried: list[str]) -> str:
    pictures = folder.gallery.get("corrupted", ())
    if len(pictures) != len(tried) + 1:
        return ""
    figures = "".join(figure(x, _words(name)) for x, name in zip(pictures[1:], tried))
    return (f'<p>One image at severity 3:</p><div class="strip" style="flex-wrap:wrap">'
            f'{figure(pictures[0], "as it is", "first")}{figures}</div>')  # fmt: skip


def _tinted(cell: dict[str, Any], low: float, high: float) -> str:
    """A cell of the heat map: the fuller, the more accurate."""
    share = (cell["value"] - low) / max(high - low, 1e-9)
    return (f'<td title="{cell["low"]:.3f} to {cell["high"]:.3f}" style="background:rgba(var(--tint),'
            f'{0.05 + 0.55 * share:.2f})">{cell["value"]:.3f}</td>')  # fmt: skip


def _heat(found: dict[str, Any], protocol: dict[str, Any]) -> str:
    """Accuracy of the linear probe on our features, corruption by severity."""
    cells = [c for row in found["corruptions"].values() for c in row["severity"]] + [found["clean"]]
    low, high = (f(c["value"] for c in cells) for f in (min, max))
    head = "".join(f"<th>{escape(str(s))}</th>" for s in protocol["severities"])
    body = ""
    for name, row in found["corruptions"].items():
        mark = "" if name in protocol["mean over"] else " *"
        tints = "".join(_tinted(c, low, high) for c in row["severity"])
        body += (f"<tr><td>{escape(_words(name))}{mark}</td>{tints}<td>{row['mean']['value']:.3f}"
                 f"<small>{_half(row['mean'])}</small></td><td>{_drop(row['drop'])}</td></tr>")  # fmt: skip
    return (f"<p>Accuracy of the linear probe on our features by severity; as they are, {found['clean']['value']:.3f} "
            f"{_half(found['clean'])}. Drop: of that accuracy.</p>"
            f'<div class="wide"><table><tr><th>corruption</th>{head}<th>mean</th><th>drop</th></tr>{body}</table></div>'
            "<p class=soft>* Not in the overall mean. Point at a cell for its 95 % interval.</p>")  # fmt: skip


def _drop(cell: dict[str, Any]) -> str:
    return "–" if cell["value"] is None else f"{round(100 * cell['value']) + 0} %"


def _beside(judged: dict[str, Any], protocol: dict[str, Any]) -> str:
    """Mean corruption accuracy and drop, ours beside the untrained encoder's and raw pixels'."""
    body = ""
    for name, held in judged.items():
        for judge, called in _JUDGES.items():
            f = held[judge]
            cells = "".join(f"<td>{f[k]['value']:.3f}<small>{_half(f[k])}</small></td>" for k in ("clean", "mean"))
            body += f"<tr><td>{escape(name)}, {called}</td>{cells}<td>{_drop(f['drop'])}</td></tr>"
    return (f"<p>Mean over {sum(n in protocol['tried'] for n in protocol['mean over'])} corruptions and their five "
            'severities:</p><div class="wide"><table><tr><th>embedding</th><th>as they are</th><th>corrupted</th>'
            f"<th>drop</th></tr>{body}</table></div>")  # fmt: skip


def _sensitivity(parts: dict[str, dict[str, Any]]) -> str:
    """Bars, and the numbers under them."""
    spaces = list(next(iter(parts.values())))
    heads = "".join(f"<th>{escape(s).replace(' ', '<br>')}</th>" for s in spaces)
    judged = "linear" in next(iter(parts.values()))["nearfar"]
    body = ""
    for name, held in parts.items():
        body += f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{_number(held[s]['cosine'])}</td>" for s in spaces)
        cell = held["nearfar"].get("linear")
        body += f"<td>{_number(cell)}<small>{_half(cell)}</small></td></tr>" if cell else "</tr>"
    last = next(reversed(parts.values()))
    body += "<tr><td><i>another image</i></td>" + "".join(f"<td>{_number(last[s]['other'])}</td>" for s in spaces)
    body += "<td></td>" * judged + "</tr>"
    accuracy = "<th>linear probe<br>on the views</th>" * judged
    return ("<p>Each augmentation of the run's policy alone, at its strength: how far it moves features, beside how far "
            "another image is. 0: ignored; 1: as if it were another image.</p>"
            f'<div class="half">{plots.sensitivities(parts)}</div><p>Mean cosine of an image and its view:</p>'
            f'<div class="wide"><table>'
            f"<tr><th>augmentation</th>{heads}{accuracy}</tr>{body}</table></div>")  # fmt: skip


def print_table(run: Path) -> None:
    """Mean accuracy over severities by corruption, and the mean over the corruptions, for a run's folder."""
    from rich.console import Console
    from rich.table import Table

    held = read(run).results["robustness"]
    judged, console = held["corruptions"], Console(width=100, markup=False, emoji=False)
    if judged:
        table = Table(title=f"{held['protocol']['title']}: accuracy of the linear probe, mean over severities")
        table.add_column("corruption")
        for name in judged:
            table.add_column(name, justify="right")
        columns = [held["linear"] for held in judged.values()]
        write = lambda name, cells: table.add_row(name, *(f"{c['value']:.3f} {_half(c)}" for c in cells))  # noqa: E731
        write("as they are", [c["clean"] for c in columns])
        for name in held["protocol"]["tried"]:
            star = "" if name in held["protocol"]["mean over"] else " *"
            write(_words(name) + star, [c["corruptions"][name]["mean"] for c in columns])
        write("mean (without *)", [c["mean"] for c in columns])
        table.add_row("drop", *(_drop(c["drop"]) for c in columns))
        console.print(table)
    table = Table(title="sensitivity to each augmentation alone (0: ignored, 1: as another image)")
    spaces = list(next(iter(held["sensitivity"].values())))
    table.add_column("augmentation")
    for name in spaces:
        table.add_column(name, justify="right")
    for name, row in held["sensitivity"].items():
        table.add_row(name, *(_number(row[s]["sensitivity"]) for s in spaces))
    console.print(table)
