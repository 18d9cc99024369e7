"""Texts as they are read, one row after the other, into flat memory."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearfar.data.folder import to_stderr
from nearfar.data.source import Skipped, encode_labels, shown
from nearfar.errors import UserError
from nearfar.text.lines import LONGEST
from nearfar.text.options import TextOptions
from nearfar.text.records import Texts

NOT_TEXT = "it is no valid text in this encoding"
TOO_LONG = f"it has more than {LONGEST:,} bytes"
_LISTED = 1000  # rows left out that are named; the rest is counted
_SPACE = re.compile(r"[\s\x00]+")


@dataclass(frozen=True)
class Reading:
    """How sources are read; see ``open_texts``."""

    options: TextOptions
    max_bad: float = 0.05
    progress: Callable[[int, int], None] | None = None
    say: Callable[[str], None] = to_stderr


@dataclass
class Gather:
    """Rows of texts with what comes with them.

    White space and NUL bytes become single spaces. A row with an empty text is left out, and so is one that is no text
    or longer than 16 MiB; each is noted with its place and reason, the first 1,000 by name.
    """

    spec: str
    slots: tuple[str, ...] = ("text",)
    max_bad: float = 0.05
    item: str = "line"  # what a number counts
    blob: bytearray = field(default_factory=bytearray)
    starts: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("i"))
    labels: array = field(default_factory=lambda: array("i"))
    scores: array = field(default_factory=lambda: array("d"))
    numbers: array = field(default_factory=lambda: array("q"))  # of rows with scores, to be named where one is wrong
    documents: array = field(default_factory=lambda: array("q"))
    names: dict[str, int] = field(default_factory=dict)  # of labels
    skipped: list[Skipped] = field(default_factory=list)
    seen: int = 0  # lines that held something, where a text is not a line
    bad: int = 0
    more: int = 0  # left out beyond those that are named
    first_bad: Skipped | None = None
    unlabelled: int = 0
    no_label: str = ""  # where the first of these is

    def __len__(self) -> int:
        return len(self.starts) // len(self.slots)

    def add(
        self, texts: Sequence[str], number: int, *, name: str = "", label: str = "", score: Any = None,
        document: int | None = None,
    ) -> None:  # fmt: skip
        """Take a row, or note why it is left out. name: of the file, where it is another than the source."""
        raw = []
        try:
            label = _SPACE.sub(" ", label).strip()
            label.encode("utf-8")
            for slot, text in zip(self.slots, texts):
                held = _SPACE.sub(" ", text).strip().encode("utf-8")
                if not held:
                    return self.skip(number, f"{slot} is empty" if len(self.slots) > 1 else "it is empty", name=name)
                if len(held) > LONGEST:
                    return self.skip(number, TOO_LONG, name=name, bad=1)
                raw.append(held)
        except UnicodeEncodeError:
            return self.skip(number, NOT_TEXT, name=name, bad=1)
        if score is not None:
            self.scores.append(self._number(score, number, name))
            self.numbers.append(number)
        for held in raw:
            self.starts.append(len(self.blob))
            self.sizes.append(len(held))
            self.blob += held
        if not label:
            self.unlabelled += 1
            self.no_label = self.no_label or self.place(number, name)
        self.labels.append(self.names.setdefault(label, len(self.names)) if label else -1)
        if document is not None:
            self.documents.append(document)
        return None

    def skip(self, number: int, reason: str, *, name: str = "", bad: int = 0) -> None:
        """Note a row that is left out; ``bad`` lines of it count against ``max_bad``."""
        self.bad += bad
        if len(self.skipped) >= _LISTED and (self.first_bad or not bad):
            self.more += 1
            return
        held = Skipped(self.place(number, name), reason)
        self.first_bad = self.first_bad or (held if bad else None)
        if len(self.skipped) < _LISTED:
            self.skipped.append(held)
        else:
            self.more += 1

    def place(self, number: int, name: str = "") -> str:
        return f"{shown(name or self.spec)}, {self.item} {number}"

    def texts(self, score_range: tuple[float, float] | None = None) -> Texts:
        """All that was taken. Raises ``UserError`` where that is nothing, or too much could not be read."""
        n, s = len(self), len(self.slots)
        self._check(n)
        labels = classes = None
        if not self.unlabelled:
            names = list(self.names)
            numbers = all(re.fullmatch(r"0|[1-9][0-9]{0,8}", name) for name in names)
            of, classes = encode_labels([int(x) for x in names] if numbers else names, len(names), self.spec)
            labels = of[np.frombuffer(self.labels, np.int32)]
        scores = None
        if len(self.scores):
            scores, score_range = self._scaled(score_range)
        more = (Skipped(f"and {self.more:,} more", "they are not listed"),) if self.more else ()
        return Texts(
            self.spec, self.slots, np.frombuffer(self.blob, np.uint8), np.array(self.starts, np.int64).reshape(n, s),
            np.array(self.sizes, np.int32).reshape(n, s), labels, classes, scores,
            np.array(self.documents, np.int64) if len(self.documents) else None, (*self.skipped, *more),
            score_range if scores is not None else None,
        )  # fmt: skip

    def _check(self, n: int) -> None:
        seen = max(self.seen, n + self.bad)
        if self.bad > self.max_bad * seen:
            fix = "pass --text.encoding latin-1, or what it is," if self.first_bad.reason == NOT_TEXT else "mend it"
            raise UserError(f"{self.spec}: {self.bad:,} of {seen:,} {self.item}s cannot be read, the first "
                            f"{self.first_bad.name}: {self.first_bad.reason}: {fix} or allow more with --max-bad")
        if not n:
            left = f": the first, {self.skipped[0].name}: {self.skipped[0].reason}" if self.skipped else ""
            raise UserError(f"{self.spec} holds no text{left}")
        if 0 < self.unlabelled < n:
            raise UserError(f"{self.spec}: {self.unlabelled:,} of {n:,} have no label, the first {self.no_label}: "
                            "give all of them one, or none")  # fmt: skip

    def _number(self, cell: Any, number: int, name: str) -> float:
        try:
            value = float(cell)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{self.place(number, name)}: score {cell!r:.40} is no number") from None
        if not math.isfinite(value):
            raise UserError(f"{self.place(number, name)}: score {cell!r:.40} is not finite")
        return value

    def _scaled(self, given: tuple[float, float] | None) -> tuple[np.ndarray, tuple[float, float]]:
        """Scores in [0, 1] by the range given, or 0 to 1 or 0 to 5, whichever holds them all. -> (N,) float32, range"""
        values = np.frombuffer(self.scores, np.float64)
        low, high = given or (0.0, 1.0 if values.max() <= 1 else 5.0)
        wrong = np.flatnonzero(~((values >= low) & (values <= high)))
        if len(wrong):
            at = int(wrong[0])
            raise UserError(f"{self.place(self.numbers[at])}: score {values[at]:g} lies outside {low:g} to {high:g}: "
                            "mend it, or pass --text.score-range LEAST,MOST")  # fmt: skip
        return ((values - low) / (high - low)).astype(np.float32), (low, high)
