"""What texts are worth without a network: TF-IDF, and averages of word vectors from counts. On training texts alone."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearfar.errors import UserError
from nearfar.evaluate import cosines

__all__ = ["Words", "cosines", "tf_idf", "word_vectors", "words_of"]

_WORD = re.compile(r"\w+")
_TOKENS, _TEXTS = 2**20, 4096  # words counted, and texts averaged, at a time


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case.

    >>> words_of("A girl's hair, in 1990.")
    ['a', 'girl', 's', 'hair', 'in', '1990']
    """
    return _WORD.findall(text.lower())


def tf_idf(train: Iterable[str]) -> Callable[[Sequence[str]], Any]:
    r"""Words weighted by how rarely they stand in the training texts, in rows of length one; scikit-learn's.

    .. math:: x_{tw} \propto (1 + \ln n_{tw})\Big(1 + \ln\frac{1 + N}{1 + N_w}\Big)

    n counts word w in text t, N the training texts, N_w those with w. Words that training texts lack are left out.
    Returns texts -> (n, V) CSR float64, which every judge takes. Raises ``UserError`` where there is no word.

    >>> tf_idf(["a cat", "a dog"])(["dog dog"]).toarray()
    array([[0., 0., 1.]])
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted = TfidfVectorizer(analyzer=words_of, sublinear_tf=True)
    try:
        fitted.fit(train)
    except ValueError as error:
        raise UserError(f"TF-IDF: the training texts hold no words ({error})") from None
    return lambda texts: fitted.transform(texts)


@dataclass(frozen=True)
class Words:
    """A vector for each word of the training texts."""

    vocabulary: dict[str, int]
    vectors: np.ndarray = field(repr=False)  # (V, d) float32
    share: np.ndarray = field(repr=False)  # (V,) of all words of the training texts
    common: np.ndarray = field(repr=False)  # (d,) the direction that training texts share most, of length one

    def averaged(self, texts: Sequence[str]) -> np.ndarray:
        """The mean of a text's word vectors; zeros where it has no known word. -> (n, d) float32"""
        return self._mean(texts, np.ones(len(self.share)))

    def sif(self, texts: Sequence[str], *, a: float = 1e-3, remove: bool = True) -> np.ndarray:
        r"""The mean with each word weighted by :math:`a/(a + p(w))`, less what all texts have in common.

        Smooth inverse frequency: Arora, Liang & Ma 2017 (A simple but tough-to-beat baseline for sentence embeddings),
        algorithm 1. p(w) and the common direction, the first singular vector, are of the training texts here, not of
        those that are judged; it is taken at a = 1e-3. ``remove=False`` leaves it in. -> (n, d) float32
        """
        z = self._mean(texts, a / (a + self.share))
        return z - (z @ self.common)[:, None] * self.common if remove else z

    def _mean(self, texts: Sequence[str], weight: np.ndarray) -> np.ndarray:
        """Σ weight · vector over how many known words a text has. -> (n, d) float32"""
        out = np.zeros((len(texts), self.vectors.shape[1]), np.float32)
        for at in range(0, len(texts), _TEXTS):
            counts = _counts(texts[at : at + _TEXTS], self.vocabulary)  # (n, V)
            known = np.maximum(np.asarray(counts.sum(1)).reshape(-1, 1), 1)  # (n, 1)
            out[at : at + _TEXTS] = (counts @ (weight[:, None] * self.vectors)) / known
        return out


def word_vectors(
    train: Sequence[str], dim: int = 256, window: int = 5, *, least: int = 1, most: int = 50_000, seed: int = 0
) -> Words:  # fmt: skip
    r"""Word vectors from counts: positive pointwise mutual information, cut down by a singular value decomposition.

    .. math:: M_{wc} = \max\Big(0, \log\frac{P(w, c)}{P(w)\,P_\alpha(c)}\Big),\quad
              P_\alpha(c) \propto n_c^{\alpha},\ \alpha = 0.75,\qquad
              M \approx U S V^\top,\ x_w = \frac{U_w}{\lVert U_w\rVert}

    which is what word2vec factorises with one negative a word: Levy & Goldberg 2014 (Neural word embedding as implicit
    matrix factorization); α, U without S and rows of length one: Levy, Goldberg & Dagan 2015
    (doi:10.1162/tacl_a_00134), and the best on STS-B's dev part: of U S^½ as it is, means are of the commonest words.

    Args:
        train: texts, gone through three times. dim: d, less where there are fewer words.
        window: words on either side that count as a word's contexts.
        least, most: words rarer than ``least`` are left out; ``most`` of the commonest are taken, ties by the alphabet.
        seed: of the randomised decomposition (Halko et al. 2011, arXiv:0909.4061).

    Counts are of pairs that occur, never V × V. Raises ``UserError`` where no word is left.
    """
    for name, value, low in (("dim", dim, 1), ("window", window, 1), ("least", least, 1), ("most", most, 1)):
        if not value >= low:
            raise UserError(f"{name} = {value} must be at least {low}")
    total = Counter(itertools.chain.from_iterable(map(words_of, train)))
    kept = sorted((w for w, n in total.items() if n >= least), key=lambda w: (-total[w], w))[:most]
    if len(kept) < 2:
        raise UserError(f"word vectors: the training texts have {len(kept)} words that occur {least} times or more: "
                        "give more text")  # fmt: skip
    vocabulary = {w: i for i, w in enumerate(kept)}
    share = np.array([total[w] for w in kept]) / sum(total.values())  # (V,)
    vectors = _decomposed(_ppmi(_cooccurrence(train, vocabulary, window)), min(dim, len(kept) - 1), seed)
    words = Words(vocabulary, vectors, share, np.zeros(vectors.shape[1], np.float32))
    return Words(vocabulary, vectors, share, _common(words, train))


def _cooccurrence(train: Iterable[str], vocabulary: dict[str, int], window: int) -> Any:
    """How often each word stands within ``window`` words of each other, both ways. -> (V, V) CSR

    Words out of the vocabulary are skipped but keep their place.
    """
    from scipy.sparse import coo_array, csr_array

    v = len(vocabulary)
    counts = csr_array((v, v), dtype=np.float64)
    for ids, text in _tokens(train, vocabulary):
        for apart in range(1, window + 1):
            left, right = ids[:-apart], ids[apart:]
            near = (text[:-apart] == text[apart:]) & (left >= 0) & (right >= 0)
            ones = np.ones(int(near.sum()))
            counts = counts + coo_array((ones, (left[near], right[near])), shape=(v, v)).tocsr()
    return (counts + counts.T).tocsr()


def _tokens(train: Iterable[str], vocabulary: dict[str, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Word ids (-1: unknown) and the number of the text of each, about a million words at a time."""
    ids: list[int] = []
    text: list[int] = []
    for i, t in enumerate(train):
        mine = [vocabulary.get(w, -1) for w in words_of(t)]
        ids += mine
        text += [i] * len(mine)
        if len(ids) >= _TOKENS:
            yield np.array(ids), np.array(text)
            ids, text = [], []
    yield np.array(ids, np.int64), np.array(text, np.int64)


def _ppmi(counts: Any, alpha: float = 0.75) -> Any:
    """Positive pointwise mutual information, the contexts' distribution smoothed. (V, V) -> (V, V) CSR"""
    word = np.asarray(counts.sum(1)).ravel()  # (V,), and of contexts as well: counts are symmetric
    smooth = word**alpha / max(1.0, (word**alpha).sum())
    pairs = counts.tocoo()
    row, column = pairs.coords
    pairs.data = np.maximum(np.log(pairs.data / (word[row] * smooth[column])), 0)
    out = pairs.tocsr()
    out.eliminate_zeros()
    return out


def _decomposed(m: Any, dim: int, seed: int) -> np.ndarray:
    """Left singular vectors of the largest singular values, words of length one. (V, V) -> (V, dim) float32"""
    from sklearn.utils.extmath import randomized_svd

    u, s, _ = randomized_svd(m, dim, n_iter=5, random_state=seed)
    u = u * (s > 1e-9 * s[0])  # (V, dim): beyond the rank there is noise alone
    return (u / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _common(words: Words, train: Sequence[str]) -> np.ndarray:
    """The first right singular vector of the training texts' weighted means. -> (d,)"""
    d = words.vectors.shape[1]
    moment = np.zeros((d, d))
    for at in range(0, len(train), _TEXTS):
        z = words.sif(train[at : at + _TEXTS], remove=False).astype(np.float64)
        moment += z.T @ z
    return np.linalg.eigh(moment)[1][:, -1].astype(np.float32)


def _counts(texts: Sequence[str], vocabulary: dict[str, int]) -> Any:
    """How often each text has each word. -> (n, V) CSR"""
    from scipy.sparse import csr_array

    ids = [[vocabulary[w] for w in words_of(t) if w in vocabulary] for t in texts]
    ends = np.cumsum([0, *map(len, ids)])
    flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64, ends[-1])
    return csr_array((np.ones(len(flat)), flat, ends), shape=(len(texts), len(vocabulary)))  # equals are summed in use
