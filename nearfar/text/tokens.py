"""Texts as tokens: a source that the loader reads, each text tokenised once, flat in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nearfar.data.folder import to_stderr
from nearfar.data.names import Picked
from nearfar.data.source import Source, shown
from nearfar.errors import UserError, nearest
from nearfar.text.records import Texts
from nearfar.text.tokenizer import Tokenizer

PAD = -1  # no token: what rows of a batch are filled with, at their ends
_PAIRS, _KINDS = ("given", "neighbours"), ("text", "document", "label")


def tokenised(
    texts: Texts, tokenizer: Tokenizer, *, max_length: int = 64, prefix: str = "", second_prefix: str = "",
    specials: bool = True, pairs: str = "given", reach: int = 1, apart: str = "text",
    say: Callable[[str], None] = to_stderr,
) -> Source:  # fmt: skip
    """A source of tokens: ``read`` gives (B, S, L) int32, -1 beyond a text's end, L the longest of the batch.

    Args:
        max_length: tokens of a text that are kept, ends included.
        prefix, second_prefix: written before the first text of a row, and before the others.
        specials: with [CLS] and [SEP], or what else the tokeniser puts at a text's ends.
        pairs, reach: ``given``: the rows as they are; ``neighbours``: :func:`neighbouring` ones of single texts.
        apart: rows that share no batch: those with a text in common, but for capitals and blanks at its ends (of
            explicit negatives: where it is another row's anchor or positive); with ``document`` or ``label`` those of
            one document or class, too.
        say: is told how many texts hold nothing that the tokeniser knows.

    Raises ``UserError`` where there is no text, or no pair of neighbours.

    >>> from nearfar.text import open_texts
    >>> texts = open_texts(["a boat", "a ship", "A boat "]).train
    >>> source = tokenised(texts, Tokenizer.train(texts.column(), vocabulary=40))
    >>> source.read([0]).shape, source.apart.tolist()
    ((1, 1, 4), [0, 1, 0])
    """
    if not len(texts):
        raise UserError(f"{texts.spec} has no text: there is nothing to tokenise")
    if pairs not in _PAIRS:
        raise UserError(f"unknown pairs {pairs!r}{nearest(pairs, _PAIRS)}")
    columns = [(slot, second_prefix if slot else prefix) for slot in range(len(texts.slots))]
    if pairs == "neighbours" and prefix != second_prefix:
        columns = [(0, prefix), (0, second_prefix)]  # each text may come first, or second
    source = Source(
        texts.spec, (len(columns), max_length), _tokens(texts, tokenizer, max_length, columns, specials, say),
        Shown(texts), texts.labels, texts.classes, skipped=texts.skipped, hashes=texts.hashes, scores=texts.scores,
        apart=_numbers(texts, apart),
    )  # fmt: skip
    return neighbouring(source, texts, reach) if pairs == "neighbours" else source


def neighbouring(source: Source, texts: Texts, reach: int = 1) -> Source:
    """Pairs of sentences of one document: (t, t + r), r from 1 to ``reach``, in reading order.

    Of :func:`tokenised` single texts, which are not tokenised again (Logeswaran and Lee 2018, arXiv:1803.02893). Pairs
    with a sentence in common share no batch. Raises ``UserError`` where there are no documents, or no pair.
    """
    near = _neighbours(texts, reach)  # (P, 2)
    hashes = texts.hashes[near]  # (P, 2)

    def read(index: np.ndarray) -> np.ndarray:
        x = source.read(near[index].ravel())  # (2 B, 1, L), or 2 columns where prefixes differ
        return np.stack([x[0::2, 0], x[1::2, -1]], 1)  # (B, 2, L)

    return Source(
        source.spec, (2, source.shape[1]), read, Picked(source.names, near[:, 0]), skipped=source.skipped,
        hashes=hashes[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ hashes[:, 1],
        apart=None if source.apart is None else source.apart[near].reshape(len(near), -1),
    )  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Reads rows of tokens by their places. (B,) -> (B, S, L) int32"""

    flat: np.ndarray  # (T,) uint16 or int32
    starts: np.ndarray  # (N, S) int64
    lengths: np.ndarray  # (N, S) int32

    def __call__(self, index: np.ndarray) -> np.ndarray:
        starts, lengths = self.starts[index], self.lengths[index]  # (B, S)
        across = np.arange(int(lengths.max(initial=0)))
        inside = across < lengths[..., None]  # (B, S, L)
        out = np.full(inside.shape, PAD, np.int32)
        out[inside] = self.flat[(starts[..., None] + across)[inside]]
        return out


class Shown(Sequence):
    """The first text of each row, cut at 200 letters, as its name, made as it is asked for."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, i: int) -> str:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return shown(self._texts.text(i % len(self)))

    def __iter__(self) -> Iterator[str]:
        return map(shown, self._texts.column())


def _tokens(
    texts: Texts, tokenizer: Tokenizer, max_length: int, columns: list[tuple[int, str]], specials: bool,
    say: Callable[[str], None],
) -> Rows:  # fmt: skip
    """The texts of slots, each after its prefix, as tokens, block by block."""
    kind = np.uint16 if tokenizer.size <= 2**16 else np.int32
    flat: list[np.ndarray] = []
    lengths, nothing = np.empty((len(columns), len(texts)), np.int32), 0
    for row, (slot, before) in zip(lengths, columns):
        at = 0
        for ids, sizes in tokenizer.stream((before + t for t in texts.column(slot)), max_length, specials=specials):
            flat.append(ids.astype(kind))
            row[at : at + len(sizes)] = sizes
            nothing += tokenizer.wordless(ids, sizes, specials=specials)
            at += len(sizes)
    if nothing:
        say(f"{texts.spec}: {nothing:,} of {lengths.size:,} texts hold nothing that the tokeniser knows: each is one "
            "unknown token")  # fmt: skip
    ends = np.cumsum(lengths.ravel(), dtype=np.int64)
    starts = (ends - lengths.ravel()).reshape(lengths.shape)  # (S, N)
    return Rows(np.concatenate(flat), np.ascontiguousarray(starts.T), np.ascontiguousarray(lengths.T))


def _neighbours(texts: Texts, reach: int) -> np.ndarray:
    """Which texts stand at most ``reach`` after which in one document, in reading order. -> (P, 2)"""
    if reach < 1:
        raise UserError(f"reach {reach}: give 1 or more")
    if len(texts.slots) > 1:
        raise UserError(f"{texts.spec} has pairs: neighbouring sentences are made of single texts")
    if texts.documents is None:
        raise UserError(f"{texts.spec} has no documents, and neighbouring sentences are of one: give text files with "
                        "blank lines between documents, or a folder of them")  # fmt: skip
    held = texts.documents
    pairs = np.concatenate([np.empty((0, 2), np.int64)] + [
        np.flatnonzero(held[r:] == held[:-r])[:, None] + [0, r] for r in range(1, min(reach, len(held) - 1) + 1)
    ])  # (P, 2)  # fmt: skip
    if not len(pairs):
        raise UserError(f"{texts.spec}: no two texts stand next to each other in a document: pass --text.unit sentence")
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _numbers(texts: Texts, apart: str) -> np.ndarray:
    """What rows must not share in a batch. -> (N,) or (N, C) int64"""
    if apart not in _KINDS:
        raise UserError(f"unknown apart {apart!r}{nearest(apart, _KINDS)}")
    more = {"text": (), "document": texts.documents, "label": texts.labels}[apart]
    if more is None:
        raise UserError(f"{texts.spec} has no {apart}s by which rows could be kept apart")
    alike = np.stack([_alike(texts, slot) for slot in range(len(texts.slots))], 1)  # (N, S) uint64
    values, codes = np.unique(alike, return_inverse=True)
    codes = codes.reshape(alike.shape).astype(np.int64)  # (N, S)
    n, new = len(texts), len(values)
    for negative in codes.T[2:]:  # two rows may have one negative: it is nobody's positive
        alone = ~np.isin(negative, codes[:, :2])
        negative[alone] = np.arange(new, new + int(alone.sum()))
        new += n
    if apart != "text":
        codes = np.concatenate([codes, more[:, None] - more.min() + new], 1)  # (N, S + 1)
    return codes[:, 0] if codes.shape[1] == 1 else codes


def _alike(texts: Texts, slot: int) -> np.ndarray:
    """64 bits of each text, the same of two that differ in capitals and in blanks at their ends alone. (N,) uint64"""
    out = np.empty(len(texts), np.uint64)
    for i, text in enumerate(texts.column(slot)):
        digest = hashlib.blake2b(text.strip().casefold().encode("utf-8"), digest_size=8).digest()
        out[i] = int.from_bytes(digest, "little")
    return out
