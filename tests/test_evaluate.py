import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_score
from sklearn.preprocessing import StandardScaler

from nearfar import evaluate as ev
from nearfar.evaluate import geometry, probes

RNG = np.random.default_rng(0)


def blobs(n=60, d=6, kinds=3, seed=0, gap=2.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % kinds
    return (rng.normal(size=(n, d)) + gap * np.eye(kinds, d)[y]).astype(np.float32), y


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 5))
def test_vote_is_wus(seed, k, kinds):
    rng = np.random.default_rng(seed)
    train, test = rng.normal(size=(30, 4)), rng.normal(size=(7, 4))
    y = rng.integers(0, kinds, 30)
    got = probes.vote(train, y, test, kinds, k, 0.07)
    for i, q in enumerate(test):
        cos = [float(q @ t / np.linalg.norm(q) / np.linalg.norm(t)) for t in train]
        votes = [0.0] * kinds
        for j in sorted(range(30), key=lambda j: -cos[j])[:k]:
            votes[y[j]] += math.exp(cos[j] / 0.07)
        best = sorted(votes)[-2:]
        if best[1] - best[0] > 1e-4 * best[1]:
            assert got[i] == int(np.argmax(votes))


def test_linear_probe_is_scikit_learns_optimum():
    x, y = blobs(200)
    t, yt = blobs(90, seed=1)
    judged = probes.linear_probe(x, y, t, yt, list("abc"))
    scale = StandardScaler().fit(x)
    model = LogisticRegression(C=judged.result.detail["C"], max_iter=5000, tol=1e-8).fit(scale.transform(x), y)
    assert judged.result.detail["converged"]
    assert (judged.predictions == model.predict(scale.transform(t))).mean() > 0.98


def test_where_every_c_is_right_the_likeliest_is_taken():
    """Classes far apart: each C tells them apart on held-out rows, and the smallest hardly fits at all."""
    x, y = blobs(200, gap=30.0)
    chosen = probes.linear_probe(x, y, x, y, list("abc")).result.detail["C"]
    assert chosen == max(probes.GRID)


def test_a_certain_mistake_is_no_warning():
    """Two classes, one held-out row labelled wrong and far out: its probability rounds to nothing."""
    x = np.repeat([[-1e4], [1e4]], 20, axis=0).astype(np.float32)
    y = np.repeat([0, 1], 20)
    y[::7] = 1 - y[::7]
    model = probes._logistic(10.0, x[:1].repeat(2, 0) * [[1], [-1]], np.array([0, 1]))
    accuracy, likelihood = probes._validation(model, x * 1e4, y)
    assert accuracy < 1
    assert math.isfinite(likelihood)


def test_nothing_is_chosen_on_test():
    x, y = blobs(120)
    t, yt = blobs(60, seed=1)
    a = probes.linear_probe(x, y, t, yt, list("abc")).result.detail
    b = probes.linear_probe(x, y, RNG.permutation(t), (yt + 1) % 3, list("abc")).result.detail
    assert a == b
    assert np.array_equal(probes.draw_labels(y, 5, 3), probes.draw_labels(y, 5, 3))
    assert sorted(y[probes.draw_labels(y, 5, 3)]) == [0] * 5 + [1] * 5 + [2] * 5


def test_metrics_are_scikit_learns():
    y, p = RNG.integers(0, 4, 100), RNG.integers(0, 4, 100)
    m = probes.classification(y, p, list("abcd"))
    assert m["macro"]["f1"] == pytest.approx(f1_score(y, p, average="macro"))
    assert m["micro"]["f1"] == pytest.approx(m["accuracy"])
    assert [c["precision"] for c in m["per_class"]] == pytest.approx(list(precision_score(y, p, average=None)))
    assert np.array(m["confusion"]).sum() == 100


def test_bootstrap_covers():
    rng = np.random.default_rng(3)
    covers = 0
    for seed in range(200):
        low, high = probes.bootstrap(rng.random(300) < 0.8, seed)
        covers += low <= 0.8 <= high
    assert 0.89 <= covers / 200 <= 0.99


def test_geometry_is_the_definitions():
    z, w = RNG.normal(size=(40, 5)), RNG.normal(size=(40, 5))
    u, v = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (z, w))
    assert geometry.alignment(z, w) == pytest.approx(np.mean([((a - b) ** 2).sum() for a, b in zip(u, v)]), rel=1e-5)
    pairs = [math.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i in range(40) for j in range(40) if i != j]
    assert geometry.uniformity(z, chunk=7) == pytest.approx(math.log(np.mean(pairs)), rel=1e-5)
    s = np.linalg.svd(z - z.mean(0), compute_uv=False)
    p = s / s.sum()
    assert geometry.effective_rank(z) == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert geometry.effective_rank(np.ones((5, 3))) == 0.0
    assert geometry.spectrum(z).sum() == pytest.approx(1)


def test_neighbours_are_exact():
    z = RNG.normal(size=(50, 4)).astype(np.float32)
    index, cosine = ev.neighbours(z, z, 5, chunk=7, exclude_self=True)
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    s = u @ u.T
    np.fill_diagonal(s, -2)
    np.testing.assert_array_equal(index, np.argsort(-s, axis=1, kind="stable")[:, :5])
    assert (np.diff(cosine) <= 0).all()


def test_raw_digits_are_where_they_are_known_to_be(digits):
    x, y = digits
    x = x.reshape(len(x), -1).astype(np.float32)
    result = ev.evaluate({"raw pixels": (x[:1200], x[1200:])}, y[:1200], y[1200:])["raw pixels"]
    assert 0.5 < result["1 label linear"].value < 0.75
    assert result["1 label linear"].value < result["5 labels linear"].value < result["10 labels linear"].value
    assert result["kNN"].value > 0.93
    assert result["kNN"].low <= result["kNN"].value <= result["kNN"].high


@pytest.mark.parametrize(("change", "says"), [
    (lambda x, y: (x, np.zeros_like(y)), "at least two classes"),
    (lambda x, y: (x, y[:-1]), "rows for"),
    (lambda x, y: (x * np.nan, y), "features are NaN"),
])  # fmt: skip
def test_bad_input(change, says):
    x, y = change(*blobs())
    with pytest.raises(ValueError, match=says):
        ev.evaluate({"a": (x, x)}, y, y)


def test_few_labels_than_there_are_is_said():
    x, y = blobs(12)
    got = ev.evaluate({"a": (x, x)}, y, y, labels_per_class=(1, 10), draws=3)
    assert "10 labels linear" not in got["a"]
    assert "10 labels a class left out" in got.notes[0]
    assert got.to_dict()["protocol"]["test"] == 12


def test_shares_of_the_labels():
    x, y = blobs(300)
    y = np.where(np.arange(300) < 280, y, 3)  # a rare class: 20 of 300
    rows = probes.draw_labels(y, "10%", 0)
    counts = np.bincount(y[rows])
    assert counts.tolist() == [round(n / 10) for n in np.bincount(y)]
    assert len(set(rows.tolist())) == len(rows)
    assert np.bincount(y[probes.draw_labels(y, "0.1%", 0)]).tolist() == [1, 1, 1, 1]
    assert sorted(probes.draw_labels(y, "100%", 1)) == list(range(300))
    assert np.array_equal(rows, probes.draw_labels(y, " 10.0% ", 0))
    assert not np.array_equal(rows, probes.draw_labels(y, "10%", 1))
    got = ev.evaluate({"a": (x, x), "b": (x * 2, x * 2)}, y, y, labels_per_class=(1, "10%", "10.0%", "50%"), draws=3)
    assert list(got["a"]) == ["1 label kNN", "1 label linear", "10% labels kNN", "10% labels linear",
                              "50% labels kNN", "50% labels linear", "kNN", "linear"]  # fmt: skip
    for column in ("10% labels kNN", "10% labels linear"):  # the same rows, and lengths do not matter to unit rows
        assert got["a"][column].detail == got["b"][column].detail
        assert got["a"][column].detail["labels"] == len(rows)
    assert "C = 10" in got.protocol["few labels"]


@pytest.mark.parametrize("bad", [0, -1, "0", "0%", "200%", "x", "nan%", "1.5", True, "%", ""])
def test_amounts_of_labels_that_are_none(bad):
    x, y = blobs()
    with pytest.raises(ValueError, match="give a number a class") as error:
        ev.evaluate({"a": (x, x)}, y, y, labels_per_class=(bad,))
    assert "\n" not in str(error.value)
