"""TF-IDF and word vectors from counts against their formulas in loops, on small texts and on Wikipedia's."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from nearfar import lexical
from nearfar.evaluate import evaluate

TEXTS = ["The cat sat on the mat.", "the dog sat on THE log", "a cat and a dog", "", "on 1990", "naïve größe ÜBER"]


def topics(n: int = 300, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of two topics, each word of one topic, among words of both."""
    r = np.random.default_rng(seed)
    y = np.arange(n) % 2
    words = [["sun", "moon", "star", "comet", "orbit"], ["bread", "soup", "salt", "pepper", "oven"]]
    return [" ".join([*r.choice(words[k], 4), *r.choice(["the", "of", "and"], 4)]) for k in y], y


def test_tf_idf_is_the_formula():
    embed = lexical.tf_idf(TEXTS)
    got = embed(["the the cat flew", "", "log"])
    words = sorted({w for t in TEXTS for w in lexical.words_of(t)})
    held = {w: sum(w in lexical.words_of(t) for t in TEXTS) for w in words}
    want = np.zeros((3, len(words)))
    for i, counts in enumerate([{"the": 2, "cat": 1}, {}, {"log": 1}]):
        for w, n in counts.items():
            want[i, words.index(w)] = (1 + math.log(n)) * (1 + math.log((1 + len(TEXTS)) / (1 + held[w])))
        want[i] /= max(1e-12, np.linalg.norm(want[i]))
    np.testing.assert_allclose(got.toarray(), want, atol=1e-12)
    a, b = embed(TEXTS), embed(TEXTS[::-1])
    np.testing.assert_allclose(lexical.cosines(a, b), np.diag(cosine_similarity(a, b)), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab c", max_size=12), max_size=6), st.integers(1, 4), st.integers(2, 9))
def test_cooccurrence_is_the_loop_whatever_the_blocks(texts, window, block):
    vocabulary = {"a": 0, "b": 1, "ab": 2, "c": 3}
    want = np.zeros((4, 4))
    for t in texts:
        words = lexical.words_of(t)
        for i, w in enumerate(words):
            for j, c in enumerate(words):
                if i != j and abs(i - j) <= window and w in vocabulary and c in vocabulary:
                    want[vocabulary[w], vocabulary[c]] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lexical, "_TOKENS", block)
        np.testing.assert_array_equal(lexical._cooccurrence(texts, vocabulary, window).toarray(), want)


def test_ppmi_is_the_formula():
    counts = lexical._cooccurrence(TEXTS, {"the": 0, "cat": 1, "sat": 2, "on": 3, "dog": 4}, 2)
    n, got = counts.toarray(), lexical._ppmi(counts).toarray()
    smooth = n.sum(0) ** 0.75 / (n.sum(0) ** 0.75).sum()
    for w in range(5):
        for c in range(5):
            joint = n[w, c] / n.sum()
            pmi = math.log(joint / (n[w].sum() / n.sum() * smooth[c])) if joint else 0
            assert got[w, c] == pytest.approx(max(0, pmi), abs=1e-12)


def test_vectors_are_the_decomposition():
    texts, _ = topics()
    words = lexical.word_vectors(texts, dim=4)
    total = Counter(w for t in texts for w in lexical.words_of(t))
    assert list(words.vocabulary) == sorted(total, key=lambda w: (-total[w], w))
    np.testing.assert_allclose(words.share, [total[w] / sum(total.values()) for w in words.vocabulary])
    u, s, _ = np.linalg.svd(lexical._ppmi(lexical._cooccurrence(texts, words.vocabulary, 5)).toarray())
    assert s[3] > 1.001 * s[4]
    u = u[:, :4] / np.linalg.norm(u[:, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(words.vectors @ words.vectors.T, u @ u.T, atol=1e-3)
    again = lexical.word_vectors(texts, dim=4)
    np.testing.assert_array_equal(words.vectors, again.vectors)
    np.testing.assert_array_equal(words.common, again.common)


def test_means_are_the_loops():
    texts, _ = topics()
    words = lexical.word_vectors(texts, dim=6)
    said = ["sun sun the nowhere", "", "pepper of bread", "nowhere"]
    plain, weighted, train = [], [], []
    for into, these, sif in ((plain, said, False), (weighted, said, True), (train, texts, True)):
        for t in these:
            known = [words.vocabulary[w] for w in lexical.words_of(t) if w in words.vocabulary]
            weight = [1e-3 / (1e-3 + words.share[i]) if sif else 1 for i in known]
            total = sum((w * words.vectors[i].astype(float) for w, i in zip(weight, known)), np.zeros(6))
            into.append(total / max(1, len(known)))
    np.testing.assert_allclose(words.averaged(said), plain, atol=1e-6)
    np.testing.assert_allclose(words.sif(said, remove=False), weighted, atol=1e-6)
    first = np.linalg.svd(np.array(train))[2][0]
    np.testing.assert_allclose(words.sif(said), np.array(weighted) - np.outer(weighted @ first, first), atol=1e-6)


def test_words_of_a_topic_are_near_and_texts_are_told_apart():
    texts, y = topics()
    words = lexical.word_vectors(texts, dim=3)
    v = words.vectors / np.linalg.norm(words.vectors, axis=1, keepdims=True)
    at = words.vocabulary
    assert v[at["sun"]] @ v[at["moon"]] > 0.8 > 0.3 > v[at["sun"]] @ v[at["soup"]]
    tf_idf = lexical.tf_idf(texts)
    new, yn = topics(100, seed=1)
    spaces = {"TF-IDF": tf_idf, "averaged": words.averaged, "SIF": words.sif}
    judged = evaluate({k: (f(texts), f(new)) for k, f in spaces.items()}, y, yn, labels_per_class=(5,), draws=2)
    for name in spaces:
        assert judged[name]["linear"].value == 1, name
        assert judged[name]["kNN"].value == 1, name


def test_few_and_rare_words():
    words = lexical.word_vectors(["a b", "b a", "b"], dim=256)  # one dimension is left of two words
    assert words.vectors.shape == (2, 1)
    assert list(lexical.word_vectors(TEXTS, least=2).vocabulary) == ["the", "on", "a", "cat", "dog", "sat"]
    assert list(lexical.word_vectors(TEXTS, most=2).vocabulary) == ["the", "on"]
    alone = lexical.word_vectors(["a", "b", "c c"])  # no word stands beside another but c
    assert np.isfinite(alone.vectors).all()
    assert float(np.abs(alone.averaged(["a b"])).max()) == 0
    assert float(np.abs(lexical.word_vectors(["a", "b", "c"]).vectors).max()) == 0  # none stands beside another
    assert lexical.word_vectors(TEXTS).averaged([]).shape[0] == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: lexical.tf_idf(["...", ""]), "TF-IDF: the training texts hold no words"),
        (lambda: lexical.word_vectors(["...", "word"]), "have 1 words that occur 1 times or more"),
        (lambda: lexical.word_vectors([]), "have 0 words"),
        (lambda: lexical.word_vectors(TEXTS, dim=0), "dim = 0 must be at least 1"),
        (lambda: lexical.word_vectors(TEXTS, window=0), "window = 0 must be at least 1"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
