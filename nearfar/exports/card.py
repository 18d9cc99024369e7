"""The README.md of an exported model: what it is, what it was trained on, how well it does."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from nearfar import __version__
from nearfar.run import Run


def shown_name(spec: str) -> str:
    """A source's or encoder's name without the folders it lies in.

    >>> shown_name("/home/me/data/stsb/train.csv"), shown_name("text:hf:org/set"), shown_name("transformers:/m/bert")
    ('train.csv', 'text:hf:org/set', 'transformers:bert')
    """
    scheme, _, rest = spec.rpartition(":")
    scheme = "" if len(scheme) == 1 else scheme  # a drive
    path = PurePath((rest if scheme else spec).replace("\\", "/"))
    local = path.is_absolute() or str(path).startswith((".", "~")) or not scheme
    return f"{scheme}:{path.name if local else path}" if scheme else path.name


def card(run: Run, widths: str = "") -> str:
    """Markdown, with the front matter that the hub reads; no licence, which is its author's to choose."""
    recipe, text = run.recipe, run.recipe.text
    source = "texts that were given as a list" if recipe.source == "array" else f"`{shown_name(recipe.source)}`"
    lines = [
        "---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, sentence-similarity, feature-extraction, nearfar]", "---", "",
        f"# {run.folder.resolve().name}", "",
        f"Turns a text into {run.encoder.features} numbers; texts that belong together have a large cosine. Trained "
        f"by nearfar {__version__}: method `{recipe.method}`, encoder `{shown_name(recipe.encoder)}`, on {source} "
        f"({run.about['images']:,} rows). It reads {text.max_length} tokens of a text. Vectors are not normalised.", "",
        "```python", "from sentence_transformers import SentenceTransformer", "",
        'model = SentenceTransformer("PATH")', 'vectors = model.encode(["a text", "another"])', "```", "",
    ]  # fmt: skip
    if text.prefix or text.second_prefix:
        lines += ["Before a text stands a prompt, as in training: "
                  f"{json.dumps(text.prefix)} (`query`, which `encode` takes) or {json.dumps(text.second_prefix)} "
                  "(`document`, of `encode_document`).", ""]  # fmt: skip
    if recipe.settings.get("matryoshka"):
        lines += [f"Trained to be cut short, too (Matryoshka): the first {recipe.settings['matryoshka']} numbers, "
                  "by `SentenceTransformer(\"PATH\", truncate_dim=…)`.", ""]  # fmt: skip
    return "\n".join(lines + _results(run.folder / "results.json"))


def _results(path: Path) -> list[str]:
    """The table of results.json, its intervals being of 95 %."""
    held: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    rows = (held.get("evaluation") or {}).get("rows", [])
    heads = list(dict.fromkeys(name for row in rows for name in row["cells"]))
    if not heads:
        return []
    source = shown_name(str(held.get("source", "")))
    out = ["## Results", "", f"On held-out rows of `{source}`, with 95 % intervals:", "",
           f"| embedding | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]  # fmt: skip
    for row in rows:
        name = "**this model**" if row["embedding"] == "nearfar" else row["embedding"]
        out.append(f"| {name} | {' | '.join(_cell(row['cells'].get(head)) for head in heads)} |")
    return [*out, ""]


def _cell(cell: dict[str, float] | None) -> str:
    return "" if cell is None else f"{cell['value']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})"
