"""Retrieval, pairs, clusters, geometry: against naive loops, scikit-learn, SciPy and pytorch-metric-learning."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn import metrics
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score, top_k_accuracy_score

from nearfar import evaluate as ev
from nearfar.errors import UserError
from nearfar.evaluate import clusters, geometry, intervals, similarity
from nearfar.evaluate.retrieval import find


def ranked(query, bank, own):
    """Indices by falling cosine, equals by the lower index."""
    q, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (query.astype(np.float64), bank.astype(np.float64)))
    for i, row in enumerate(q @ b.T):
        yield [j for j in sorted(range(len(b)), key=lambda j: (-row[j], j)) if not (own and j == i)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.booleans())
def test_retrieval_is_the_definitions(seed, kinds, own):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(14, 3)), rng.integers(0, kinds, 14)
    bank, yb = (z, y) if own else (rng.normal(size=(20, 3)), rng.integers(0, kinds + 1, 20))
    want = {f"{m}@{k}": [] for m in ("recall", "precision", "nDCG") for k in (1, 5)} | {
        "MRR": [], "MAP@R": [], "R-precision": []}  # fmt: skip
    for i, order in enumerate(ranked(z, bank, own)):
        hit = [int(yb[j] == y[i]) for j in order]
        R = sum(hit)
        if not R:
            continue
        for k in (1, 5):
            want[f"recall@{k}"].append(any(hit[:k]))
            want[f"precision@{k}"].append(sum(hit[:k]) / k)
            want[f"nDCG@{k}"].append(ndcg_score([hit], [list(range(len(hit), 0, -1))], k=k))
        want["MRR"].append(1 / (hit.index(1) + 1))
        want["R-precision"].append(sum(hit[:R]) / R)
        want["MAP@R"].append(sum(hit[j] * sum(hit[: j + 1]) / (j + 1) for j in range(R)) / R)
    if not want["MRR"]:
        return
    got = ev.retrieval(z, y, *(() if own else (bank, yb)), ks=(1, 5), chunk=5)
    assert set(got) == set(want)
    for name, values in want.items():
        assert got[name].value == pytest.approx(np.mean(values), abs=1e-9), name
        assert got[name].detail["without"] == 14 - len(values)


def test_retrieval_is_pytorch_metric_learnings():
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.inference import CustomKNN

    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(120, 8)).astype(np.float32), rng.integers(0, 5, 120)
    names = {"precision_at_1": "precision@1", "r_precision": "R-precision", "mean_reciprocal_rank": "MRR",
             "mean_average_precision_at_r": "MAP@R"}  # fmt: skip
    theirs = calculator.AccuracyCalculator(
        include=tuple(names), k=119, device=torch.device("cpu"), knn_func=CustomKNN(CosineSimilarity())
    ).get_accuracy(torch.from_numpy(z), torch.from_numpy(y))
    ours = ev.retrieval(z, y)
    for their, our in names.items():
        assert ours[our].value == pytest.approx(theirs[their], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_neighbours_with_many_ties(seed, k, own):
    rng = np.random.default_rng(seed)
    four = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])  # directions whose cosines are exact
    bank = four[rng.integers(0, 4, 12)]
    query = bank if own else four[rng.integers(0, 4, 5)]
    index, cosine = ev.neighbours(query, bank, k, exclude_self=own, chunk=4)
    for i, order in enumerate(ranked(query, bank, own)):
        assert index[i].tolist() == order[: index.shape[1]]
    assert (np.diff(cosine, axis=1) <= 0).all()


def test_verification_is_scikit_learns_and_the_crossing():
    rng = np.random.default_rng(1)
    same = rng.random(400) < 0.4
    scores = rng.normal(size=400) + 1.2 * same
    got = ev.verification(scores, same, times=100)
    assert got["AUC"].value == pytest.approx(roc_auc_score(same, scores), abs=1e-12)
    eer = got["EER"].value
    rates = [((scores[~same] >= t).mean(), (scores[same] < t).mean()) for t in np.sort(scores)]
    nearest = min(rates, key=lambda r: abs(r[0] - r[1]))
    assert abs(eer - np.mean(nearest)) < 0.01
    assert min(max(r) for r in rates) >= eer - 1e-9
    for r in got.values():
        assert r.low <= r.value <= r.high
    assert similarity.equal_error_rate(np.zeros(10), np.arange(10) % 2) == pytest.approx(0.5)


def test_graded_is_scipys():
    rng = np.random.default_rng(2)
    a = np.round(rng.normal(size=100), 1)  # with ties
    b = a + rng.normal(size=100)
    got = ev.graded(a, b, times=50)
    assert got["Spearman"].value == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert got["Pearson"].value == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert got["Spearman"].low < got["Spearman"].value < got["Spearman"].high


def test_clusters_that_are_the_classes_and_ones_that_are_not():
    rng = np.random.default_rng(3)
    y = np.arange(90) % 3
    z = rng.normal(size=(90, 5)) * 0.1 + 5 * np.eye(3, 5)[y]
    for name, r in ev.clustering(z, y, times=20).items():
        assert r.value == pytest.approx(1), name
    chance = ev.clustering(rng.normal(size=(90, 5)), y, times=20)
    assert abs(chance["ARI"].value) < 0.15
    assert abs(chance["AMI"].value) < 0.15
    found = rng.integers(0, 4, 90)
    want = sum(max(((found == k) & (y == c)).sum() for c in range(3)) for k in range(4)) / 90
    assert clusters.purity(y, found) == pytest.approx(want)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 5), st.integers(1, 5))
def test_agreement_is_scikit_learns_and_torchmetrics(seed, n, kinds, groups):
    rng = np.random.default_rng(seed)
    y, found = rng.integers(0, kinds, n), rng.integers(0, groups, n)
    found = [found, y + 7, np.arange(n), np.zeros(n, int)][rng.choice(4, p=(0.7, 0.1, 0.1, 0.1))]
    got = clusters.agreement(y, found, times=1)
    assert got["NMI"].value == pytest.approx(metrics.normalized_mutual_info_score(y, found), abs=1e-9)
    assert got["AMI"].value == pytest.approx(metrics.adjusted_mutual_info_score(y, found), abs=1e-9)
    assert got["ARI"].value == pytest.approx(metrics.adjusted_rand_score(y, found), abs=1e-9)
    assert got["purity"].value == clusters.purity(y, found)


def test_intervals_of_agreement_are_the_bootstraps():
    rng = np.random.default_rng(8)
    y = rng.integers(0, 4, 150)
    found = np.where(rng.random(150) < 0.3, rng.integers(0, 4, 150), y)
    again = np.random.default_rng(5)
    rows = [again.integers(0, 150, 150) for _ in range(200)]
    for name, theirs in (("AMI", metrics.adjusted_mutual_info_score), ("NMI", metrics.normalized_mutual_info_score)):
        got = clusters.agreement(y, found, seed=5)[name]
        want = np.quantile([theirs(y[r], found[r]) for r in rows], (0.025, 0.975))
        assert (got.low, got.high) == pytest.approx(tuple(want), abs=1e-9)
        assert got.detail["bootstrap"] == 200


def test_paired_bootstrap_is_narrower_and_covers():
    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(200):
        hard = rng.random(200)
        a, b = (rng.random(200) < 0.9 * hard + 0.08), (rng.random(200) < 0.9 * hard)
        _, low, high = ev.of_difference(a, b, seed, 300)
        covered += low <= 0.08 <= high
    assert 0.89 <= covered / 200 <= 0.99
    a = rng.random(500) < 0.5
    b = a ^ (rng.random(500) < 0.02)  # all but the same predictions
    _, low, high = ev.of_difference(a, b)
    single = intervals.of_mean(a)
    assert high - low < 0.5 * (single[1] - single[0])


def test_label_free_geometry():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(300, 6))
    assert geometry.rankme(z) == pytest.approx(6, rel=0.02)
    assert geometry.rankme(np.outer(rng.normal(size=50), np.ones(4))) == pytest.approx(1, abs=1e-4)
    scaled = rng.normal(size=(20_000, 40)) * np.arange(1, 41) ** -0.75
    assert geometry.alpha_req(scaled) == pytest.approx(1.5, abs=0.05)
    assert geometry.alpha_req(scaled, first=1, last=5) == pytest.approx(1.5, abs=0.15)
    # the authors' package: weights 1/rank over ranks 11 to 100, by the normal equations
    z = rng.normal(size=(400, 150)) @ rng.normal(size=(150, 150))
    values = np.sort(np.linalg.eigvalsh(np.cov(z.T)))[::-1][10:100]
    j = np.arange(11, 101)
    x = np.stack([-np.log(j), np.ones(90)], 1)
    theirs = np.linalg.solve(x.T @ (x / j[:, None]), x.T @ (np.log(values) / j))[0]
    assert geometry.alpha_req(z) == pytest.approx(theirs, abs=1e-9)
    # of 10 dimensions 3 tell pictures apart, alike, and the others hold the views' noise alone
    pictures = np.pad(rng.normal(size=(2000, 1, 3)) * 50, ((0, 0), (0, 0), (0, 7)))
    assert geometry.lidar(pictures + rng.normal(size=(2000, 5, 10))) == pytest.approx(3, rel=0.05)
    assert math.isnan(geometry.alpha_req(np.ones((5, 3))))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ev.retrieval(np.eye(3), np.arange(3), ks=(1,)), "no query has a row"),
        (lambda: ev.retrieval(np.eye(3), np.zeros(3), ks=(3,)), "recall@3: a query is ranked against 2 rows"),
        (lambda: ev.verification(np.ones(4), np.ones(4)), "all 4 are the same"),
        (lambda: ev.verification(np.array([1.0, np.nan]), np.array([0, 1])), "1 scores or values"),
        (lambda: ev.graded(np.ones(4), np.arange(4)), "scores are all alike"),
        (lambda: ev.graded(np.ones(4), np.arange(3)), "give one each"),
        (lambda: ev.clustering(np.full((4, 2), np.nan), np.arange(4) % 2), "8 features are NaN"),
        (lambda: ev.clustering(np.eye(3), np.arange(3), k=9), "9 clusters of 3 rows"),
        (lambda: ev.of_difference(np.ones(3), np.ones(2)), "the same items"),
        (lambda: geometry.alpha_req(np.eye(9), first=5, last=5), "eigenvalues 5 to 5"),
        (lambda: geometry.lidar(np.ones((3, 4))), "LiDAR takes"),
        (lambda: intervals.of_mean(np.ones(0)), "no items"),
        (lambda: ev.neighbours(np.eye(3), np.eye(3), 1, engine="fais"), "did you mean 'faiss'"),
    ],
)
def test_bad_input_is_one_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


def test_calibration_is_torchmetrics_and_scikit_learns():
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = np.random.default_rng(6)
    chance = rng.dirichlet(np.full(8, 0.3), 500)
    y = np.array([rng.choice(8, p=p) for p in chance])
    y[::5] = rng.integers(0, 8, 100)
    got = ev.calibration(chance, y)
    theirs = multiclass_calibration_error(torch.from_numpy(chance), torch.from_numpy(y), 8, n_bins=15, norm="l1")
    assert got["ece"] == pytest.approx(float(theirs), abs=1e-6)
    assert got["log_loss"] == pytest.approx(log_loss(y, chance, labels=range(8)))
    assert got["top5"] == pytest.approx(top_k_accuracy_score(y, chance, k=5, labels=range(8)))
    assert got["brier"] == pytest.approx(np.mean([sum((p - (np.arange(8) == c)) ** 2) for p, c in zip(chance, y)]))
    assert sum(r["n"] for r in got["reliability"]) == 500
    again = [ev.calibration(chance[r], y[r], times=1) for w in intervals.draws(500, 0, 200)
             for r in (np.repeat(np.arange(500), row) for row in w)]  # fmt: skip
    for name, held in got["intervals"].items():
        assert held == pytest.approx(list(np.quantile([c[name] for c in again], (0.025, 0.975))), abs=1e-9), name
    certain = ev.calibration(np.eye(3)[[0, 1, 2]], np.array([0, 1, 2]))
    assert (certain["ece"], certain["brier"], certain["log_loss"]) == (0, 0, 0)


def test_the_probe_says_how_sure_it_may_be():
    """Probabilities of a probe whose model is right are calibrated; a class that training lacks has none."""
    rng = np.random.default_rng(7)
    y, t = rng.integers(0, 2, 4000), rng.integers(0, 2, 4000)
    make = lambda y: (rng.normal(size=(len(y), 3)) + np.eye(2, 3)[y]).astype(np.float32)  # noqa: E731
    judged = ev.linear_probe(make(y), y, make(t), t, ["a", "b", "absent"])
    assert judged.metrics["calibration"]["ece"] < 0.03
    assert judged.metrics["calibration"]["top5"] == 1


def test_what_predicts_the_probe_is_spearmans():
    from scipy.stats import spearmanr

    from nearfar.evaluate.predictors import predictive

    rng = np.random.default_rng(0)
    scores = rng.normal(size=30)
    measures = {"near": scores + rng.normal(size=30) * 0.3, "far": rng.normal(size=30), "gaps": scores.copy()}
    measures["gaps"][:4] = np.nan
    found = predictive(measures, scores)
    for name, values in measures.items():
        held = np.isfinite(values)
        assert found[name].value == pytest.approx(spearmanr(values[held], scores[held]).statistic, abs=1e-12)
        assert found[name].low <= found[name].value <= found[name].high
    assert found["gaps"].n == 26
    assert found["near"].low > 0.5
    assert found["far"].low < 0 < found["far"].high
    with pytest.raises(UserError, match="4 embeddings: give five or more"):
        predictive({"x": np.arange(4.0)}, np.arange(4.0))
    with pytest.raises(UserError, match="values for"):
        predictive({"x": np.arange(6.0)}, np.arange(7.0))


def clustered(n, d=16, seed=9):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(60, d))[rng.integers(0, 60, n)] + 0.4 * rng.normal(size=(n, d))


@pytest.mark.parametrize("own", [True, False])
def test_faiss_finds_what_the_exact_search_finds(own):
    pytest.importorskip("faiss")
    z = clustered(4300)
    query, bank = (z[:4000], z[:4000]) if own else (z[4000:], z[:4000])
    exact = find(query, bank, 10, exclude_self=own, engine="exact")
    found = find(query, bank, 10, exclude_self=own, engine="faiss")
    share = np.mean([np.isin(a, b).mean() for a, b in zip(exact.index, found.index)])
    assert found.recall >= 0.99
    assert share == pytest.approx(found.recall, abs=0.01)  # the sample's recall is that of all
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    true = (unit(query)[:, None] * unit(bank)[found.index]).sum(2)  # float64
    np.testing.assert_allclose(found.cosine, true, atol=1e-6)
    assert (np.diff(found.cosine, axis=1) <= 0).all()
    if own:
        assert not (found.index == np.arange(len(query))[:, None]).any()


def test_faiss_on_few_and_equal_rows_is_exact():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(10)
    for bank in (rng.normal(size=(7, 3)), np.repeat(rng.normal(size=(3, 4)), 200, 0)):
        exact, found = (find(bank, bank, 50, exclude_self=True, engine=e) for e in ("exact", "faiss"))
        assert found.recall == 1
        assert (found.index >= 0).all()
        np.testing.assert_allclose(found.cosine, exact.cosine, atol=1e-6)


def test_faiss_is_taken_for_large_banks_only(monkeypatch):
    pytest.importorskip("faiss")
    z = clustered(500)
    assert find(z, z, 5).engine == "exact"
    monkeypatch.setattr(sys.modules[find.__module__], "EXACT_UP_TO", 1000)
    assert find(z, z, 5).engine == "faiss"
    judged = ev.knn(z, np.arange(500) % 2, z[:50], np.arange(50) % 2, ["a", "b"])
    assert judged.result.detail["search"] == "faiss"


def test_one_test_item_is_judged_and_what_it_cannot_have_is_said():
    rng = np.random.default_rng(0)
    pair = {"x": (rng.normal(size=(40, 5)), rng.normal(size=(1, 5)))}
    found = ev.evaluate(pair, np.arange(40) % 2, np.array([1]), draws=2, labels_per_class=(1,), more=True)
    assert found["x"]["kNN"].n == 1
    assert found.more == {}
    assert any("one test item has nothing to be ranked among" in note for note in found.notes)
