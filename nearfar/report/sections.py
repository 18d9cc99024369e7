"""The sections of the page, each a function of the run's folder; what is missing says which command gives it."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from nearfar.report import plots, texts
from nearfar.report.load import Folder

_NO_GALLERY = "<p>Not gathered yet: <code>nearfar evaluate RUN</code> does.</p>"


def _picture(pixels: np.ndarray) -> str:
    """(h, w, 1 | 3) uint8 -> a data URI."""
    held = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def cell(value: float, low: float, high: float, best: bool = False) -> str:
    """A number of a table with its interval under it."""
    return f"<td{' class=best' * best}>{value:.3f}<small>{low:.3f} to {high:.3f}</small></td>"


def figure(pixels: np.ndarray, caption: str, kind: str = "", alt: str = "") -> str:
    return (f'<figure class="{kind}"><img class="px" src="{_picture(pixels)}" alt="{escape(alt or caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>")  # fmt: skip


def _cells(folder: Folder) -> list[dict[str, Any]]:
    return (folder.results.get("evaluation") or {}).get("rows") or []


def header(folder: Folder, title: str) -> str:
    """Name, what it is, and one sentence that says what it is worth."""
    recipe, last = folder.recipe, folder.metrics[-1] if folder.metrics else {}
    policy = [f"policy {recipe['policy']}"] if "policy" in recipe else []
    facts = [str(recipe.get("encoder", "")), *policy, f"batch {recipe.get('batch', '?')}"]
    if last:
        facts += [f"{last['step']:,} steps", f"{last.get('time', 0) / 60:.1f} minutes of training"]
    rows = {row["embedding"]: row["cells"] for row in _cells(folder)}
    said = ""
    if folder.item == "text":
        said = texts.headline(rows)
    for column in ("10 labels linear", "5 labels linear", "1 label linear", "linear"):
        if all(column in rows.get(name, {}) for name in ("nearfar", "raw pixels", "untrained encoder")):
            ours, raw, first = (rows[n][column]["value"] for n in ("nearfar", "raw pixels", "untrained encoder"))
            where = "all labels" if column == "linear" else column.replace(" linear", " a class")
            said = (f"With {where} a linear probe reads these features at {ours:.3f}; raw pixels give {raw:.3f}, "
                    f"the untrained encoder {first:.3f}.")  # fmt: skip
            break
    return (f"<header><h1>{escape(title)}</h1><p class=soft>{escape(' · '.join(facts))}</p>"
            f"<p class=headline>{escape(said)}</p></header>")  # fmt: skip


def downstream(folder: Folder) -> str:
    rows = _cells(folder)
    if not rows:
        return "<p>No labels were there to judge by, or <code>nearfar evaluate RUN SOURCE</code> has not been run.</p>"
    heads = list(rows[0]["cells"])
    best = {h: max(r["cells"][h]["value"] for r in rows) for h in heads}
    body = ""
    for row in rows:
        body += f"<tr><td>{escape(row['embedding'])}</td>"
        for h in heads:
            c = row["cells"][h]
            mark = ' class="best"' if c["value"] == best[h] else ""
            body += f"<td{mark}>{c['value']:.3f}<small>±{(c['high'] - c['low']) / 2:.3f}</small></td>"
        body += "</tr>"
    head = "".join(f"<th>{escape(h).replace(' ', '<br>')}</th>" for h in heads)
    notes = "".join(f"<p class=soft>{escape(str(n))}</p>" for n in folder.results["evaluation"].get("notes", []))
    return f'<div class="wide"><table><tr><th>embedding</th>{head}</tr>{body}</table></div>{notes}'


def doctor(folder: Folder) -> str:
    """What was found while it trained, in words."""
    if folder.findings is None:
        return "<p>No doctor watched this run.</p>"
    if not folder.findings:
        rows = f"{len(folder.metrics)} rows" if folder.metrics else "the run"
        return f'<div class="finding none"><p><b>Nothing was found</b> in {rows}.</p></div>'
    parts = []
    for found in folder.findings:
        seen, cause, remedy = (escape(str(found.get(key, "?"))) for key in ("seen", "cause", "remedy"))
        parts.append(f'<div class="finding"><p><b>Step {escape(str(found["step"]))}: {seen}.</b></p>'
                     f"<p>Likely cause: {cause}.</p><p>What to do: {remedy}.</p></div>")  # fmt: skip
    return "".join(parts)


def training(folder: Folder) -> str:
    marks = [found["step"] for found in folder.findings or () if isinstance(found["step"], int)]
    return plots.curves(folder.metrics, marks) or "<p>No step has been logged yet.</p>"


def views(folder: Folder) -> str:
    g = folder.gallery
    if "views" not in g:
        return _NO_GALLERY
    if "texts" in g:
        return texts.views(folder)
    out = ""
    for original, seen, said in zip(g["views_original"], g["views"], g["views_text"]):
        strip = "".join(figure(v, str(t), alt="a view") for v, t in zip(seen, said))
        out += f'<div class="strip">{figure(original, "original", "first")}{strip}</div>'
    return out


def neighbours(folder: Folder) -> str:
    g = folder.gallery
    if "neighbours" not in g:
        return _NO_GALLERY
    names, labels, classes = g["texts" if "texts" in g else "names"], g["labels"], g["classes"]
    called = lambda i: str(classes[labels[i]]) if len(classes) and labels[i] >= 0 else str(names[i])  # noqa: E731
    if "texts" in g:
        return texts.neighbours(folder, called)
    out = ""
    for row, cosine in zip(g["neighbours"], g["neighbour_cosine"]):
        out += f'<div class="strip">{figure(g["thumbs"][row[0]], called(row[0]), "first")}'
        for i, c in zip(row[1:], cosine[1:]):
            known = labels[i] >= 0
            same = labels[i] == labels[row[0]]
            mark = ("✓ " if same else "✗ ") if known else ""
            kind = ("same" if same else "other") if known else ""
            out += figure(g["thumbs"][i], f"{mark}{called(i)} · {c:.2f}", kind)
        out += "</div>"
    return out


_MAP_JS = """
(() => { const d = JSON.parse(document.getElementById('map-data').textContent), c = document.getElementById('map'),
 g = c.getContext('2d'), card = document.getElementById('card'), sprite = new Image(), off = new Set();
 if (d.sprite) sprite.src = d.sprite; const W = c.width, H = c.height, pad = 16;
 const px = d.xy.map(([x, y]) => [pad + x * (W - 2 * pad), pad + y * (H - 2 * pad)]);
 const colour = i => d.labels[i] < 0 ? d.colours[0] : d.colours[d.labels[i] % d.colours.length];
 let at = -1;
 const draw = () => { g.clearRect(0, 0, W, H); px.forEach(([x, y], i) => { if (off.has(d.labels[i])) return;
   g.beginPath(); g.arc(x, y, i === at ? 9 : 4, 0, 7); g.fillStyle = colour(i); g.globalAlpha = i === at ? 1 : .75; g.fill(); }); };
 const show = i => { at = i; draw(); if (i < 0) return; card.textContent = '';
   if (d.sprite) { const t = document.createElement('canvas'); t.width = d.w; t.height = d.h; t.style.imageRendering = 'pixelated';
   t.getContext('2d').drawImage(sprite, (i % d.cols) * d.w, Math.floor(i / d.cols) * d.h, d.w, d.h, 0, 0, d.w, d.h); card.append(t); }
   const p = document.createElement('div'); p.textContent = (d.labels[i] >= 0 ? d.classes[d.labels[i]] + ' · ' : '') + d.names[i];
   card.append(p); };
 const near = e => { const r = c.getBoundingClientRect(), x = (e.clientX - r.left) * W / r.width, y = (e.clientY - r.top) * H / r.height;
   let best = 400, k = -1; px.forEach(([a, b], i) => { const q = (a - x) ** 2 + (b - y) ** 2;
   if (q < best && !off.has(d.labels[i])) { best = q; k = i; } }); return k; };
 c.addEventListener('mousemove', e => show(near(e))); c.addEventListener('click', e => show(near(e)));
 c.addEventListener('keydown', e => { const s = {ArrowRight: 1, ArrowLeft: -1}[e.key]; if (s) { show((at + s + px.length) % px.length);
   e.preventDefault(); } });
 const legend = document.getElementById('legend'); d.classes.forEach((n, k) => { const b = document.createElement('button');
   const s = document.createElement('span'); s.className = 'dot'; s.style.background = d.colours[k % d.colours.length];
   b.append(s, n); b.setAttribute('aria-pressed', 'true'); b.onclick = () => { off.has(k) ? off.delete(k) : off.add(k);
   b.setAttribute('aria-pressed', String(!off.has(k))); draw(); }; legend.append(b); });
 draw(); c.dataset.points = px.length; })();
"""


def map_(folder: Folder) -> str:
    """Dots on a canvas, pictures packed in one sprite, a few lines of script."""
    g = folder.gallery
    if "map" not in g or not len(g["map"]):
        return _NO_GALLERY
    xy = g["map"] - g["map"].min(0)
    xy = xy / np.maximum(xy.max(0), 1e-9)
    names = g["texts" if "texts" in g else "names"]
    data = {"xy": xy.round(4).tolist(), "labels": g["labels"].tolist(), "names": [str(s) for s in names],
            "classes": [str(s) for s in g["classes"]], "colours": plots.COLOURS,
            **(_sprite(g["thumbs"]) if "thumbs" in g else {})}  # fmt: skip
    text = json.dumps(data).replace("<", "\\u003c")  # no text of a file can end the script
    return (
        '<div class="map"><canvas id="map" width="960" height="720" tabindex="0" role="img" aria-label="Map of the '
        'embedding; arrow keys walk over the dots"></canvas><aside><div id="card" aria-live="polite">Point at a '
        f'dot.</div><div id="legend"></div></aside></div><script type="application/json" id="map-data">{text}</script>'
        f"<script>{_MAP_JS}</script>"
    )


def _sprite(thumbs: np.ndarray) -> dict[str, Any]:
    """All pictures in one. (N, h, w, c)"""
    n, h, w, c = thumbs.shape
    cols = int(np.ceil(np.sqrt(n)))
    sprite = np.zeros((-(-n // cols) * cols, h, w, c), np.uint8)
    sprite[:n] = thumbs
    sprite = sprite.reshape(-1, cols, h, w, c).transpose(0, 2, 1, 3, 4).reshape(-1, cols * w, c)
    return {"sprite": _picture(sprite), "cols": cols, "w": w, "h": h}


def similarity(folder: Folder) -> str:
    g = folder.gallery
    if "positives" not in g:
        return _NO_GALLERY
    return f'<div class="half">{plots.histogram(g["positives"], g["negatives"], folder.item)}</div>'


def spectrum(folder: Folder) -> str:
    g, geometry = folder.gallery, folder.results.get("geometry") or {}
    if "spectrum" not in g:
        return _NO_GALLERY
    keys = {"nearfar": "spectrum", "projection": "spectrum_projection", "untrained encoder": "spectrum_untrained"}
    named = {n: (g[k], geometry.get(n, {}).get("effective_rank")) for n, k in keys.items() if k in g}
    heads = {"effective_rank": "effective rank", "rankme": "RankMe", "lidar": "LiDAR", "alpha_req": "α-ReQ",
             "alignment": "alignment", "uniformity": "uniformity"}  # fmt: skip
    said = {k: t for k, t in heads.items() if any(k in v for v in geometry.values())}
    rows = "".join(
        f"<tr><td>{escape(n)}, {v['dimensions']:,} dimensions</td>"
        + "".join(f"<td>{v[k]:.3g}</td>" if v.get(k) is not None else "<td></td>" for k in said) + "</tr>"
        for n, v in geometry.items()
    )  # fmt: skip
    table = (f'<div class="wide"><table><tr><th>space</th>{"".join(f"<th>{t}</th>" for t in said.values())}</tr>{rows}'
             "</table></div><p class=soft>Effective rank and RankMe: as if so many directions were used alike. LiDAR: of "
             "them, those that tell items apart in spite of augmentation, by two views of each. α-ReQ: how fast the spectrum falls, about 1 "
             "is best. Alignment: how far apart two views of an item lie (0 is best). Uniformity: how evenly items "
             "spread over the sphere (lower is more even). The untrained encoder is often well aligned because it tells "
             "nothing apart.</p>")  # fmt: skip
    return f'<div class="half">{plots.spectra(named)}</div>{table if rows else ""}'


def classes(folder: Folder) -> str:
    judged = (folder.results.get("evaluation") or {}).get("judgements", {}).get("nearfar", {}).get("linear")
    if not judged:
        return "<p>No labels were there to judge by.</p>"
    m = judged["metrics"]
    rows = "".join(
        f"<tr><td>{escape(c['name'])}</td><td>{c['precision']:.3f}</td><td>{c['recall']:.3f}</td><td>{c['f1']:.3f}</td>"
        f"<td>{c['support']:,}</td></tr>" for c in sorted(m["per_class"], key=lambda c: c["f1"])
    )  # fmt: skip
    for kind in ("macro", "micro", "weighted"):
        v = m[kind]
        rows += (f"<tr><td><i>{kind}</i></td><td>{v['precision']:.3f}</td><td>{v['recall']:.3f}</td>"
                 f"<td>{v['f1']:.3f}</td><td></td></tr>")  # fmt: skip
    table = ('<div class="wide"><table><tr><th>class</th><th>precision</th><th>recall</th><th>F1</th>'
             f"<th>{folder.item}s</th></tr>"

             f"{rows}</table></div>")  # fmt: skip
    return table + _confusion(m["confusion"], [c["name"] for c in m["per_class"]])


def _confusion(matrix: list[list[int]], names: list[str]) -> str:
    if len(names) > 20:
        return "<p class=soft>The matrix of more than 20 classes is in results.json.</p>"
    head = "".join(f"<th>{escape(n)}</th>" for n in names)
    body = ""
    for name, row in zip(names, matrix):
        total = max(sum(row), 1)
        cells = "".join(f'<td style="background:rgba(var(--tint),{v / total * 0.75:.2f})">{v or "·"}</td>' for v in row)
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    return f'<div class="wide"><table class="confusion"><tr><th>truth ↓ said →</th>{head}</tr>{body}</table></div>'


def _list(values: dict[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(json.dumps(v) if isinstance(v, dict) else str(v))}</dd>"
                   for k, v in values.items())  # fmt: skip
    return f"<dl>{rows}</dl>"


def skipped(folder: Folder) -> str:
    """Every image that could not be read, and why."""
    if folder.skipped is None:
        return "<p>Not noted.</p>"
    if not folder.skipped:
        return f"<p>None: every {folder.item} could be read.</p>"
    cells = (tuple(escape(str(row.get(key, "?"))) for key in ("part", "name", "reason")) for row in folder.skipped)
    rows = "".join(f"<tr><td>{part}</td><td>{name}</td><td>{why}</td></tr>" for part, name, why in cells)
    return (f'<details{" open" * (len(folder.skipped) <= 20)}><summary>{len(folder.skipped):,} {folder.item}s</summary>'
            f'<div class="wide"><table><tr><th>part</th><th>{folder.item}</th><th>why</th></tr>{rows}</table></div></details>')


def made(folder: Folder) -> str:
    """Recipe, environment, clock and protocol."""
    parts = [f"<details open><summary>recipe.toml</summary><pre>{escape(folder.recipe_text)}</pre></details>"]
    held = {"environment": folder.environment, "seconds": folder.clock,
            "protocol": (folder.results.get("evaluation") or {}).get("protocol") or {}}  # fmt: skip
    parts += [f"<details open><summary>{k}</summary>{_list(v)}</details>" for k, v in held.items() if v]
    return "".join(parts)
