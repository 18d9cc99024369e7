"""Hard negatives against a loop over all rows, and sentence-transformers' rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from nearfar import mining
from nearfar.evaluate import neighbours
from nearfar.mining import hard_negatives


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def naive(queries, corpus, positives, count, skip, margin, relative, groups):
    out = np.full((len(queries), count), -1)
    for i, (q, p) in enumerate(zip(queries, positives)):
        limit = np.inf
        if margin is not None:
            limit = cosine(q, corpus[p]) - margin * (abs(cosine(q, corpus[p])) if relative else 1)
        found = [(-cosine(q, c), j) for j, c in enumerate(corpus)
                 if groups[j] != groups[p] and cosine(q, c) < limit - 1e-6]  # fmt: skip
        for place, (_, j) in enumerate(sorted(found)[skip : skip + count]):
            out[i, place] = j
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 15), st.integers(1, 4), st.integers(0, 3),
       st.sampled_from([None, 0.0, 0.05, 0.3, -0.2]), st.booleans(), st.booleans())  # fmt: skip
def test_is_the_loop(seed, n, m, count, skip, margin, relative, grouped):
    r = np.random.default_rng(seed)
    queries, corpus = r.normal(size=(n, 4)), r.normal(size=(m, 4))
    positives = r.integers(0, m, n)
    groups = r.integers(0, 4, m) if grouped else None
    how = {"count": count, "skip": skip, "margin": margin, "relative": relative}
    want = naive(queries, corpus, positives, groups=np.arange(m) if groups is None else groups, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "_VALUES", 3 * m)  # three queries at a time
        got = hard_negatives(queries, corpus, positives, groups=groups, **how)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, want)


def test_without_a_limit_they_are_the_neighbours():
    r = np.random.default_rng(0)
    z = r.normal(size=(50, 8))
    got = hard_negatives(z, z, np.arange(50), count=6, margin=None)
    np.testing.assert_array_equal(got, neighbours(z, z, 6, exclude_self=True)[0])
    np.testing.assert_array_equal(hard_negatives(csr_array(z), csr_array(z), np.arange(50), count=6, margin=None), got)
    np.testing.assert_array_equal(hard_negatives(z, z, np.arange(50), count=3, skip=2, margin=None), got[:, 2:5])


def test_copies_of_the_positive_and_the_query_itself():
    """A copy is as near as the positive and so never below it; the query's own row is kept out by the positive's id."""
    r = np.random.default_rng(1)
    corpus = r.normal(size=(30, 300)).astype(np.float32)
    corpus[7] = corpus[2] * 3
    queries = corpus[2:3] + 0.5 * r.normal(size=(1, 300)).astype(np.float32)
    assert 7 not in hard_negatives(queries, corpus, np.array([2]), count=29)
    assert hard_negatives(queries, corpus, np.array([2]), margin=None).item() == 7
    both = np.concatenate([corpus, queries])  # row 30 is the query
    ids = np.arange(31)
    assert hard_negatives(queries, both, np.array([2]), margin=None).item() == 30
    ids[[7, 30]] = 2
    found = hard_negatives(queries, both, np.array([2]), count=28, margin=None, groups=ids)
    assert not np.isin(found, [2, 7, 30]).any()


def test_relative_margin_of_a_negative_cosine_lies_below_it():
    corpus = np.array([[-1.0, 2.0], [-1.0, 1.9], [-1.0, 0.0]])  # cosines -0.45, -0.47, -1
    found = hard_negatives(np.array([[1.0, 0.0]]), corpus, np.array([0]), count=2, margin=0.05, relative=True)
    assert found.tolist() == [[2, -1]]
    assert hard_negatives(np.zeros((0, 2)), corpus, np.zeros(0, int), count=2).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus": np.ones((3, 5))}, r"queries are \(2, 4\) and the corpus is \(3, 5\)"),
        ({"queries": np.full((2, 4), np.nan)}, "8 values of queries or corpus are NaN"),
        ({"positives": np.array([0])}, r"positives \(1,\) int64 for 2 queries"),
        ({"positives": np.array([0.0, 1.0])}, "positives .* float64 for 2 queries"),
        ({"positives": np.array([0, 3])}, "positives run from 0 to 3: give rows of the corpus, 0 to 2"),
        ({"count": 0}, "count 0 and skip 0"),
        ({"margin": np.inf}, "margin inf: give a finite number"),
        ({"groups": np.zeros(2)}, r"groups \(2,\) for a corpus of 3 rows"),
    ],
)
def test_bad_input_is_named(change, said):
    given = {"queries": np.ones((2, 4)), "corpus": np.eye(3, 4), "positives": np.array([0, 1])} | change
    with pytest.raises(ValueError, match=said) as error:
        hard_negatives(given.pop("queries"), given.pop("corpus"), given.pop("positives"), **given)
    assert "\n" not in str(error.value)
