"""From a recipe and texts to what can train: tokeniser, tokens, encoder and views."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar import methods
from nearfar.data import Source, Splits, hold_out, to_stderr
from nearfar.encoders.hugging_face import RANDOM
from nearfar.encoders.words import text_encoder
from nearfar.errors import UserError
from nearfar.recipe import Recipe
from nearfar.text import Texts, TextSplits, open_texts
from nearfar.text.tokenizer import Tokenizer
from nearfar.text.tokens import neighbouring, tokenised
from nearfar.views.text import TextViews

_TRAINED = ("wordpiece", "bpe")


@dataclass(frozen=True)
class Wording:
    """What a source of tokens was made of."""

    texts: Texts
    tokenizer: Tokenizer
    slot: int = 0  # which text of a row comes first

    def subset(self, index: np.ndarray) -> Wording:
        return dataclasses.replace(self, texts=self.texts.subset(index))

    def first(self) -> list[str]:
        """The texts that an encoder is given."""
        return list(self.texts.column(self.slot))


@dataclass(frozen=True)
class Words:
    """What a text encoder takes: tokens by this tokeniser."""

    tokenizer: Tokenizer

    def ready(self, source: Source, index: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """A source's texts as the encoder takes them, of pairs the first. -> (B, L) int64, -1 where there is nothing"""
        return torch.as_tensor(source.read(index)[:, 0]).to(device, torch.int64)

    def described(self) -> dict[str, Any]:
        return {"tokenizer": digest(self.tokenizer.to_json()), "vocabulary": self.tokenizer.size}


def digest(text: str) -> str:
    """16 hexadecimal digits of a tokeniser's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_described(about: dict[str, Any]) -> bool:
    """Whether a checkpoint's record says which tokeniser its model takes, how many classes and texts there were."""
    try:
        held = about["input"]
        texts = type(about["images"]) is int and 0 < about["images"] < 2**40
        return texts and type(held["tokenizer"]) is str and all(type(c) is str for c in about["classes"])
    except (KeyError, TypeError):
        return False


def open_like(
    spec: Any, wanted: Words | None, recipe: Recipe, progress: Any = None, say: Callable[[str], None] = to_stderr
) -> Splits:
    """Open a source of texts as tokens: by a run's tokeniser, or by the one that the recipe asks for.

    A tokeniser that is trained sees the part that is trained on alone, so that is split off here.
    """
    texts = open_texts(spec, recipe.text, max_bad=recipe.max_bad, progress=progress, say=say)
    if wanted is None:
        texts = TextSplits(*split(texts, recipe))
        tokenizer = tokenizer_for(recipe, texts.train)
    else:
        tokenizer = wanted.tokenizer
    parts = [None if part is None else source_of(part, tokenizer, recipe, say) for part in (texts.train, texts.test)]
    for part in parts:
        _tell_unknown(part, tokenizer, say)
    return Splits(*parts)


def split(splits: Any, recipe: Recipe) -> tuple[Any, Any]:
    """The part that is trained on and the part that judges: the source's own, or one held out by the seed.

    Where there is nothing to judge by, neither labels, scores nor pairs, all is trained on.
    """
    train, test = splits.train, splits.test
    if test is not None or recipe.holdout == 0 or not can_be_judged(train):
        return train, test
    kept, held = hold_out(train, recipe.holdout, recipe.seed)
    if not len(kept) or not len(held):
        return train, None
    return train.subset(kept), train.subset(held)


def judged_by(splits: Splits, recipe: Recipe, own: bool) -> tuple[Source, Source | None]:
    """What judges of a source are fitted on and what they judge: of other scored or bare pairs than a run's own, all.

    Nothing is fitted where pairs are judged, so none of them need be held out.
    """
    if own or splits.test is not None or splits.train.labels is not None or not can_be_judged(splits.train):
        return split(splits, recipe)
    return splits.train, splits.train


def training_texts(recipe: Recipe, say: Callable[[str], None]) -> Texts | None:
    """What a run was trained on, for baselines to be fitted on; None where it is not at hand."""
    if recipe.source == "array":
        say("the run was trained on a list: TF-IDF and word vectors are fitted on the texts that are judged")
        return None
    try:
        return split(open_texts(recipe.source, recipe.text, max_bad=recipe.max_bad, say=lambda text: None), recipe)[0]
    except UserError as error:
        say(f"TF-IDF and word vectors are fitted on the texts that are judged: {error}")
        return None


def can_be_judged(part: Source | Texts) -> bool:
    several = len(part.slots) > 1 if isinstance(part, Texts) else len(part.shape) == 2 and part.shape[0] > 1
    return part.labels is not None or getattr(part, "scores", None) is not None or several


def tokenizer_for(recipe: Recipe, texts: Texts) -> Tokenizer:
    """Trained on these texts, or loaded; a model of transformers brings its own."""
    kind = recipe.text.tokenizer
    library, _, name = recipe.encoder.partition(":")
    if library == "transformers" and kind == "wordpiece":
        return Tokenizer.load(name.removesuffix(RANDOM))
    if kind not in _TRAINED:
        return Tokenizer.load(kind)
    return Tokenizer.train(texts.every(), kind=kind, vocabulary=recipe.text.vocabulary, lower=recipe.text.lower)


def source_of(
    texts: Texts, tokenizer: Tokenizer, recipe: Recipe, say: Callable[[str], None], **pairs: Any
) -> Source:  # fmt: skip
    """Texts as a source of tokens."""
    held = recipe.text
    made = tokenised(texts, tokenizer, max_length=held.max_length, prefix=held.prefix,
                     second_prefix=held.second_prefix, specials=recipe.encoder != "bag", say=say,
                     **pairs)  # fmt: skip
    return made if pairs else dataclasses.replace(made, origin=Wording(texts, tokenizer))


def slot(source: Source, s: int) -> Source:
    """One column of a source of pairs or triplets."""
    return dataclasses.replace(source, shape=(1, source.shape[1]), scores=None,
                               origin=dataclasses.replace(source.origin, slot=s),
                               reader=lambda index: source.reader(index)[:, s : s + 1])  # fmt: skip


def columns_of(source: Source) -> int:
    """Texts a row; 1 of images."""
    return source.shape[0] if source.origin is not None else 1


def material(data: Source, recipe: Recipe) -> Source:
    """What is trained on: the source itself, or the pairs of neighbouring sentences that the method wants."""
    if getattr(methods.module(recipe.method), "NEEDS", "") != "neighbours" or data.shape[0] > 1:
        return data
    reach = getattr(recipe.method_config(), "reach", 1)
    if recipe.text.prefix == recipe.text.second_prefix:
        return neighbouring(data, data.origin.texts, reach)
    return source_of(data.origin.texts, data.origin.tokenizer, recipe, lambda text: None, pairs="neighbours",
                     reach=reach)  # fmt: skip


def _tell_unknown(part: Source | None, tokenizer: Tokenizer, say: Callable[[str], None]) -> None:
    """A script that the tokeniser has never met."""
    if part is None or not len(part):
        return
    tokens = part.read(np.arange(min(len(part), 1000)))  # (n, S, L)
    share = tokenizer.unknown_share(tokens[tokens >= 0])
    if share > 0.2:
        say(f"{part.spec}: {share:.0%} of the tokens are unknown to the tokeniser, which was made from other text: "
            "what they say is lost; train on text of this script, or with --text.tokenizer bpe, which knows all bytes")


def check(recipe: Recipe, source: Source) -> None:
    """One line where a method cannot learn from what the texts are."""
    module, name, slots = methods.module(recipe.method), recipe.method, source.shape[0]
    if getattr(module, "CONTENT", "") == "image":
        raise UserError(f"{name} learns from images alone: for text use --method simcse")
    needs = getattr(module, "NEEDS", "")
    if needs == "scores" and source.scores is None:
        raise UserError(f"{name} learns from scored pairs and {recipe.source} has no scores: name their column with "
                        "--text.score, or use --method simcse")  # fmt: skip
    if source.scores is not None and needs != "scores" and not getattr(module, "SCORES", False):
        raise UserError(f"{name} takes every pair for a positive, and {recipe.source} has scores: use --method cosent, "
                        "angle, logistic or margin-contrastive, or pass --text.score none")  # fmt: skip
    if slots > 2 and not getattr(module, "NEGATIVES", False):
        raise UserError(f"{name} would take the third text of a row, its negative, for a positive: use --method "
                        "simcse, or name two columns with --text.columns")  # fmt: skip
    if needs == "pairs" and slots < 2:
        raise UserError(f"{name} learns from pairs and {recipe.source} has single texts: name two columns with "
                        "--text.columns, or use --method simcse")  # fmt: skip


def encoder(recipe: Recipe, words: Words) -> nn.Module:
    """The recipe's encoder for a tokeniser's vocabulary, with fresh weights of PyTorch's generator."""
    held, module = recipe.text, methods.module(recipe.method)
    made = text_encoder(recipe.encoder, words.tokenizer.size, width=recipe.width, layers=held.layers,
                        heads=held.heads, dropout=held.dropout, pooling=held.pooling, max_length=held.max_length,
                        causal=getattr(module, "CAUSAL", False))  # fmt: skip
    made.specials = words.tokenizer.specials
    return made


def views(recipe: Recipe, encoder: Any, large: int, *, rank: int = 0, world: int = 1) -> TextViews:
    """A resolved recipe's views: ``large`` of a single text, with the noise asked for; else the columns."""
    return TextViews(recipe.text, large, encoder.specials, encoder.vocabulary, rank=rank, world=world)
