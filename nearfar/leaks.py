"""Test images that the training part holds too: exact copies, near-duplicates, and what is left without them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nearfar.data import Source
from nearfar.evaluate import Evaluation, Result
from nearfar.evaluate.duplicates import near_duplicates, products, reduced
from nearfar.evaluate.intervals import of_mean
from nearfar.gallery import item_hashes, thumbs

COSTLY = 5 * 10**9  # products, beyond which the search is left to --more
_LISTED, _PICTURED = 100, 24


@dataclasses.dataclass(frozen=True)
class Leaks:
    """What was found, as JSON takes it; which test images are out; pictures of pairs."""

    held: dict[str, Any]
    out: np.ndarray  # (M,) bool: copies and near-duplicates
    pictures: dict[str, np.ndarray]

    @property
    def note(self) -> str:
        """One line for a reader of the numbers."""
        h = self.held
        return (f"{h['count']} of {h['of']} test images ({h['share']['value']:.1%}) are near-duplicates of training "
                f"images, {h['exact']} more are exact copies; accuracies without them stand beside")  # fmt: skip


def find(train: Source, test: Source | None, *, more: bool = False) -> Leaks | str | None:
    """Near-duplicates and copies of the test part in the training part, or why they were not looked for.

    None without a test part. Left out, and said, where it takes more than 5·10⁹ products and ``more`` is not asked for.
    """
    if test is None or not len(test):
        return None
    if len(train) < 20:
        return f"near-duplicates not looked for: {len(train)} training images are too few to tell them from lookalikes"
    cost = products(len(test), len(train), train.shape)
    if cost > COSTLY and not more:
        return f"near-duplicates of test images not looked for, as it takes {cost:.1e} products: --more does"
    found = near_duplicates(_small(test), _small(train))
    hashes, first = np.unique(item_hashes(train), return_index=True)
    own = item_hashes(test)
    place = np.searchsorted(hashes, own).clip(max=len(hashes) - 1)
    copied = hashes[place] == own  # (M,)
    near = ~copied[found.test]
    pairs = [{"test": str(test.names[i]), "train": str(train.names[j]), "correlation": float(c), "ratio": float(r)}
             for i, j, c, r in zip(found.test[near], found.train[near], found.correlation[near], found.ratio[near])]
    rows = np.flatnonzero(copied)
    copies = [{"test": str(test.names[i]), "train": str(train.names[first[place[i]]])} for i in rows]
    out = copied.copy()
    out[found.test] = True
    alike = np.isin(np.arange(len(test)), found.test[near]).astype(float)
    held = {
        "count": len(pairs), "of": len(test), "exact": len(copies),
        "share": Result("near-duplicates", float(alike.mean()), *of_mean(alike), len(test)).to_dict(),
        "threshold": {"ratio": found.limit, "dimension": found.dimension, "chance": found.chance},
        "within training": {"count": found.within, "of": found.sampled},
        "pairs": pairs[:_LISTED], "copies": copies[:_LISTED],
    }  # fmt: skip
    shown = found.test[near][:_PICTURED], found.train[near][:_PICTURED]
    pictures = {f"duplicates_{name}": thumbs(part.read(i), part.low, part.high)
                for name, part, i in zip(("test", "train"), (test, train), shown)} if pairs else {}  # fmt: skip
    return Leaks(held, out, pictures)


def without(result: Evaluation, y_test: np.ndarray, out: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
    """kNN's and the linear probe's worth on the test images that are left, by embedding; nothing is fitted anew.

    Accuracy, or ranking average precision where an item has several labels. out (M,) bool
    """
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for name, judged in result.judgements.items() if not out.all() else ():
        for judge, j in judged.items():
            worth = j.predictions == y_test if j.by_item is None else j.by_item  # (M,)
            both = {"all": worth, "without": worth[~out]}
            cells.setdefault(name, {})[judge] = {
                which: Result(judge, float(w.mean()), *of_mean(w), len(w)).to_dict() for which, w in both.items()
            }
    return cells


def _small(part: Source) -> np.ndarray:
    """All images at no more than 32 pixels a side, read a few at a time. -> (N, h, w, C)"""
    return np.concatenate([reduced(part.read(np.arange(at, min(at + 512, len(part))))) for at in range(0, len(part), 512)])
