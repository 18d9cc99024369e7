"""Encoders of text by name."""

from __future__ import annotations

from torch import nn

from nearfar.encoders.bag import Bag
from nearfar.encoders.recurrent import CELLS, Recurrent
from nearfar.encoders.transformer import Transformer
from nearfar.errors import UserError, nearest

NAMES = ("bag", "gru", "lstm", "transformer")
_HUB = "transformers:"


def is_text(name: str) -> bool:
    """Whether an encoder takes text, by its name."""
    return name in NAMES or name.startswith(_HUB)


def text_encoder(
    name: str, vocabulary: int, *, width: int = 0, layers: int = 0, heads: int = 0, dropout: float = 0.1,
    pooling: str = "", max_length: int = 64, causal: bool = False,
) -> nn.Module:  # fmt: skip
    """An encoder of text: (B, L) tokens, -1 beyond a text's end -> (B, features).

    Args:
        name: ``bag``, ``gru``, ``lstm``, ``transformer``, or ``transformers:NAME`` or ``:FOLDER``.
        vocabulary: tokens there are.
        width: features; 0: 256.
        layers, heads: 0: their defaults (recurrent: 1; transformer: 4 and 4).
        dropout: while it trains.
        pooling: mean, cls, last, attention or max; left out: the mean, of a causal transformers' model the last.
        max_length: tokens of a text, at most.
        causal: a token's vector does not see what follows.

    Besides ``forward``, ``tokens(x)`` gives each token's vector, (T, features) in the order of ``x[x >= 0]``. Raises
    ``UserError``.
    """
    if name.startswith(_HUB):
        from nearfar.encoders.hugging_face import HuggingFace

        _refuse(name, width=width, layers=layers, heads=heads, causal=causal)
        return HuggingFace(name.removeprefix(_HUB), vocabulary, dropout=dropout, pooling=pooling, max_length=max_length)
    if name == "bag":
        _refuse(name, layers=layers, heads=heads, pooling="" if pooling == "mean" else pooling, causal=causal)
        return Bag(vocabulary, width or 256, dropout=dropout, max_length=max_length)
    common = {"dropout": dropout, "pooling": pooling or "mean", "max_length": max_length, "causal": causal}
    if name in CELLS:
        _refuse(name, heads=heads)
        return Recurrent(name, vocabulary, width or 256, layers=layers or 1, **common)
    if name == "transformer":
        return Transformer(vocabulary, width or 256, layers=layers or 4, heads=heads or 4, **common)
    raise UserError(f"unknown encoder of text {name!r}{nearest(name, [*NAMES, 'transformers:NAME'])}")


def _refuse(name: str, **given: object) -> None:
    """One line where an encoder is asked for what it has not."""
    for what, value in given.items():
        if value:
            fix = "use --encoder transformer" if what == "causal" else "leave it out"
            raise UserError(f"--encoder {name} takes no {what} = {value}: {fix}")
