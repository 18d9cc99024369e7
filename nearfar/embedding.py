"""Embeddings as files, and a picture of neighbours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nearfar.data import Source
from nearfar.errors import UserError, require
from nearfar.wording import columns_of, slot

if TYPE_CHECKING:
    from nearfar.run import Run


def write_embedding(
    run: Run, source: object, out: Path, *, project: bool = False, force: bool = False,
    reading: Mapping[str, Any] | None = None,
) -> tuple[int, int]:
    """Features, labels, names and split of every item, as .npz or .parquet; whole or not at all. -> (N, d)

    Of pairs or triplets of texts the other columns' features come beside, as ``features_2`` and ``features_3``, or
    ``embedding_2``.
    """
    if out.suffix not in (".npz", ".parquet"):
        raise UserError(f"{out}: write embeddings to a .npz or .parquet file")
    if out.exists() and not force:
        raise UserError(f"{out} is there already: pass another name, or --force to replace it")
    if out.suffix == ".parquet":
        require("pyarrow", "parquet", f"writing {out.name}")
    splits = run.open(source, reading=reading) if reading else run.open(source)
    parts = [(name, p) for name, p in (("train", splits.train), ("test", splits.test)) if p is not None]
    features = np.concatenate([run.embed_part(p, project) for _, p in parts])  # (N, d)
    labels = np.concatenate([np.full(len(p), -1) if p.labels is None else p.labels for _, p in parts])
    names = [str(n) for _, p in parts for n in (p.names if p.origin is None else p.origin.texts.column())]
    others = {s + 1: np.concatenate([run.embed_part(slot(p, s), project) for _, p in parts])
              for s in range(1, columns_of(splits.train))}  # fmt: skip
    split = [name for name, p in parts for _ in range(len(p))]
    out.parent.mkdir(parents=True, exist_ok=True)
    side = out.with_name(f".{out.stem}.{os.getpid()}.tmp{out.suffix}")
    if out.suffix == ".npz":
        classes = np.array(splits.train.classes or (), dtype=str)
        np.savez(side, features=features, labels=labels, names=np.array(names), split=np.array(split), classes=classes,
                 **{f"features_{s}": z for s, z in others.items()})  # fmt: skip
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = {f"embedding{s}": pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])
                for s, z in {"": features, **{f"_{s}": z for s, z in others.items()}}.items()}  # fmt: skip
        pq.write_table(pa.table({"name": names, "split": split, "label": labels, **rows}), side)
    side.replace(out)
    return features.shape


def write_strip(run: Run, part: Source, rows: list[int], query: str, out: Path) -> None:
    """The query and its neighbours side by side, as a picture."""
    from PIL import Image

    low, high = run.input.range_for(part)
    first = part.read([int(query)]) if query.isdigit() else run._single(query).read([0])
    pixels = np.concatenate([first, part.read(rows)]).astype(np.float32)  # (k + 1, H, W, C)
    x = ((pixels - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    x = x if x.shape[3] == 3 else np.repeat(x[..., :1], 3, 3)
    x = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
    strip = Image.fromarray(np.concatenate(list(x), 1))
    grow = max(1, 96 // strip.height)
    strip.resize((strip.width * grow, strip.height * grow), Image.Resampling.NEAREST).save(out)
