"""Triplets from pairs: for each anchor what a run takes for alike and is not its positive, as a file to train on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nearfar.errors import UserError
from nearfar.mining import hard_negatives
from nearfar.wording import columns_of, slot

if TYPE_CHECKING:
    from nearfar.run import Run


def write_triplets(
    run: Run, source: Any, out: Path, *, count: int = 1, skip: int = 0, margin: float = 0.05, force: bool = False,
    reading: Mapping[str, Any] | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Mine hard negatives among a source's second texts and write anchor, positive and negative, a JSON object a line.

    Args:
        source: pairs, as ``train`` takes them; of a source with splits the training part.
        out: a .jsonl file, whole or not at all.
        count, skip, margin: as :func:`nearfar.mining.hard_negatives` has them, with a relative margin: a text nearer to
            the anchor than 1 - ``margin`` of its positive's cosine is likelier a positive that nobody has named.

    A text that is the positive of the same anchor elsewhere, or stands with the same positive, is no negative. Returns
    how many triplets were written and how many anchors have fewer than ``count``. Raises ``UserError``.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"{out}: triplets are written to a .jsonl file")
    if out.exists() and not force:
        raise UserError(f"{out} is there already: pass another name, or --force to replace it")
    part = run.open(source, reading=reading).train
    if columns_of(part) < 2:
        raise UserError(f"{part.spec} has single texts: negatives are mined for pairs of an anchor and its positive")
    texts = part.origin.texts
    anchors, positives = (list(texts.column(s)) for s in range(2))
    found = hard_negatives(run.embed_part(part), run.embed_part(slot(part, 1)), np.arange(len(part)), count=count,
                           skip=skip, margin=margin, relative=True, groups=_together(anchors, positives))  # fmt: skip
    side, n = out.with_name(f".{out.name}.{os.getpid()}.tmp"), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(side, "w", encoding="utf-8") as file:
            for anchor, positive, rows in zip(anchors, positives, found):
                for i in rows[rows >= 0]:
                    held = {"anchor": anchor, "positive": positive, "negative": positives[i]}
                    file.write(json.dumps(held, ensure_ascii=False) + "\n")
                    n += 1
        side.replace(out)
    finally:
        side.unlink(missing_ok=True)
    return n, int((found < 0).any(1).sum())


def _together(anchors: list[str], positives: list[str]) -> np.ndarray:
    """A number a pair, the same for pairs that share a text, directly or by others. -> (N,)"""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n, codes = len(anchors), {}
    numbers = [codes.setdefault(text.casefold(), len(codes)) for text in (*anchors, *positives)]
    rows = np.tile(np.arange(n), 2)
    shape = (n + len(codes),) * 2
    graph = coo_matrix((np.ones(2 * n, bool), (rows, n + np.asarray(numbers))), shape=shape)
    return connected_components(graph, directed=False)[1][:n]
