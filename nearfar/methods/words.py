"""What methods on text share: draws, masking, and the head that tells tokens from vectors by the tied embedding."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar import dist
from nearfar.encoders.bag import Bag
from nearfar.errors import UserError
from nearfar.losses import cross_entropy

KEPT, SWAPPED = 0.1, 0.1  # Devlin et al., section 3.1: of the chosen tokens these stay, or turn into any other


class Masked(NamedTuple):
    """Texts with some of their tokens hidden."""

    x: Tensor  # (B, L) with [MASK] and other tokens in places
    chosen: Tensor  # (B, L) bool: what is to be told


def uniform(x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1) for each place of a batch, the same however many processes share it. (B, L) -> (draws, B, L)"""
    sizes = dist.exchange(list(x.shape), x.device)
    rows, longest = sum(b for b, _ in sizes), max(n for _, n in sizes)
    drawn = torch.rand(rows, longest, draws, generator=generator, device=generator.device)
    first = sum(b for b, _ in sizes[: dist.rank()])
    return drawn[first : first + len(x), : x.shape[1]].movedim(2, 0).to(x.device)


def without(x: Tensor, *specials: int) -> Tensor:
    """Which places hold a token that is none of these, nor padding. (B, L) -> (B, L) bool"""
    return (x >= 0) & ~torch.isin(x, x.new_tensor(specials))


def mask(x: Tensor, vocabulary: int, specials: Any, share: float, generator: torch.Generator) -> Masked:
    """BERT's masking: a share of the tokens is chosen, of which 80 % become [MASK], 10 % any token, 10 % stay.

    Devlin, Chang, Lee, Toutanova 2018 (arXiv:1810.04805), section 3.1. Each token is chosen by itself, with
    probability ``share``; special tokens never are. x (B, L), -1 where there is nothing.
    """
    choice, kind, other = uniform(x, 3, generator)  # 3 of (B, L)
    chosen = without(x, *specials) & (choice < share)
    swapped = (other * vocabulary).long().clamp(max=vocabulary - 1)  # (B, L)
    hidden = torch.where(kind < SWAPPED, swapped, specials.mask)
    return Masked(torch.where(chosen & (kind < 1 - KEPT), hidden, x), chosen)


def delete(x: Tensor, specials: Any, share: float, generator: torch.Generator) -> Tensor:
    """Each token is left out with this probability; [CLS], [SEP] and one other stay. (B, L) -> (B, L')

    >>> from collections import namedtuple
    >>> specials = namedtuple("Specials", "unk cls sep mask")(0, 1, 2, 3)
    >>> delete(torch.tensor([[1, 7, 8, 9, 2, -1]]), specials, 1.0, torch.Generator().manual_seed(0))
    tensor([[1, 7, 2]])
    """
    (drawn,) = uniform(x, 1, generator)  # (B, L)
    words = without(x, specials.cls, specials.sep)
    last = torch.where(words, drawn, -1.0).argmax(1, keepdim=True)  # (B, 1) the one that stays at any rate
    kept = (x >= 0) & (~words | (drawn >= share))
    kept.scatter_(1, last, (x >= 0).gather(1, last))
    order = (~kept).to(torch.int8).argsort(dim=1, stable=True)  # those that stay come first, in their order
    lengths = kept.sum(1, keepdim=True)  # (B, 1)
    out = x.gather(1, order).masked_fill(torch.arange(x.shape[1], device=x.device) >= lengths, -1)
    return out[:, : int(lengths.max())]


class TokenHead(nn.Module):
    """From vectors to the tokens they stand for: dense, GELU, LayerNorm, then the embedding's own rows and a bias.

    BERT's head (google-research/bert, run_pretraining.py, get_masked_lm_output). The tokens' logits h·Eᵀ + b are never
    held: they are :func:`nearfar.losses.cross_entropy` of [h, 1] against the vocabulary's rows [E, b].
    """

    def __init__(self, features: int, vocabulary: int, width: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(features, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, h: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
        """Cross-entropy of telling the tokens, the mean over all processes'. (n, features), (n,), (V, width) -> ()"""
        h = self.norm(F.gelu(self.dense(h)))  # (n, width)
        h = torch.cat([h, h.new_ones(len(h), 1)], 1)  # (n, width + 1)
        return cross_entropy(h, tokens, torch.cat([weight, self.bias[:, None].to(weight.dtype)], 1))


def token_head(encoder: nn.Module) -> TokenHead:
    """The head for an encoder's token vectors."""
    return TokenHead(encoder.features, *encoder.embedding.weight.shape)


def masked_loss(
    encoder: nn.Module, head: TokenHead, x: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Masked-language modelling: hide, encode, tell what was hidden.

    x (B, L) -> the loss (), the token vectors (T, features), and the texts as they were encoded (B, L).
    """
    hidden = mask(x, encoder.vocabulary, encoder.specials, share, generator)
    h = encoder.tokens(hidden.x)  # (T, features)
    at = hidden.chosen[x >= 0]  # (T,)
    return head(h[at], x[hidden.chosen], encoder.embedding.weight), h, hidden.x


def check_masking(method: str, encoder: nn.Module) -> None:
    """One line where the encoder does not see what is around a token, or the tokeniser has no [MASK]."""
    if isinstance(encoder, Bag):
        raise UserError(f"{method} tells hidden tokens from those around them, which a bag does not see: use --encoder "
                        "transformer, gru or lstm")  # fmt: skip
    if encoder.specials.mask < 0:
        raise UserError(f"{method} hides tokens behind a mask token and this tokeniser has none: use --method simcse, "
                        "or --text.tokenizer wordpiece or bpe")  # fmt: skip


def pooled(encoder: nn.Module, h: Tensor, x: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's features of texts whose token vectors are known. h (T, d), x (B, L), loss () -> (B, d), loss ()

    They are there to be watched, without gradient; weights of the pooling, which no token's loss reaches, have a
    gradient of zero with the loss that comes back, as DDP waits for one of every weight.
    """
    kept = x >= 0
    with torch.no_grad():
        features = encoder.pooling(h.detach(), kept.nonzero()[:, 0], kept.sum(1))  # (B, d)
    return features, loss + sum(0 * p.sum() for p in encoder.pooling.parameters())


def chance(vocabulary: int) -> float:
    """The loss of an encoder that takes every token for as likely as any other."""
    return math.log(vocabulary)


def order_chance(scores: Tensor) -> Tensor:
    """CoSENT's loss where all cosines are alike: log(1 + pairs of pairs whose scores differ). (B,) -> ()"""
    counts = dist.gather(scores).unique(return_counts=True)[1].double()  # (K,) pairs of each score
    return (1 + (counts.sum().square() - counts.square().sum()) / 2).log()
