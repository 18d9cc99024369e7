"""Vocabularies that are learnt from one's own texts: the same from the same texts, whatever the threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from nearfar.errors import UserError, require

NAMES = ("[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 3
_BYTES = 256
_BLOCK, _TIMES, _LONGEST = 256, 4096, 100  # texts at a time; a word's copies at a time; letters of a word
_COVERED = 0.9  # least share of the words that must be known


def learnt(texts: Iterable[str], kind: str, size: int, lower: bool) -> Any:
    """A ``tokenizers.Tokenizer`` of at most ``size`` tokens, ``kind`` wordpiece or bpe; [CLS] and [SEP] at the ends."""
    lib = require("tokenizers", "text", f"a {kind} tokeniser")
    if kind not in ("wordpiece", "bpe"):
        raise UserError(f"unknown kind of tokeniser {kind!r}: give wordpiece or bpe")
    held = _word_pieces(lib, texts, size, lower) if kind == "wordpiece" else _byte_pairs(lib, texts, size, lower)
    held.add_special_tokens(list(NAMES))
    ends = [(name, held.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    held.post_processor = lib.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)  # fmt: skip
    return held


def _byte_pairs(lib: Any, texts: Iterable[str], size: int, lower: bool) -> Any:
    """Byte-level BPE, as GPT-2's (Radford et al. 2019): nothing is unknown to it."""
    least = len(NAMES) + _BYTES
    if size < least:
        raise UserError(f"a bpe vocabulary of {size} has no room for all bytes: give text.vocabulary = {least} or more")
    held = lib.Tokenizer(lib.models.BPE())
    if lower:
        held.normalizer = lib.normalizers.Lowercase()
    held.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=True)
    held.decoder = lib.decoders.ByteLevel()
    trainer = lib.trainers.BpeTrainer(vocab_size=size, special_tokens=list(NAMES), show_progress=False, min_frequency=2,
                                      initial_alphabet=sorted(held.pre_tokenizer.alphabet()))  # fmt: skip
    held.train_from_iterator(texts, trainer)
    return held


def _word_pieces(lib: Any, texts: Iterable[str], size: int, lower: bool) -> Any:
    """WordPiece, as BERT's (Devlin et al. 2019, arXiv:1810.04805): words, and pieces that go on with ``##``.

    The library's trainer numbers the letters that go on in the order of a hash table, by which it then breaks ties: no
    two trainings are the same. So they are given to it beforehand, in order, and what it learns is taken out of it.
    """
    normalizer = lib.normalizers.BertNormalizer(lowercase=lower, strip_accents=False)
    splitter = lib.pre_tokenizers.BertPreTokenizer()
    words = _words(texts, lambda block: splitter.pre_tokenize_str(normalizer.normalize_str(block)))
    words, going_on = _with_room(words, size)
    trainer = lib.trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*NAMES, *going_on], min_frequency=2,
                                            show_progress=False)  # fmt: skip
    scratch = lib.Tokenizer(lib.models.WordPiece(unk_token=NAMES[0]))
    scratch.pre_tokenizer = lib.pre_tokenizers.WhitespaceSplit()
    scratch.train_from_iterator(_spelt(words), trainer)
    model = lib.models.WordPiece(vocab=scratch.get_vocab(), unk_token=NAMES[0], max_input_chars_per_word=_LONGEST)
    held = lib.Tokenizer(model)
    held.normalizer, held.pre_tokenizer, held.decoder = normalizer, splitter, lib.decoders.WordPiece()
    return held


def _words(texts: Iterable[str], split: Any) -> Counter[str]:
    """How often each word comes, of words that are not too long to be read."""
    texts, words = iter(texts), Counter()
    while block := list(islice(texts, _BLOCK)):
        words.update(word for word, _ in split("\n".join(block)) if len(word) <= _LONGEST)
    if not words:
        raise UserError("a tokeniser cannot be learnt from texts without a word")
    return words


def _with_room(words: Counter[str], size: int) -> tuple[Counter[str], list[str]]:
    """The words all of whose letters fit a vocabulary, the frequent first, and the letters that go on, as ``##x``."""
    often: Counter[str] = Counter()
    for word, n in words.items():
        for letter in word:
            often[letter] += n
    later = {letter for word in words for letter in word[1:]}
    room, kept = size - len(NAMES), set()
    for letter in sorted(often, key=lambda x: (-often[x], x)):
        room -= 1 + (letter in later)
        if room < 0:
            break
        kept.add(letter)
    known = Counter({word: n for word, n in words.items() if kept.issuperset(word)})
    if known.total() < _COVERED * words.total():
        least = len(NAMES) + len(often) + len(later)
        raise UserError(f"a vocabulary of {size} has no room for the texts' {len(often):,} letters: give "
                        f"text.vocabulary = {least} or more, or --text.tokenizer bpe")  # fmt: skip
    return known, [f"##{letter}" for letter in sorted(later & kept)]


def _spelt(words: Counter[str]) -> Iterator[str]:
    """Each word as often as it comes, in an order that is the words' own."""
    for word, n in sorted(words.items()):
        for at in range(0, n, _TIMES):
            yield f"{word} " * min(n - at, _TIMES)
