"""Test images that the training part holds too: exact copies, near-duplicates, and what is left without them."""

from __future__ import annotations

from typing import Any

import numpy as np

from nearfar.data import Source
from nearfar.evaluate import Evaluation, Result
from nearfar.evaluate.duplicates import FEWEST, near_duplicates, products, reduced
from nearfar.evaluate.intervals import of_mean
from nearfar.gallery import thumbs

COSTLY = 10**12  # products, about ten seconds on two cores, beyond which the search is left to --more
_LISTED, _PICTURED = 100, 24


def judged(
    train: Source, test: Source | None, result: Evaluation | None, *, more: bool = False
) -> tuple[dict[str, Any] | None, dict[str, np.ndarray], list[str]]:
    """Near-duplicates and copies of test images in the training part. -> what JSON takes, pictures of pairs, notes

    With ``result``, what its judges are worth without those images, too. None without a test part. Left out, and said,
    where it takes more than 10¹² products and ``more`` is not asked for, or where there are too few training images.
    """
    if test is None or not len(test):
        return None, {}, []
    cost = products(len(test), len(train), train.shape)
    if len(train) < FEWEST:
        said = f"near-duplicates not looked for: {len(train)} training images are too few to tell them from lookalikes"
        return {"left out": said}, {}, [said]
    if cost > COSTLY and not more:
        said = f"near-duplicates of test images not looked for, as it takes {cost:.1e} products: --more does"
        return {"left out": said}, {}, [said]
    found = near_duplicates(_small(test), _small(train))
    copies, out = _copies(train, test)
    near = ~out[found.test]
    a, b = found.test[near], found.train[near]
    out[a] = True
    alike = np.isin(np.arange(len(test)), a).astype(float)
    pairs = [{"test": str(test.names[i]), "train": str(train.names[j]), "correlation": float(c), "ratio": float(r)}
             for i, j, c, r in zip(a, b, found.correlation[near], found.ratio[near])]  # fmt: skip
    held = {
        "count": len(pairs), "of": len(test), "exact": len(copies),
        "share": Result("near-duplicates", float(alike.mean()), *of_mean(alike), len(test)).to_dict(),
        "threshold": {"ratio": found.limit, "dimension": found.dimension},
        "within training": {"count": found.within, "of": found.sampled},
        "pairs": pairs[:_LISTED], "copies": copies[:_LISTED],
        "judged": {} if result is None else without(result, test.labels, out),
    }  # fmt: skip
    pictures = {f"duplicates_{name}": thumbs(part.read(i[:_PICTURED]), part.low, part.high)
                for name, part, i in (("test", test, a), ("train", train, b))} if pairs else {}  # fmt: skip
    said = (f"{len(pairs)} of {len(test)} test images ({alike.mean():.1%}) are near-duplicates of training images"
            + (", accuracies without them are in results.json and the report" if pairs else ""))  # fmt: skip
    return held, pictures, [said]


def _copies(train: Source, test: Source) -> tuple[list[dict[str, str]], np.ndarray]:
    """Test images that the training part holds pixel by pixel: their names, and which they are (M,) bool."""
    hashes, first = np.unique(train.item_hashes, return_index=True)
    own = test.item_hashes
    place = np.searchsorted(hashes, own).clip(max=len(hashes) - 1)
    copied = hashes[place] == own  # (M,)
    return [{"test": str(test.names[i]), "train": str(train.names[first[place[i]]])}
            for i in np.flatnonzero(copied)], copied  # fmt: skip


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
    starts = range(0, len(part), 512)
    return np.concatenate([reduced(part.read(np.arange(at, min(at + 512, len(part))))) for at in starts])
