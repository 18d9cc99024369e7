"""The page: sections in reading order, one template, no network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from html import escape
from pathlib import Path

from nearfar.errors import one_line
from nearfar.report import chances, leaks, robustness, sections, texts, transfer
from nearfar.report.load import Folder, read

_CSS = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6776; --paper: #fcfcfa; --line: #dcdfe4; --good: #00795a;
  --bad: #b4470a; --tint: 0,114,178 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #a0a9b7; --paper: #14171c; --line: #343a44;
  --good: #3ecba0; --bad: #f0975a; --tint: 86,180,233 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.2rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.2rem; margin: 3rem 0 .3rem }
p { margin: .3rem 0 .9rem; max-width: 46rem } .soft, caption, small { color: var(--soft) }
.headline { font-size: 1.15rem; margin: 1rem 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { font-weight: 600; vertical-align: bottom }
td small { display: block; font-size: .75rem } td.best { font-weight: 700 }
svg { width: 100%; height: auto; max-width: 62rem } .half svg { max-width: 38rem }
img.px { image-rendering: pixelated; display: block; background: #8884 }
.finding { border-left: 4px solid var(--bad); padding: .1rem 0 .1rem 1rem; margin: .8rem 0 } .finding.none { border-color:
  var(--good) } .finding p { margin: .2rem 0 } .finding b { font-weight: 600 }
.strip { display: flex; gap: .6rem; margin: 0 0 .9rem; overflow-x: auto } .strip figure { margin: 0; width: 84px; flex: none }
.strip img { width: 84px; height: auto; border: 3px solid transparent } .strip figcaption { font-size: .72rem; line-height: 1.25;
  color: var(--soft); overflow-wrap: anywhere }
.strip .first { border-right: 1px solid var(--line); padding-right: .6rem; width: 97px }
.pairs { flex-wrap: wrap } .pairs figure, .pairs img { width: 160px }
.found figure, .found img { width: 200px } .same img { border-color: var(--good) } .other img { border-color: var(--bad) }
.texts { border-left: 2px solid var(--line); padding-left: 1rem; margin: 0 0 1rem } .texts p { margin: .2rem 0 } .texts ul {
  margin: 0; padding: 0; list-style: none; font-size: .9rem } .texts li { padding: .1rem 0 .1rem .6rem; border-left: 3px solid
  transparent } .texts .same { border-color: var(--good) } .texts .other { border-color: var(--bad) } td.said { text-align: left }
.map { display: flex; gap: 1rem; flex-wrap: wrap } .map canvas { width: min(100%, 40rem); aspect-ratio: 4/3; border: 1px solid
  var(--line); border-radius: 6px } .map aside { width: 12rem; font-size: .85rem }
.map button { all: unset; display: block; cursor: pointer; padding: .12rem 0 } .map button:focus-visible { outline: 2px solid }
.map button[aria-pressed=false] { opacity: .35 } .dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .5em } #card { min-height: 9rem; margin-bottom: 1rem } #card canvas { width: 96px; aspect-ratio: auto; border: 0 }
.confusion td { text-align: center; padding: .3rem .45rem; min-width: 2.4rem; border: 0 }
pre { background: #8881; padding: 1rem; border-radius: 6px; overflow-x: auto; font-size: .8rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .85rem } dd { margin: 0;
  overflow-wrap: anywhere } dt { color: var(--soft) } details summary { cursor: pointer }
@media print { details { display: block } body { max-width: none } }
"""

_SECTIONS: list[tuple[str, str, Callable[[Folder], str]]] = [
    ("What the features are worth", "Accuracy on images that neither training nor any choice has seen; the best of "
     "each column in bold, half of the 95 % interval under it.", sections.downstream),
    ("Scores against cosines", "Each dot a pair of test texts: how alike people find them, and how near the embedding has them. "
     "The better the embedding, the straighter the cloud rises.", texts.pairs),
    ("What the doctor says", "While it trained, each logged row was looked at for collapse, divergence and standstill.",
     sections.doctor),
    ("How training went", "The loss should fall; positives should part from negatives; effective rank and spread "
     "should not collapse towards 1 and 0. Where the doctor found something there is a vertical line.",
     sections.training),
    ("What the augmentations did", "Left the original, then views of it: what training was told to keep together. "
     "If you could not tell what it shows, neither can the encoder.", sections.views),
    ("Nearest neighbours", "Left a query, then the images nearest to it by cosine of their features.",
     sections.neighbours),
    ("A map of the embedding", "t-SNE of the features: near on the map is near in the embedding; far says little. "
     "Point at a dot to see its picture; click a class to hide it.", sections.map_),
    ("Positives against negatives", "Two views of one picture should be more alike than two pictures; where the two "
     "heaps overlap, the encoder mistakes one for the other.", sections.similarity),
    ("How many directions are used", "A spectrum that falls at once has collapsed; a flat one uses all dimensions.",
     sections.spectrum),
    ("Class by class", "From the linear probe on the features, hardest class first; rows of the matrix are the truth.",
     sections.classes),
    ("What changed images do", "Do the probes, fitted on clean images, still read the features of noisy, blurred, fogged "
     "and compressed ones; and what has the encoder been taught to ignore?", robustness.section),
    ("Do its chances mean what they say", "The linear probe's probabilities on test images: of those it is 80 % sure of, "
     "80 % should be right. 95 % intervals under the numbers.", chances.calibration),
    ("Test images that the training part holds too", "Recoded, mirrored, shifted, brightened: nearer than chance would "
     "have it, by the nearest training image's distance over the tenth nearest's. Such images are remembered, not "
     "recognised.", leaks.duplicates),
    ("What test images find among themselves", "Each ranked against the others by cosine, and k-means with as many "
     "clusters as classes; nothing is fitted. 95 % intervals under the numbers.", chances.among),
    ("Transferred to other tasks", "Heads on this encoder and on the same one with random weights, trained on the same few "
     "labelled pictures; 95 % intervals over test pictures and seeds; below, test pictures of the first seed.",
     transfer.transfers),
    ("Images that were left out", "They could not be read, and nothing was learnt from them nor judged by them.",
     sections.skipped),
    ("How it was made", "Everything needed to make it again.", sections.made),
]  # fmt: skip


def _shown(folder: Folder) -> list[tuple[str, str, Callable[[Folder], str]]]:
    """The sections in the words of what was learnt from; of texts without what is for pictures alone."""
    if "text" not in folder.recipe:
        return _SECTIONS
    words = {"images": "texts", "image": "text", "pictures": "texts", "picture": "text", "Images": "Texts"}
    said = lambda how: re.sub(r"\b([Ii]mages?|pictures?)\b", lambda m: words[m[0]], how)  # noqa: E731
    kept = [s for s in _SECTIONS if s[2] not in (robustness.section, leaks.duplicates, transfer.transfers)]
    return [(said(head), said(how), make) for head, how, make in kept]


def render(folder: Folder) -> str:
    """The whole page as text."""
    title = f"{folder.recipe.get('method', '?')} on {folder.recipe.get('source', '?')}"
    made = ((head, how, _made(make, folder)) for head, how, make in _shown(folder))
    parts = [f"<section><h2>{escape(head)}</h2><p class=soft>{escape(how)}</p>{body}</section>" for head, how, body in made if body]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)} · nearfar</title>'
        f"<style>{_CSS}</style></head><body>{_made(lambda held: sections.header(held, title), folder)}{''.join(parts)}</body></html>"
    )


def _made(make: Callable[[Folder], str], folder: Folder) -> str:
    """A part of the page, or a line in its place: a file that was changed by hand or by chance spoils that part alone."""
    try:
        return make(folder)
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        return (f"<p>This part could not be drawn: a file of the run is not as it was written "
                f"({escape(type(error).__name__)}: {escape(one_line(error))}).</p>")  # fmt: skip


def write(run: Path) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all; returns its path."""
    run = Path(run)
    page = render(read(run))
    out, side = run / "report.html", run / f".report.{os.getpid()}.tmp"
    side.write_bytes(page.encode("utf-8", "replace"))  # half a surrogate pair is no text
    os.replace(side, out)
    return out
