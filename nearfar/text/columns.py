"""Which columns of a table are texts, which the label and which the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nearfar.data.source import shown
from nearfar.errors import UserError
from nearfar.text.options import TextOptions

_PAIRS = [
    ("anchor", "positive", "negative"), ("query", "positive", "negative"), ("sent0", "sent1", "hard_neg"),
    ("anchor", "positive"), ("query", "passage"), ("query", "answer"), ("query", "positive"), ("question", "answer"),
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("question1", "question2"),
    ("premise", "hypothesis"), ("text1", "text2"), ("sent1", "sent2"), ("sent0", "sent1"), ("title", "body"),
]  # fmt: skip
_SINGLE = ("text", "sentence", "sentences", "content", "utterance", "question", "query", "document", "body", "title",
           "review", "abstract")  # fmt: skip
_LABELS = ("label_text", "label", "category", "class", "intent", "topic", "target", "sentiment")
_SCORES = ("score", "similarity", "similarity_score", "sim", "relatedness", "relatedness_score")
NONE = "none"  # said of scores: pairs are taken without
KNOWN = {*_SINGLE, *_LABELS, *_SCORES, *(name for pair in _PAIRS for name in pair)}


@dataclass(frozen=True)
class Columns:
    """Places in a row, and the texts' names."""

    texts: tuple[int, ...]
    slots: tuple[str, ...]
    label: int | None = None
    score: int | None = None

    @property
    def places(self) -> list[int]:
        """Of the texts, the label and the score, in this order."""
        return [i for i in (*self.texts, self.label, self.score) if i is not None]

    def moved(self) -> Columns:
        """The same in rows of these places alone."""
        n = len(self.texts)
        label = None if self.label is None else n
        score = None if self.score is None else n + (label is not None)
        return Columns(tuple(range(n)), self.slots, label, score)


def is_header(rows: Sequence[Sequence[str]], options: TextOptions) -> bool:
    """Whether a table's first row names its columns: by a known or wanted name, or as it differs from the rest.

    It does where it has a word above numbers, or, last, a word that never comes again above words that all do.
    """
    wanted = {*named(options), options.label, options.score} - {"", "file", NONE}
    if wanted and all(name.isdigit() for name in wanted):
        return False
    first = [cell.strip() for cell in rows[0]]
    if {cell.casefold() for cell in first} & ({name.casefold() for name in wanted} | KNOWN):
        return True
    below = [[cell.strip() for cell in row] for row in rows[1:] if len(row) == len(first)]
    if len(below) < 2:
        return False
    for head, column in zip(first, zip(*below)):
        if head and not _is_number(head) and all(map(_is_number, column)):
            return True
    last = [row[-1] for row in below]
    return len(first) > 1 and first[-1] not in last and len(set(last)) <= len(last) / 4


def named(options: TextOptions) -> list[str]:
    return [name.strip() for name in options.columns.split(",") if name.strip()]


def choose(names: Sequence[str], rows: Sequence[Sequence[str]], options: TextOptions, where: str) -> Columns:
    """By the names asked for, by known names, or, without a header, by what the first rows hold.

    Without a header the names are 0, 1, … A last column of numbers is the score where two texts stand before it, else
    the label; a last column of words that come again and again is the label.
    """
    low = [str(n).strip().casefold() for n in names]

    def place(name: str, what: str) -> int:
        if name.casefold() not in low:
            raise UserError(f"{where} has no column {name!r} for {what}: its columns are {_listed(names)}")
        return low.index(name.casefold())

    def known(candidates: Sequence[str]) -> int | None:
        return next((low.index(c) for c in candidates if c in low), None)

    header = low != [str(i) for i in range(len(low))]
    label = place(options.label, "labels") if options.label not in ("", "file") else known(_LABELS)
    score = place(options.score, "scores") if options.score not in ("", NONE) else known(_SCORES)
    if options.columns:
        texts = [place(name, "text") for name in named(options)]
    elif header:
        pair = next((p for p in _PAIRS if all(c in low for c in p)), None)
        first = known(_SINGLE)
        texts = [low.index(c) for c in pair] if pair else [] if first is None else [first]
        if not texts and len(low) - (label is not None) - (score is not None) == 1:
            texts = [i for i in range(len(low)) if i not in (label, score)]
        if not texts:
            raise UserError(f"{where}: which columns are text is not plain: name them with --text.columns; its columns "
                            f"are {_listed(names)}")  # fmt: skip
    else:
        texts, label, score = _by_content(len(low), rows, label, score)
    score = None if options.score == NONE else score
    if len(texts) > 3:
        raise UserError(f"{where}: {len(texts)} columns of text: name one to three with --text.columns; its columns "
                        f"are {_listed(names)}")  # fmt: skip
    if not texts:
        raise UserError(f"{where} has no column of text: its columns are {_listed(names)}")
    if options.score not in ("", NONE) and len(texts) == 1:
        raise UserError(f"{where}: column {options.score!r} cannot score single texts: name two with --text.columns; "
                        f"its columns are {_listed(names)}")  # fmt: skip
    if label in texts:
        label = None
    return Columns(tuple(texts), tuple(str(names[i]) if header else SLOTS[len(texts)][k] for k, i in enumerate(texts)),
                   label, score if len(texts) > 1 and score not in texts else None)  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(map(shown, names)) or "none"
    return listed if len(listed) <= 400 else f"{listed[:400]}…"


SLOTS = {1: ("text",), 2: ("sentence1", "sentence2"), 3: ("anchor", "positive", "negative")}


def _by_content(
    n: int, rows: Sequence[Sequence[str]], label: int | None, score: int | None
) -> tuple[list[int], int | None, int | None]:  # fmt: skip
    free = [i for i in range(n) if i not in (label, score)]
    if label is None and score is None and len(free) > 1:
        last = [row[free[-1]].strip() for row in rows if len(row) == n]
        if last and all(_is_number(v) for v in last):
            if len(free) == 3:
                score = free.pop()
            else:
                label = free.pop()
        elif len(last) > 3 and len(set(last)) <= len(last) / 2:
            label = free.pop()
    return free, label, score


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
