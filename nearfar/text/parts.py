"""Splits of a source: what is trained on, what judges, what is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from nearfar.data.source import in_numbers_of
from nearfar.errors import UserError
from nearfar.text.gather import Reading
from nearfar.text.options import TextOptions
from nearfar.text.records import Texts, TextSplits

TEST, NEITHER = "test", ("dev", "val", "valid", "validation")


def in_parts(parts: Mapping[str, Callable[[TextOptions], Texts]], where: str, how: Reading) -> TextSplits:
    """Training and test part, each read by a function of the options; all others are left out and said.

    The training part is ``train``, or else the first; scores of the test part are in the training part's range.
    """
    others = [name for name in parts if name not in (TEST, *NEITHER)]
    first = "train" if "train" in parts else next(iter([*others, *parts]), None)
    if first is None:
        raise UserError(f"{where} holds no text")
    left = [name for name in parts if name not in (first, TEST)]
    if left:
        how.say(f"{where}: {', '.join(left)} {'is' if len(left) == 1 else 'are'} left out, neither trained on nor "
                "judged by")  # fmt: skip
    train = parts[first](how.options)
    if TEST not in parts or first == TEST:
        return TextSplits(train)
    options = how.options
    if train.score_range is not None:
        options = dataclasses.replace(options, score_range="{!r},{!r}".format(*train.score_range))
    return aligned(train, parts[TEST](options), where)


def aligned(train: Texts, test: Texts, where: str) -> TextSplits:
    """Both parts with as many texts a row, the test labels in the training part's numbers."""
    if len(train.slots) != len(test.slots):
        raise UserError(f"{where}: {len(train.slots)} texts a row in training and {len(test.slots)} in the test part")
    if (train.scores is None) != (test.scores is None):
        raise UserError(f"{where}: one of training and test part has scores, the other has none")
    if train.classes is None or test.classes is None:
        return TextSplits(train, dataclasses.replace(test, labels=None, classes=None))
    return TextSplits(train, in_numbers_of(train, test, where))
