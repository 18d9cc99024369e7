"""A text cut into sentences by one simple rule."""

from __future__ import annotations

import re
from collections.abc import Iterator

_STOP = re.compile(r"""[.!?…]["'”’»)\]]*(\s+)(?=["'“‘«(\[]*(\w))|[。！？]["”’」』）]*()""")
_SHORT = re.compile(r"(?:^|[\s(\[\"'“‘])(?:Mr|Mrs|Ms|Dr|St|Prof|Sen|Rep|Gen|Gov|No|vs|etc|e\.g|i\.e|cf|U\.S|\w)\.$")
_LOOK = 12  # letters before a stop by which an abbreviation is known


def sentences(text: str) -> Iterator[str]:
    """Cut after . ! ? or … where the next line, or a word that begins with no small letter, follows; and after 。！？

    Initials and a few usual abbreviations (Mr. e.g. U.S.) do not end a sentence.

    >>> list(sentences("Mr. Smith came. He saw it!  And left? yes."))
    ['Mr. Smith came.', 'He saw it!', 'And left? yes.']
    """
    begun = 0
    for stop in _STOP.finditer(text):
        gap, follows = stop[1], stop[2]
        if gap is not None:
            if follows.islower() and "\n" not in gap:
                continue
            if _SHORT.search(text, max(begun, stop.start() + 1 - _LOOK), stop.start() + 1):
                continue
        cut = stop.end() if gap is None else stop.start(1)
        if held := text[begun:cut].strip():
            yield held
        begun = cut
    if held := text[begun:].strip():
        yield held
