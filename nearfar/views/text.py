"""Views of texts: noise on token ids, a whole batch at once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nearfar.errors import UserError


class Noise(Protocol):
    """The noise of the recipe's [text]: shares, and ``shuffle`` in tokens."""

    delete: float
    crop: float
    shuffle: int
    mask: float
    repeat: float
    max_length: int


class Specials(Protocol):
    """Ids of tokens with a meaning of their own; -1 where there is none."""

    unk: int
    cls: int
    sep: int
    mask: int


class TextViews:
    """``views(content, generator)``: views of each text of a batch; of pairs and triplets their texts, in order.

    What is done to a text of n tokens, its first [CLS] and last [SEP] left alone, in this order, each where it is
    asked for:

    - ``crop`` c: a span of at least (1 - c) n tokens is kept, its length and place uniform;
    - ``delete`` p: each token is left out with probability p, but never all;
    - ``repeat`` r: of a uniform number of tokens, at most max(2, r n), each is written twice (Wu et al. 2021, ESimCSE,
      arXiv:2109.04380), as far as ``max_length`` has room;
    - ``shuffle`` k: tokens 0 to k - 1, k to 2 k - 1, … are put in another order among themselves;
    - ``mask`` p: each token becomes [MASK] with probability p, or [UNK] where there is no [MASK].

    Args:
        noise: how much of each, and the most tokens of a text: the recipe's ``TextOptions``.
        large: views of a single text. Without noise they are copies: an encoder's dropout makes them differ (Gao, Yao,
            Chen 2021, SimCSE, arXiv:2104.08821).
        specials: the tokeniser's.
        vocabulary: tokens there are.
        rank, world: with several processes each draws for the global batch and keeps its own rows, so that P processes
            see the views that one would have seen.

    Returns a list of (B, L) int64, -1 beyond a text's end, all of one L. What is drawn for text i of a batch is a
    function of the generator's state and i alone: not of the device, nor of the other texts' lengths.

    >>> from types import SimpleNamespace as Values
    >>> noise = Values(delete=0, crop=0, shuffle=0, mask=0, repeat=0, max_length=4)
    >>> views = TextViews(noise, 2, Values(unk=0, cls=1, sep=2, mask=3), 10)
    >>> [v.tolist() for v in views(np.array([[[1, 7, 2]], [[1, 2, -1]]]), torch.Generator())]
    [[[1, 7, 2], [1, 2, -1]], [[1, 7, 2], [1, 2, -1]]]
    """

    def __init__(
        self, noise: Noise, large: int, specials: Specials, vocabulary: int, rank: int = 0, world: int = 1
    ) -> None:
        if large < 1:
            raise UserError(f"{large} views of a text: give at least one")
        self.noise, self.large, self.specials, self.vocabulary = noise, large, specials, vocabulary
        self.rank, self.world = rank, world
        self._mask = specials.mask if specials.mask >= 0 else specials.unk
        if noise.mask and not 0 <= self._mask < vocabulary:
            raise UserError(f"text.mask = {noise.mask}: the tokeniser has neither [MASK] nor [UNK]: give 0")

    @property
    def is_plain(self) -> bool:
        """Without noise: views of a text are copies."""
        held = self.noise
        return not (held.crop or held.delete or held.repeat or held.shuffle or held.mask)

    def __call__(
        self, content: np.ndarray | Tensor, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        x = _tokens(content, self.noise.max_length)  # (B, S, L)
        if x.shape[1] == 1:
            x = x.expand(-1, self.large, -1)  # (B, V, L)
        if not self.is_plain:
            x = self._noisy(x, generator)
        return list(x.transpose(0, 1).contiguous().to(device, non_blocking=True))  # V of (B, L)

    def _noisy(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """All noise that is asked for. (B, V, L) -> (B, V, L')

        Drawn as wide as a text can be, so that it does not depend on the longest of this process's.
        """
        held, (b, v, length) = self.noise, x.shape
        width = min(held.max_length, 2 * length if held.repeat else length)
        wide = torch.nn.functional.pad(x, (0, width - length), value=-1).flatten(0, 1)  # (B V, M)
        rows = slice(self.rank * b, (self.rank + 1) * b)

        def drawn(n: int, used: int) -> Tensor:
            u = torch.rand(self.world * b, v, n, generator=generator, dtype=torch.float64)  # (world B, V, n)
            return u[rows, :, :used].flatten(0, 1).to(x.device)  # (B V, used)

        if held.crop:
            wide = self._kept(wide, cropped(self._content(wide), held.crop, drawn(2, 2)))
        if held.delete:
            wide = self._kept(wide, ~deleted(self._content(wide), held.delete, drawn(held.max_length, width)))
        if held.repeat:
            wide = repeated(wide, self._content(wide), held.repeat, drawn(1 + held.max_length, 1 + width))
        if held.shuffle > 1:
            wide = shuffled(wide, self._content(wide), held.shuffle, drawn(held.max_length, width))
        if held.mask:
            wide = wide.masked_fill(self._content(wide) & (drawn(held.max_length, width) < held.mask), self._mask)
        longest = int((wide >= 0).sum(1).max())
        return wide[:, :longest].unflatten(0, (b, v))

    def _content(self, x: Tensor) -> Tensor:
        """Which tokens are a text's own, not its first [CLS] or last [SEP]. (N, M) -> (N, M) bool"""
        own = x >= 0
        last = own.sum(1, keepdim=True) - 1  # (N, 1)
        place = torch.arange(x.shape[1], device=x.device)
        return own & ~((place == 0) & (x == self.specials.cls)) & ~((place == last) & (x == self.specials.sep))

    def _kept(self, x: Tensor, keep: Tensor) -> Tensor:
        """The text's ends, and of what is between them what is to be kept. (N, M), (N, M) bool -> (N, M)"""
        return moved(x, keep | ((x >= 0) & ~self._content(x)))


def moved(x: Tensor, keep: Tensor) -> Tensor:
    """The tokens that are kept, close together. (N, M), (N, M) bool -> (N, M)"""
    to = torch.where(keep, keep.cumsum(1) - 1, x.shape[1])  # (N, M), what is not kept goes to one place too many
    return x.new_full((len(x), x.shape[1] + 1), -1).scatter_(1, to, x)[:, :-1]


def cropped(own: Tensor, share: float, u: Tensor) -> Tensor:
    """A span of at least (1 - share) n of each text's n tokens. (N, M) bool, (N, 2) -> (N, M) bool"""
    n = own.sum(1)  # (N,)
    most = torch.minimum((share * n + 1e-9).long(), n - 1)
    cut = (u[:, 0] * (most + 1)).long()  # (N,) 0 to most
    start = (u[:, 1] * (cut + 1)).long()  # (N,) 0 to cut
    place = own.cumsum(1) - 1 - start[:, None]  # (N, M)
    return own & (place >= 0) & (place < (n - cut)[:, None])


def deleted(own: Tensor, share: float, u: Tensor) -> Tensor:
    """Each token with probability ``share``, but not all of a text. (N, M) bool, (N, M) -> (N, M) bool"""
    gone = own & (u < share)
    stays = torch.where(own, u, -1.0).argmax(1, keepdim=True)  # (N, 1), last to go
    return gone & ~((gone == own).all(1, keepdim=True) & torch.zeros_like(own).scatter_(1, stays, True))


def repeated(x: Tensor, own: Tensor, share: float, u: Tensor) -> Tensor:
    """Some tokens twice: 0 to max(2, share n) of n, which ones by lot. (N, M), (N, M) bool, (N, 1 + M) -> (N, M)"""
    n, width = own.sum(1), x.shape[1]
    most = torch.minimum((share * n + 1e-9).long().clamp(min=2), n)
    times = torch.minimum((u[:, 0] * (most + 1)).long(), width - (x >= 0).sum(1))  # (N,), no more than has room
    rank = torch.where(own, u[:, 1:], 2.0).argsort(1).argsort(1)  # (N, M), of a text's own tokens 0 to n - 1
    twice = own & (rank < times[:, None])
    to = torch.arange(width, device=x.device) + twice.cumsum(1) - twice.long()  # (N, M), never falls
    out = x.new_full((len(x), 2 * width), -1)
    out.scatter_(1, torch.where(x >= 0, to, 2 * width - 1), x)
    return out.scatter_(1, torch.where(twice, to + 1, 2 * width - 1), torch.where(twice, x, -1))[:, :width]


def shuffled(x: Tensor, own: Tensor, span: int, u: Tensor) -> Tensor:
    """Spans of so many tokens, each in another order. (N, M), (N, M) bool, (N, M) -> (N, M)"""
    place = torch.arange(x.shape[1], device=x.device)
    block = (own.cumsum(1) - 1).div(span, rounding_mode="floor") + u  # (N, M)
    first = (own.cumsum(1) == 0) & (x >= 0)  # [CLS]
    key = torch.where(own, block, torch.where(first, -1.0, (x.shape[1] + place).double()))
    return x.gather(1, key.argsort(1))


def _tokens(content: np.ndarray | Tensor, longest: int) -> Tensor:
    """(B, S, L) int64, or one line that says what is wrong."""
    x = torch.from_numpy(np.array(content)) if isinstance(content, np.ndarray) else content
    if x.ndim != 3 or 0 in x.shape or x.is_floating_point():
        raise UserError(f"views of an array of {x.dtype} of shape {tuple(x.shape)}: give token ids as (B, S, L)")
    if x.shape[2] > longest:
        raise UserError(f"texts of {x.shape[2]} tokens, where text.max_length is {longest}")
    return x.to(torch.int64)
