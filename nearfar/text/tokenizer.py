"""Tokenisers, by the tokenizers library: learnt from one's own text, or any of Hugging Face's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nearfar.data import limits
from nearfar.data.source import shown
from nearfar.errors import UserError, one_line, require
from nearfar.text.vocabulary import learnt

_KNOWN = {"unk": ("[UNK]", "<unk>", "<|endoftext|>"), "cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>"),
          "mask": ("[MASK]", "<mask>")}  # fmt: skip
_BESIDE = ("special_tokens_map.json", "tokenizer_config.json")
_WRAPPED = '{"specials":'
_MOST = 2**24  # tokens; of each an encoder has a row
_BLOCK, _LETTERS = 2048, 40  # texts at a time; letters a token, beyond which a text is cut before it is tokenised


class Specials(NamedTuple):
    """Token ids with a meaning of their own; -1 where a tokeniser has none."""

    unk: int = 0
    cls: int = 1
    sep: int = 2
    mask: int = 3


class Tokenizer:
    """Texts to token ids and back.

    Args:
        held: a ``tokenizers.Tokenizer``; what it says of padding and truncation is switched off.
        said: names of special tokens that it does not tell itself: ``{"mask_token": "<m>"}``.
    """

    def __init__(self, held: Any, said: dict[str, Any] | None = None) -> None:
        held.no_padding()
        held.no_truncation()
        held.encode_special_tokens = True  # a text that spells "[SEP]" does not end there
        self._held, self._said = held, said or {}

    @classmethod
    def train(
        cls, texts: Iterable[str], *, kind: str = "wordpiece", vocabulary: int = 8000, lower: bool = False
    ) -> Tokenizer:  # fmt: skip
        """A tokeniser of at most ``vocabulary`` tokens from texts: the same to the byte from the same texts.

        ``wordpiece`` as BERT's (Devlin et al. 2019, arXiv:1810.04805): words and pieces of words; letters that the
        texts have not are unknown. ``bpe`` on bytes, as GPT-2's, to which nothing is. ``lower`` takes capitals for
        small letters. A text becomes [CLS] … [SEP].

        Raises ``UserError`` where the vocabulary has no room for the letters, or no text has a word.

        >>> tokenizer = Tokenizer.train(["the boat", "the sail"] * 10, vocabulary=40)
        >>> ids, lengths = tokenizer.encode(["the boat"], 8)
        >>> ids.tolist()[0], ids.tolist()[-1], tokenizer.decode(ids)
        (1, 2, 'the boat')
        """
        return cls(learnt(texts, kind, vocabulary, lower))

    @classmethod
    def load(cls, name: str) -> Tokenizer:
        """From a tokenizer.json, a folder with one (or with a BERT's vocab.txt), or by a name of the hub."""
        lib = require("tokenizers", "text", f"tokeniser {shown(name)}")
        path = Path(name)
        file = path / "tokenizer.json" if path.is_dir() else path
        words = path / "vocab.txt" if path.is_dir() else path
        try:
            if words.name == "vocab.txt" and words.is_file() and not (path / "tokenizer.json").is_file():
                return cls(*_of_words(lib, words))._tried()
            if file.is_file():
                text = limits.bytes_of(file, limits.TOKENIZER).decode("utf-8")
                return cls(lib.Tokenizer.from_str(text), _beside(file.parent))._tried()
            if path.exists():
                raise UserError("it holds no tokenizer.json and no vocab.txt")
            if name.endswith((".json", ".txt")) or name.startswith((".", "/", "~")) or name.count("/") > 1:
                raise UserError("there is no such file or folder")
            if close := get_close_matches(name, ("wordpiece", "bpe"), 1, 0.7):
                raise UserError(f"did you mean {close[0]}?")
            return cls(lib.Tokenizer.from_pretrained(name))._tried()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # bare Exceptions of the library, its panics, many kinds of the hub's client
            raise UserError(f"no tokeniser {shown(name)} ({one_line(error)}): give wordpiece, bpe, a tokenizer.json, "
                            "a folder with one, or a name of the hub") from None  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """What :meth:`to_json` gave."""
        lib = require("tokenizers", "text", "reading tokenizer.json")
        try:
            if text.startswith(_WRAPPED):
                both = json.loads(text)
                return cls(lib.Tokenizer.from_str(both["tokenizer"]), _names_in(both["specials"]))._tried()
            return cls(lib.Tokenizer.from_str(text))._tried()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's panics are no Exceptions
            raise UserError(f"tokenizer.json is broken ({one_line(error)}): copy it again from its origin") from None

    def _tried(self) -> Tokenizer:
        """Itself, where it does what a tokeniser does: what is broken shows here, not after an hour."""
        self.encode(["a", ""], 64)  # its specials, too
        if not 1 <= self.size <= _MOST:
            raise UserError(f"its token ids end at {self.size - 1:,}, where at most {_MOST:,} tokens are taken")
        return self

    def to_json(self) -> str:
        """As tokenizer.json holds it; with the names of special tokens around it where it does not tell them itself."""
        text = self._held.to_str()
        if self.specials == _specials(self._held, {}):
            return text
        return json.dumps({"specials": self._said, "tokenizer": text}, separators=(",", ":"), ensure_ascii=False)

    @cached_property
    def specials(self) -> Specials:
        """Which tokens mean unknown, beginning, end and mask."""
        return _specials(self._held, self._said)

    @cached_property
    def size(self) -> int:
        """The largest token id there is, and 1."""
        return max(self._held.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(
        self, texts: Sequence[str], max_length: int, *, specials: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Token ids of all texts end to end, and how many are each one's. -> (T,) int32, (N,) int32

        A text of more than ``max_length`` tokens loses what is over, not its end's [SEP]; letters beyond
        40 · ``max_length`` are not looked at. One of which the tokeniser keeps nothing becomes an unknown token.
        """
        added = self._held.num_special_tokens_to_add(False) if specials else 0
        if max_length <= added:
            raise UserError(f"{max_length} tokens have no room beside the {added} at a text's ends: give "
                            f"text.max_length = {added + 1} or more")  # fmt: skip
        self._held.enable_truncation(max_length)
        try:
            cut = [text[: _LETTERS * max_length] for text in texts]
            rows = [e.ids for e in self._held.encode_batch_fast(cut, add_special_tokens=specials)]
        finally:
            self._held.no_truncation()
        rows = [row if len(row) > added else self._nothing(row) for row in rows]
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    def _nothing(self, ends: list[int]) -> list[int]:
        """An unknown token between the ends of a text that holds none of its own."""
        at = 1 if ends and ends[0] == self.specials.cls else 0
        return [*ends[:at], max(self.specials.unk, 0), *ends[at:]]

    def wordless(self, ids: np.ndarray, lengths: np.ndarray, *, specials: bool = True) -> int:
        """How many of encoded texts are nothing but one unknown token."""
        added = self._held.num_special_tokens_to_add(False) if specials else 0
        at = (np.cumsum(lengths) - lengths)[lengths == added + 1]
        at = at + (ids[at] == self.specials.cls) if added else at
        return int((ids[at] == max(self.specials.unk, 0)).sum())

    def stream(
        self, texts: Iterable[str], max_length: int, *, specials: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
        """:meth:`encode` of 2,048 texts at a time, of any number."""
        texts = iter(texts)
        while block := list(islice(texts, _BLOCK)):
            yield self.encode(block, max_length, specials=specials)

    def decode(self, ids: Sequence[int] | np.ndarray, *, specials: bool = False) -> str:
        """The text of token ids; with ``specials`` also [CLS], [MASK] and their like."""
        return self._held.decode([int(i) for i in ids], skip_special_tokens=not specials)

    def unknown_share(self, ids: Sequence[int] | np.ndarray) -> float:
        """Of the tokens that are words, not [CLS], [SEP] or [MASK], the share that is unknown."""
        ids, said = np.asarray(ids), self.specials
        words = ids[~np.isin(ids, [i for i in said[1:] if i != said.unk])]
        return float((words == said.unk).mean()) if len(words) and said.unk >= 0 else 0.0


def _of_words(lib: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """A BERT's WordPiece from its list of words, as its tokenizer_config.json says of capitals and accents."""
    words = limits.bytes_of(path, limits.TOKENIZER).decode("utf-8").removesuffix("\n").split("\n")
    place = {word.removesuffix("\r"): i for i, word in enumerate(words)}
    lost = [name for name in ("[UNK]", "[CLS]", "[SEP]") if name not in place]
    if lost:
        raise UserError(f"its vocab.txt has no {lost[0]}: it is no BERT's")
    said = _json_beside(path.parent, "tokenizer_config.json")
    held = lib.Tokenizer(lib.models.WordPiece(vocab=place, unk_token="[UNK]"))
    held.add_special_tokens([name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in place])
    accents, lower = said.get("strip_accents"), said.get("do_lower_case", True) is not False
    held.normalizer = lib.normalizers.BertNormalizer(
        lowercase=lower, strip_accents=accents if isinstance(accents, bool) else None,
        handle_chinese_chars=said.get("tokenize_chinese_chars", True) is not False)  # fmt: skip
    held.pre_tokenizer, held.decoder = lib.pre_tokenizers.BertPreTokenizer(), lib.decoders.WordPiece()
    held.post_processor = lib.processors.BertProcessing(("[SEP]", place["[SEP]"]), ("[CLS]", place["[CLS]"]))
    return held, _beside(path.parent)


def _beside(folder: Path) -> dict[str, str]:
    """What the files beside a tokenizer.json say of its special tokens."""
    said: dict[str, str] = {}
    for name in _BESIDE:
        said |= _names_in(_json_beside(folder, name))
    return said


def _json_beside(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        return {}
    try:
        held = json.loads(limits.bytes_of(path, limits.TOKENIZER).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name} beside it cannot be read: {one_line(error)}") from None
    return held if isinstance(held, dict) else {}


def _names_in(held: dict[str, Any]) -> dict[str, str]:
    """``{"mask_token": "<mask>"}`` of what names special tokens, as text or as {"content": text}."""
    out = {}
    for key in (f"{role}_token" for role in Specials._fields):
        name = held.get(key)
        name = name.get("content") if isinstance(name, dict) else name
        if isinstance(name, str):
            out[key] = name
    return out


def _specials(held: Any, said: dict[str, str]) -> Specials:
    """By the names that are said, by what the tokeniser does itself, by the names that are usual."""
    first, last = _ends(held)
    added = held.get_added_tokens_decoder().items()
    masks = [i for i, token in added if token.special and "mask" in token.content.lower()]
    own = {"unk": getattr(held.model, "unk_token", None), "cls": first, "sep": last, "mask": min(masks, default=None)}

    def find(role: str) -> int:
        for candidate in (said.get(f"{role}_token"), own[role], *_KNOWN[role]):
            place = candidate if isinstance(candidate, int) else held.token_to_id(candidate) if candidate else None
            if place is not None:
                return place
        return -1

    return Specials(*map(find, Specials._fields))


def _ends(held: Any) -> tuple[int | None, int | None]:
    """The tokens that it puts at a text's beginning and end."""
    bare, whole = (held.encode("a", add_special_tokens=added).ids for added in (False, True))
    for before in range(len(whole) - len(bare) + 1):
        if bare and whole[before : before + len(bare)] == bare:
            return whole[0] if before else None, whole[-1] if before + len(bare) < len(whole) else None
    return None, None
