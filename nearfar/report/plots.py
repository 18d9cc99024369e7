"""Plots as inline SVG, readable in light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by most kinds of sight
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8B7500", "#7F7F7F", "#5B3FA0", "#1FB5A8"]
_INK = "#123456"  # stands for the text's colour, and becomes currentColor
_STYLE = {
    "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False, "font.family": "sans-serif",
}  # fmt: skip


def _svg(figure: Figure, name: str, alt: str) -> str:
    held = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font has not, and the browser's has
        figure.savefig(held, format="svg", transparent=True, metadata={"Date": None})
    svg = held.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1system-ui, sans-serif", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


def _numbers(rows: list[dict], key: str) -> tuple[list[float], list[float]]:
    pairs = [(r["step"], r[key]) for r in rows if isinstance(r.get(key), int | float) and abs(r[key]) < _LARGEST]
    return [p[0] for p in pairs], [p[1] for p in pairs]


_PANELS = [
    ("loss", {"loss": "loss", "chance": "telling nothing apart"}),
    ("kNN on held-out items, online", {"knn_online": "kNN"}),
    ("cosine", {"positive": "positives", "negative": "negatives"}),
    ("alignment of positives (0: best)", {"alignment": "alignment"}),
    ("uniformity (lower: more even)", {"uniformity": "uniformity"}),
    ("effective rank, bias corrected", {"effective_rank": "features",
                                        "effective_rank_projections": "projections"}),
    ("spread a dimension (1: even)", {"spread_features": "features", "spread": "projections",
                                      "spread_least": "their least tenth"}),
    ("prototypes in use", {"prototype_usage": "share"}),
    ("norm of the gradient", {"gradient": "gradient"}),
    ("growth of the encoder's weights", {"weight_growth": "growth"}),
    ("learning rate", {"lr": "lr"}),
    ("items a second", {"images_per_second": "rate"}),
]  # fmt: skip
_LARGEST = 3.4e38  # of float32; NaN is not below it
_NO_PANEL = {"step", "time", "share", "image_spread", "broken_at"}


def curves(rows: list[dict[str, Any]], marks: Sequence[int] = ()) -> str:
    """What was logged over steps, with a line at each step that is marked."""
    seen = {k for _, keys in _PANELS for k in keys} | _NO_PANEL
    more = sorted(k for k in {k for r in rows for k in r} - seen if re.fullmatch(r"\w{1,40}", k, re.ASCII))
    panels = [p for p in _PANELS + [(k, {k: k}) for k in more] if any(_numbers(rows, k)[0] for k in p[1])]
    if not panels:
        return ""
    lines = -(-len(panels) // 3)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 2.5 * lines), layout="constrained")
        axes = np.atleast_1d(figure.subplots(lines, 3, squeeze=False)).ravel()
        for axis, (title, keys) in zip(axes, panels):
            drawn = {key: label for key, label in keys.items() if _numbers(rows, key)[0]}
            for i, (key, label) in enumerate(drawn.items()):
                steps, values = _numbers(rows, key)
                axis.plot(steps, values, color=COLOURS[i], lw=1.4, label=label, marker="." if len(steps) < 15 else "")
            for step in marks:
                axis.axvline(step, color=COLOURS[5], lw=1, ls="--")
            axis.set_title(title)
            axis.set_xlabel("step")
            if len(drawn) > 1:
                axis.legend()
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        return _svg(figure, "curves", "Training curves over steps")


def histogram(positives: np.ndarray, negatives: np.ndarray, item: str = "image") -> str:
    """Cosines of two views of one item against those of two."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6, 2.6), layout="constrained")
        axis = figure.subplots()
        bins = np.linspace(-1, 1, 61)
        for values, label, colour in ((negatives, f"two {item}s", COLOURS[1]), (positives, f"one {item}", COLOURS[0])):
            axis.hist(values, bins, color=colour, alpha=0.65, label=label)
        axis.set_xlabel("cosine after the projector")
        axis.set_ylabel("pairs")
        axis.legend()
        return _svg(figure, "histogram", "Similarity of positive and negative pairs")


def against_scores(scores: np.ndarray, cosines: dict[str, np.ndarray], spearman: dict[str, float]) -> str:
    """A panel an embedding: each pair's cosine over the score that people gave it."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * len(cosines), 2.8))
        jitter = np.random.default_rng(0).uniform(-0.008, 0.008, len(scores))
        for i, (name, cosine) in enumerate(cosines.items()):
            axes = figure.add_subplot(1, len(cosines), i + 1)
            axes.scatter(scores + jitter, cosine, s=6, alpha=0.35, color=COLOURS[i], linewidths=0, rasterized=True)
            said = f", ρ = {spearman[name]:.3f}" if name in spearman else ""
            axes.set(title=f"{name}{said}", xlabel="score", ylabel="cosine" if i == 0 else "")
        figure.tight_layout()
        return _svg(figure, "pairs", "Cosines of pairs against their scores")


def spectra(named: dict[str, tuple[np.ndarray, float | None]]) -> str:
    """Eigenvalues of the covariance on a log scale, with the effective rank of each."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6, 2.6), layout="constrained")
        axis = figure.subplots()
        for i, (name, (values, rank)) in enumerate(named.items()):
            positive = values[values > 1e-9]
            label = name if rank is None else f"{name}: effective rank {rank:.0f} of {len(values)}"
            axis.plot(np.arange(1, len(positive) + 1), positive, color=COLOURS[i], lw=1.4, label=label)
        axis.set_yscale("log")
        axis.set_xlabel("dimension")
        axis.set_ylabel("share of variance")
        axis.legend()
        return _svg(figure, "spectrum", "Spectrum of the features")


def reliability(bins: list[dict[str, Any]], error: float) -> str:
    """How often the probe is right against how sure it is (Guo et al. 2017, arXiv:1706.04599), and how many items."""
    low, accuracy, n = (np.array([b[k] for b in bins], float) for k in ("low", "accuracy", "n"))
    width, sure = bins[0]["high"] - bins[0]["low"], [b["confidence"] for b in bins]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.bar(low, accuracy, width * 0.94, align="edge", color=COLOURS[0], alpha=0.75, label="accuracy of the bin")
        upper.plot(sure, accuracy, "o", color=COLOURS[5], ms=4, label="at its mean chance")
        upper.plot((0, 1), (0, 1), "--", color=_INK, lw=1, label="as often right as sure")
        upper.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="accuracy", title=f"expected calibration error {error:.3f}")
        upper.legend(loc="upper left", bbox_to_anchor=(1, 1))
        lower.bar(low, n, width * 0.94, align="edge", color=COLOURS[7])
        lower.set(xlabel="chance of the likeliest class", ylabel="items")
        return _svg(figure, "reliability", "Accuracy of the probe against its chances")


def sensitivities(parts: dict[str, dict[str, Any]]) -> str:
    """How far each augmentation moves features, with intervals, by embedding."""
    spaces = [s for s in ("nearfar", "projection", "untrained encoder") if s in next(iter(parts.values()))]
    place, thick = np.arange(len(parts)), 0.8 / len(spaces)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6, 0.8 + 0.5 * len(parts)), layout="constrained")
        axis = figure.subplots()
        for i, space in enumerate(spaces):
            cells = [held[space]["sensitivity"] for held in parts.values()]
            value, low, high = (np.array([np.nan if c[k] is None else c[k] for c in cells], np.float64)
                                for k in ("value", "low", "high"))  # fmt: skip
            axis.barh(place + (i - (len(spaces) - 1) / 2) * thick, value, thick, color=COLOURS[i], label=space,
                      xerr=(np.maximum(value - low, 0), np.maximum(high - value, 0)),
                      error_kw={"ecolor": _INK, "lw": 0.8})  # fmt: skip
        axis.axvline(1, color=_INK, lw=0.8, ls="--")
        axis.set_yticks(place, list(parts))
        axis.invert_yaxis()
        axis.set_xlabel("sensitivity (0: ignored, 1: as another image)")
        axis.legend()
        return _svg(figure, "sensitivity", "Sensitivity of the features to each augmentation")
