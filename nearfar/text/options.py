"""How texts are found in a file, cut into tokens, encoded, and changed to make views: the recipe's [text]."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from nearfar.errors import UserError, at_least, nearest

UNITS = ("auto", "line", "sentence", "document")
POOLINGS = ("", "mean", "cls", "last", "attention", "max")
_READING = ("columns", "label", "score", "score_range", "unit", "encoding")


@dataclass(frozen=True)
class TextOptions:
    """What a run of texts wants to know beside the rest of its recipe."""

    columns: str = ""
    """names of the columns of text, with commas between: one text, a pair, or anchor, positive and negative"""
    label: str = ""
    """the column of classes; file: of text files, their names are the classes"""
    score: str = ""
    """the column of pairs' similarities; none: take pairs without their scores"""
    score_range: str = ""
    """least and largest score, such as 0,5; left out: 0,1 or 0,5, whichever holds all"""
    unit: str = "auto"
    """what a text is in plain files: line, sentence or document; auto: a line"""
    encoding: str = "utf-8"
    """of the files"""
    lower: bool = True
    """take capitals for small letters, where the tokeniser is trained"""
    tokenizer: str = "wordpiece"
    """wordpiece or bpe, trained on the training texts; a folder or file of Hugging Face's, or a name on its hub"""
    vocabulary: int = 8000
    """tokens of a trained tokeniser, at most"""
    max_length: int = 64
    """tokens of a text that are read; the rest is cut off"""
    prefix: str = ""
    """written before each text, of pairs before the first ("query: ")"""
    second_prefix: str = ""
    """written before the other texts of a pair or triplet ("passage: ")"""
    layers: int = 0
    """layers of the encoder; 0: its default"""
    heads: int = 0
    """attention heads; 0: the default"""
    dropout: float = 0.1
    """share of values that the encoder drops while it trains: what makes two views of a text differ"""
    pooling: str = ""
    """from tokens to a text: mean, cls, last, attention or max; left out: the encoder's own"""
    delete: float = 0.0
    """noise that makes views: share of the tokens that are left out"""
    crop: float = 0.0
    """largest share of a text that is cut away before and after a span"""
    shuffle: int = 0
    """tokens within spans of so many are put in another order; 0: none"""
    mask: float = 0.0
    """share of the tokens that are masked"""
    repeat: float = 0.0
    """share of the tokens, at most, that are written twice"""

    def __post_init__(self) -> None:
        at_least(self, vocabulary=10, max_length=3, layers=0, heads=0, shuffle=0)
        for name in ("delete", "crop", "mask", "repeat", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"text.{name} = {getattr(self, name)} is a share: give 0 or more, below 1")
        if self.unit not in UNITS:
            raise UserError(f"unknown text.unit {self.unit!r}{nearest(self.unit, UNITS)}")
        if self.pooling not in POOLINGS:
            raise UserError(f"unknown text.pooling {self.pooling!r}{nearest(self.pooling, POOLINGS[1:])}")
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            raise UserError(f"unknown text.encoding {self.encoding!r}: give utf-8, latin-1 or another") from None
        self.range()

    def range(self) -> tuple[float, float] | None:
        """Least and largest score, where they are given."""
        if not self.score_range:
            return None
        try:
            low, high = map(float, self.score_range.split(","))
        except ValueError:
            raise UserError(f"text.score_range = {self.score_range!r}: give two numbers, such as 0,5") from None
        if not -math.inf < low < high < math.inf:
            raise UserError(f"text.score_range = {self.score_range!r}: give two finite numbers, the lower first")
        return low, high

    def reading(self, **changes: str) -> TextOptions:
        """The same for another source: how its texts are found is open, or as ``changes`` say."""
        known = {f.name: f.default for f in dataclasses.fields(self) if f.name in _READING}
        for name in changes:
            if name not in known:
                raise UserError(f"unknown reading option {name!r}{nearest(name, known)}")
        return dataclasses.replace(self, **known | changes)
