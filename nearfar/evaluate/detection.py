"""Average precision of detected boxes, as COCO measures it, by faster-coco-eval; intervals over pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nearfar.errors import UserError, require
from nearfar.evaluate.records import Scores, of_draws

_IOUS = np.arange(10) * 0.05 + 0.5
_LIMIT = 100  # detections a picture that count, the likeliest first


class Found(NamedTuple):
    """A picture's boxes (n, 4) as x0, y0, x1, y1 in pixels, scores (n,) and classes (n,) from 0.

    Of the truth, score 0 marks a box that is neither right nor wrong to find (a crowd, a difficult object).
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def detection(
    found: Sequence[Found], truth: Sequence[Found], classes: Sequence[str], *, seed: int = 0, times: int = 200
) -> Scores:
    r"""COCO's average precision over pictures.

    .. math:: mAP=\frac1{|C|}\sum_c\frac1{10}\sum_{t\in\{.50,.55,\dots,.95\}}AP_{c,t},\quad
              AP=\frac1{101}\sum_{r\in\{0,.01,\dots,1\}}\max_{r'\ge r}p(r')

    Lin et al. 2014 (arXiv:1405.0312) and the COCO API: at most 100 boxes a picture, classes without a true box left out
    of the mean. Intervals: pictures drawn again with replacement, their boxes matched as before. Raises where the
    numbers of pictures differ, where no picture has a true box, or where a box or score is not finite.
    """
    if len(found) != len(truth):
        raise UserError(f"{len(found)} pictures were looked at and {len(truth)} have their truth: give the same ones")
    if not any(len(t.boxes) for t in truth):
        raise UserError("no test picture has a box: there is nothing to judge by")
    for i, f in enumerate(found):
        if not (np.isfinite(f.boxes).all() and np.isfinite(f.scores).all()):
            raise UserError(f"picture {i}: a box or score found is NaN or infinite: training diverged")
    params, matched, accumulate = _matched(found, truth, len(classes))
    n, kinds = len(truth), len(classes)

    def again(rows: np.ndarray) -> dict[str, float]:
        table = _table(accumulate(params, [matched[k * n + i] for k in range(kinds) for i in rows]))
        return {name: _mean(table[ious]) for name, ious in _COLUMNS.items()}

    table = _table(accumulate(params, matched))  # (T, K)
    boxes = np.bincount(np.concatenate([t.labels[t.scores > 0] for t in truth]).astype(int), minlength=kinds)
    drawn = _draws(again, n, seed, times)
    values = {name: _mean(table[ious]) for name, ious in _COLUMNS.items()}
    per_class = tuple(
        {"name": str(c), "AP": _mean(table[:, k]), "AP50": _mean(table[0, k]), "AP75": _mean(table[5, k]),
         "boxes": int(boxes[k])} for k, c in enumerate(classes))  # fmt: skip
    return Scores(of_draws(values, drawn, n), per_class, drawn)


_COLUMNS = {"mAP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}


def _draws(again: Callable[[np.ndarray], dict[str, float]], n: int, seed: int, times: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = [again(rng.integers(0, n, n)) for _ in range(times)]
    return {name: np.array([r[name] for r in rows]) for name in rows[0]}


def _matched(found: Sequence[Found], truth: Sequence[Found], kinds: int) -> tuple[Any, list, Callable]:
    """COCO's parameters, what was matched of every (class, picture), and what makes precisions of it."""
    library = require("faster_coco_eval", "coco", "judging detection")
    images = [{"id": i + 1} for i in range(len(truth))]
    names = [{"id": k + 1, "name": str(k)} for k in range(kinds)]
    held = library.COCO()
    held.dataset = {"images": images, "categories": names, "annotations": _annotations(truth, True)}
    said = library.COCO()
    said.dataset = {"images": images, "categories": names, "annotations": _annotations(found, False)}
    held.createIndex()
    said.createIndex()
    judge = library.COCOeval_faster(held, said, "bbox", separate_eval=True, print_function=lambda text: None)
    judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], judge.params.areaRngLbl[:1]
    judge.params.maxDets = [_LIMIT]
    judge.evaluate()
    from faster_coco_eval import faster_eval_api_cpp as cpp

    return judge._paramsEval, judge._evalImgs_cpp, cpp.COCOevalAccumulate


def _annotations(pictures: Sequence[Found], true: bool) -> list[dict[str, Any]]:
    out = []
    for i, held in enumerate(pictures):
        wide = np.concatenate([held.boxes[:, :2], held.boxes[:, 2:] - held.boxes[:, :2]], 1).astype(float)
        for box, score, label in zip(wide.tolist(), held.scores.tolist(), held.labels.tolist()):
            out.append({"id": len(out) + 1, "image_id": i + 1, "category_id": int(label) + 1, "bbox": box,
                        "area": box[2] * box[3], "iscrowd": int(true and score == 0), "score": score})  # fmt: skip
    return out


def _table(held: dict[str, Any]) -> np.ndarray:
    """Average precision by IoU and class, NaN where a class has no true box. -> (T, K)"""
    precision = np.asarray(held["precision"]).reshape(held["counts"])[..., 0, 0]  # (T, R, K)
    ap = precision.mean(1)
    return np.where((precision > -1).all(1), ap, np.nan)


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values)[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")
