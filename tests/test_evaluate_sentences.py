"""Judges of pairs against SciPy, loops and dense rows; sparse rows through every judge."""

import json

import numpy as np
import pytest
from scipy.sparse import csr_array, csr_matrix
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics.pairwise import cosine_similarity

from nearfar.evaluate import (
    cosines,
    evaluate,
    judge_pairs,
    judge_retrieval,
    neighbours,
    pair_retrieval,
    retrieval,
    spearman_difference,
    sts,
)
from nearfar.evaluate.probes import linear_probe
from nearfar.evaluate.sentences import spearman
from nearfar.evaluate.sparse import scaler


def pairs(n: int = 120, d: int = 6, noise: float = 1.0, seed: int = 0):
    """Pairs whose cosines follow scores 0 to 5 in steps, the more loosely the more noise."""
    r = np.random.default_rng(seed)
    a = r.normal(size=(n, d))
    scores = r.integers(0, 11, n) / 2
    b = a * scores[:, None] / 5 + noise * r.normal(size=(n, d)) * (1.2 - scores[:, None] / 5)
    return a, b, scores


def sparse(n: int = 60, d: int = 40, seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    x = np.maximum(r.normal(size=(n, d)) - 1, 0)
    x[3] = 0
    return x


def test_sts_is_scipys():
    a, b, scores = pairs()
    c = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b)]
    found = sts(a, b, scores)
    assert found["Spearman"].value == pytest.approx(spearmanr(c, scores).statistic, abs=1e-6)
    assert found["Pearson"].value == pytest.approx(pearsonr(c, scores).statistic, abs=1e-6)
    for r in found.values():
        assert r.low < r.value < r.high
        assert r.n == 120
    ties = np.round(np.array(c), 1)
    assert spearman(ties, scores) == pytest.approx(spearmanr(ties, scores).statistic, abs=1e-12)


def test_subsets_are_put_together_and_their_means_told():
    """SentEval's all, mean and wmean: subsets on scales of their own."""
    a, b, scores = pairs(90)
    subsets = np.array(["news"] * 20 + ["images"] * 70)
    scores[:20] = 5 - scores[:20]
    found = sts(a, b, scores, subsets)
    c = cosines(a, b)
    own = {name: spearmanr(c[subsets == name], scores[subsets == name]).statistic for name in ("news", "images")}
    assert found["Spearman"].value == pytest.approx(spearmanr(c, scores).statistic)
    assert found["Spearman mean"].value == pytest.approx((own["news"] + own["images"]) / 2)
    assert found["Spearman wmean"].value == pytest.approx((20 * own["news"] + 70 * own["images"]) / 90)
    assert found["Spearman in news"].value == pytest.approx(own["news"])
    assert own["news"] < 0 < own["images"]
    for kind in ("mean", "wmean"):
        assert found[f"Spearman {kind}"].low < found[f"Spearman {kind}"].value < found[f"Spearman {kind}"].high
    with pytest.raises(ValueError, match="subset odd: its 2 scores"):
        sts(a, b, scores, np.array(["odd"] * 2 + ["rest"] * 88))
    with pytest.raises(ValueError, match=r"\(3,\) subsets for 90 pairs"):
        sts(a, b, scores, subsets[:3])


def test_paired_difference_is_narrower_and_covers():
    a, b, scores = pairs(400, noise=2.0)
    c = cosines(a, b)
    worse = c + 0.05 * np.random.default_rng(1).normal(size=400)
    value, low, high = spearman_difference(c, worse, scores, times=300)
    assert value == pytest.approx(spearmanr(c, scores).statistic - spearmanr(worse, scores).statistic)
    assert low < value < high
    single = sts(a, b, scores)["Spearman"]
    assert high - low < (single.high - single.low) / 2
    assert spearman_difference(c, worse, scores, times=300) == (value, low, high)
    back = spearman_difference(worse, c, scores, times=300)
    assert back == pytest.approx((-value, -high, -low))


def test_seeds_that_differ_widen_the_difference():
    a, b, scores = pairs(200)
    c, r = cosines(a, b), np.random.default_rng(2)
    seeds = np.array([c + s * r.normal(size=200) for s in (0.0, 0.3, 0.8)])
    base = np.array([c + 0.9 * r.normal(size=200)])
    value, low, high = spearman_difference(seeds, base, scores, times=400)
    wanted = np.mean([spearmanr(x, scores).statistic for x in seeds]) - spearmanr(base[0], scores).statistic
    assert value == pytest.approx(wanted)
    _, one_low, one_high = spearman_difference(seeds[0], base[0], scores, times=400)
    assert high - low > one_high - one_low
    with pytest.raises(ValueError, match="give the same pairs"):
        spearman_difference(seeds, base, scores[:9])
    with pytest.raises(ValueError, match="nothing to rank"):
        spearman_difference(np.ones(200), c, scores)
    with pytest.raises(ValueError, match="NaN or infinite"):
        spearman_difference(c * np.nan, c, scores)


def test_pair_retrieval_is_the_loop():
    a, b, _ = pairs(40, noise=1.5)
    b[7] = b[3] = a[7]  # the lower row comes first
    ids = np.arange(40)
    ids[7] = 3
    s = cosine_similarity(a.astype(np.float32), b.astype(np.float32))
    hit, reciprocal, gain = {1: [], 5: [], 10: []}, [], []
    for i in range(40):
        order = np.argsort(-s[i], kind="stable")
        right = ids[order] == ids[i]
        for k in hit:
            hit[k].append(right[:k].any())
        reciprocal.append(1 / (1 + int(np.flatnonzero(right)[0])))
        ideal = sum(1 / np.log2(j + 2) for j in range(min(10, right.sum())))
        gain.append(sum(1 / np.log2(j + 2) for j in range(10) if right[j]) / ideal)
    found = pair_retrieval(a, b, ids)
    assert list(found) == ["recall@1", "recall@5", "recall@10", "MRR", "nDCG@10"]
    for k, values in hit.items():
        assert found[f"recall@{k}"].value == pytest.approx(np.mean(values))
    assert found["MRR"].value == pytest.approx(np.mean(reciprocal))
    assert found["nDCG@10"].value == pytest.approx(np.mean(gain))
    assert pair_retrieval(a, b)["recall@1"].value < found["recall@1"].value  # an equal text counted as wrong
    assert list(pair_retrieval(a[:4], b[:4])) == ["recall@1", "MRR", "nDCG@1"]


def test_tables_of_pairs():
    a, b, scores = pairs(150, noise=0.5)
    noise = np.random.default_rng(3).normal(size=(150, 6))
    sides = {"ours": (a, b), "sparse": (csr_matrix(a), csr_matrix(b)), "noise": (a, noise),
             "one point": (np.ones((150, 2)), np.ones((150, 2)))}  # fmt: skip
    judged = judge_pairs(sides, scores, times=200)
    assert list(judged.cells) == list(sides)
    assert judged["ours"]["Spearman"].value == pytest.approx(judged["sparse"]["Spearman"].value, abs=1e-6)
    assert judged["one point"]["Spearman"].value == 0
    assert "one point: all 150 cosines are alike" in judged.notes[0]
    below = judged["noise"]["Spearman"].detail["below"]
    assert below["of"] == "ours"
    assert 0 < below["low"] < below["by"] < below["high"]
    assert f"noise {below['by']:+.3f}" in judged.notes[1]
    found = judge_retrieval(sides, np.arange(150) // 2)
    assert found["ours"]["recall@1"].value > found["noise"]["recall@1"].value
    assert found.notes == ("75 of 150 pairs repeat another: each is right for the other",)
    for evaluation in (judged, found):
        assert json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))["rows"][0]["embedding"] == "ours"
        evaluation.render()


def test_intervals_are_of_the_same_draws():
    """An embedding that is the first one's by another name is below it by nothing."""
    a, b, scores = pairs()
    judged = judge_pairs({"ours": (a, b), "twin": (a, b)}, scores, times=100)
    assert judged["ours"] == {k: r for k, r in judged["ours"].items()}
    assert judged["twin"]["Spearman"].detail["below"] == {"of": "ours", "by": 0, "low": 0, "high": 0}


def test_what_cannot_be_judged_is_one_line():
    a, b, scores = pairs()
    with pytest.raises(ValueError, match="wrong: .* for 120 pairs"):
        judge_pairs({"wrong": (a, b[:, :2])}, scores)
    with pytest.raises(ValueError, match="nan: 1 features are NaN"):
        judge_retrieval({"nan": (_spoilt(a), b)})
    with pytest.raises(ValueError, match="wanted are all alike"):
        judge_pairs({"x": (a, b)}, np.ones(120))
    with pytest.raises(ValueError, match=r"\(3,\) ids for 120 pairs"):
        pair_retrieval(a, b, np.arange(3))
    with pytest.raises(ValueError, match="1 pairs: a text needs others"):
        pair_retrieval(a[:1], b[:1])


def _spoilt(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a[2, 1] = np.inf
    return a


# sparse rows


@pytest.mark.parametrize("kind", [csr_array, csr_matrix])
def test_sparse_rows_are_judged_as_dense_ones(kind):
    x, y = sparse(), np.random.default_rng(5).integers(0, 3, 60)
    x[:, :3] += 2 * np.eye(3)[y]
    t, z, yz = kind(x), kind(x[::2] + 0.1 * x[1::2]), y[::2]
    np.testing.assert_allclose(cosines(t, kind(x[::-1])), np.diag(cosine_similarity(x, x[::-1])), atol=1e-12)
    for itself in (False, True):
        got, want = (neighbours(q, q, 5, exclude_self=itself, chunk=7) for q in (t, x))
        far = np.arange(60) != 3  # all are equally near to a row of zeros
        np.testing.assert_array_equal(got[0][far, 0], want[0][far, 0])
        np.testing.assert_allclose(got[1], want[1], atol=1e-6)
    found, wanted = (retrieval(q, y, chunk=9) for q in (t, x))
    for name in found:
        assert found[name].value == pytest.approx(wanted[name].value, abs=1e-2), name
    how = {"labels_per_class": (2, 99), "draws": 2, "more": True, "what": "text"}
    result = evaluate({"sparse": (t, z), "dense": (x, z.toarray())}, y, yz, **how)
    for column in ("2 labels kNN", "2 labels linear", "kNN"):
        assert result["sparse"][column].value == pytest.approx(result["dense"][column].value, abs=0.05), column
    assert result["sparse"]["linear"].value > 0.9
    assert result.protocol["title"] == "accuracy on 30 test texts, probes on 60 training texts"
    assert result.notes[0].endswith("training texts")
    assert result.judgements["sparse"]["linear"].predict(z).shape == (30,)
    with pytest.raises(ValueError, match="bad: 1 features are NaN"):
        evaluate({"bad": (kind(_spoilt(x)), z)}, y, yz)
    with pytest.raises(ValueError, match="sparse is sparse, and items have several labels"):
        evaluate({"sparse": (t, z)}, np.eye(3, dtype=int)[y], np.eye(3, dtype=int)[yz])


def test_sparse_features_are_scaled_by_one_number():
    x = sparse()
    scaled = scaler(csr_array(x))(csr_array(x))
    assert scaled.toarray().var(0).mean() == pytest.approx(1)
    ratio = scaled.toarray()[x > 0] / x[x > 0]
    assert np.ptp(ratio) < 1e-12
    assert scaler(csr_array((4, 3)))(csr_array((4, 3))).nnz == 0
    y = np.arange(60) % 2
    probe = linear_probe(csr_array(x), y, csr_array(x), y, ["a", "b"])
    mean = linear_probe(x * ratio[0] / x.std(0), y, x * ratio[0] / x.std(0), y, ["a", "b"])
    assert probe.result.detail["converged"]
    assert mean.result.value >= 0.5
