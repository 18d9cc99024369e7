"""CPython's own help topics: real English that needs no download."""

from __future__ import annotations

import re

from nearfar.text.gather import Gather
from nearfar.text.records import Texts
from nearfar.text.sentences import sentences

_CODE = re.compile(r"^(\s{3,}|>>>|\.\.\.|[|+=*~^\"-]{3,}|[-\w.]+ *::=|Changed in version|New in version|See also)")
_WORDS = 5  # of a sentence, at least


def from_pydoc() -> Texts:
    """Sentences of ``pydoc_data.topics``, their topic the label and the document; how many, Python's version decides.

    Blocks of code, grammar, notes of versions and marks of markup are left out.
    """
    from pydoc_data.topics import topics

    into = Gather("pydoc", item="topic")
    for document, (topic, text) in enumerate(sorted(topics.items())):
        for block in re.split(r"\n\s*\n", text):
            rows = [row for row in block.splitlines() if not _CODE.match(row)]
            for sentence in sentences(re.sub(r"[*\"`]+", "", " ".join(rows))):
                sentence = " ".join(sentence.split())
                if len(sentence.split()) >= _WORDS and sentence[0].isupper() and sentence[-1] in ".!?:":
                    into.add([sentence], document, label=topic, document=document)
    return into.texts()
