"""Several labels an item: against scikit-learn, torchmetrics and naive loops; and the field's measures of one label."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs
from sklearn.linear_model import LogisticRegression
from torchmetrics.functional import classification as tm
from torchmetrics.functional import clustering as tc
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional import retrieval as tr

from nearfar import compare
from nearfar import evaluate as ev
from nearfar.cli import main
from nearfar.evaluate import intervals, multilabel, probes, similarity


def items(n=240, d=6, kinds=4, seed=0):
    """Labels that depend on the features, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    w = np.random.default_rng(99).normal(size=(d, kinds))
    return x, (x @ w + rng.normal(size=(n, kinds)) > 0.8).astype(int)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.booleans())
def test_measures_are_scikit_learns_and_torchmetrics(seed, kinds, ties):
    rng = np.random.default_rng(seed)
    n = 40
    y = (rng.random((n, kinds)) < 0.4).astype(int)
    y[0], y[1] = 1, 0
    chance = rng.random((n, kinds))
    chance = np.round(chance * 8) / 8 if ties else chance
    judged = multilabel.judge("x", chance, y, np.ones(kinds, bool), tuple("abcdef"[:kinds]))
    said = (chance > 0.5).astype(int)
    got = {name: r["value"] for name, r in judged.metrics["measures"].items()}
    want = {"mAP": theirs.average_precision_score(y, chance),
            "LRAP": theirs.label_ranking_average_precision_score(y, chance),
            "micro AP": theirs.average_precision_score(y, chance, average="micro"),
            "coverage error": theirs.coverage_error(y, chance), "subset accuracy": theirs.accuracy_score(y, said),
            "Hamming loss": theirs.hamming_loss(y, said)}  # fmt: skip
    for kind in ("macro", "micro", "weighted", "samples"):
        scores = theirs.precision_recall_fscore_support(y, said, average=kind, zero_division=0)
        want |= dict(zip((f"{kind} precision", f"{kind} recall", f"{kind} F1"), scores))
    assert got == pytest.approx(want, abs=1e-9)
    assert [c["AP"] for c in judged.metrics["per_class"]] == pytest.approx(
        theirs.average_precision_score(y, chance, average=None), abs=1e-9)  # fmt: skip
    assert [c["f1"] for c in judged.metrics["per_class"]] == pytest.approx(theirs.f1_score(y, said, average=None))
    p, t = torch.from_numpy(chance), torch.from_numpy(y)
    assert got["mAP"] == pytest.approx(float(tm.multilabel_average_precision(p, t, kinds)), abs=1e-6)
    assert got["micro AP"] == pytest.approx(float(tm.multilabel_average_precision(p, t, kinds, "micro")), abs=1e-6)
    assert got["coverage error"] == pytest.approx(float(tm.multilabel_coverage_error(p, t, kinds)), abs=1e-6)
    assert got["LRAP"] == pytest.approx(float(tm.multilabel_ranking_average_precision(p, t, kinds)), abs=1e-6)
    assert got["subset accuracy"] == pytest.approx(float(tm.multilabel_exact_match(p, t, kinds)), abs=1e-6)
    assert got["Hamming loss"] == pytest.approx(
        float(tm.multilabel_hamming_distance(p, t, kinds, average="micro")), abs=1e-6
    )
    for kind in ("macro", "micro", "weighted"):
        assert got[f"{kind} F1"] == pytest.approx(float(tm.multilabel_f1_score(p, t, kinds, average=kind)), abs=1e-6)
    for r in judged.metrics["measures"].values():
        assert math.isfinite(r["low"])
        assert r["low"] <= r["high"]


def test_intervals_are_the_bootstraps():
    x, y = items(60)
    chance = np.random.default_rng(1).random(y.shape) * 0.5 + y * 0.3
    got = multilabel.judge("x", chance, y, np.ones(4, bool), tuple("abcd")).metrics["measures"]
    again = [np.repeat(np.arange(60), w) for part in intervals.draws(60, 0, 200) for w in part]
    for name, f in {
        "mAP": lambda r: theirs.average_precision_score(y[r], chance[r]),
        "micro AP": lambda r: theirs.average_precision_score(y[r], chance[r], average="micro"),
        "weighted F1": lambda r: theirs.f1_score(y[r], chance[r] > 0.5, average="weighted", zero_division=0),
        "LRAP": lambda r: theirs.label_ranking_average_precision_score(y[r], chance[r]),
    }.items():
        want = np.quantile([f(r) for r in again], (0.025, 0.975))
        assert (got[name]["low"], got[name]["high"]) == pytest.approx(tuple(want), abs=1e-9), name


def test_knn_is_the_votes():
    x, y = items(50)
    t, _ = items(8, seed=1)
    u, v = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, t))
    got = multilabel.knn(x, y, t, k=7, temperature=0.1)
    for i, cos in enumerate(v @ u.T):
        near = np.argsort(-cos)[:7]
        w = np.exp(cos[near].astype(float) / 0.1)
        assert got[i] == pytest.approx(w @ y[near] / w.sum(), abs=1e-5)


def test_the_probe_is_scikit_learns_optimum_and_sees_no_test_data():
    x, y = items()
    t, yt = items(50, seed=1)
    y[:, 3] = 1  # of one value: kept as it is
    chance, detail = multilabel.linear_probe(x, y, t)
    assert detail["converged"]
    a, b = probes.standardised(x, t)
    for c in range(3):
        model = LogisticRegression(C=detail["C"], tol=1e-9, max_iter=5000).fit(a.astype(float), y[:, c])
        assert chance[:, c] == pytest.approx(model.predict_proba(b.astype(float))[:, 1], abs=1e-4)
    assert (chance[:, 3] == 1).all()
    assert multilabel.linear_probe(x, y, t[::-1] * 3)[1] == detail


def test_evaluate_is_chosen_by_the_labels(tmp_path, capsys):
    x, y = items()
    t, yt = items(80, seed=1)
    y[:, 2], yt[:, 3] = 0, 1
    got = ev.evaluate({"a": (x, t), "noise": (x[::-1], t)}, y, yt, ("p", "q", "lacks", "same"))
    assert got["a"]["linear mAP"].low > got["noise"]["linear mAP"].high
    assert [n.split(":")[1] for n in got.notes] == [" all training items have the same value (lacks)",
                                                    " all test items have the same value (same)"]  # fmt: skip
    judged = got.judgements["a"]["linear"].metrics["per_class"]
    assert [c["judged"] for c in judged] == [True, True, False, False]
    assert got["a"]["linear mAP"].value == pytest.approx(np.mean([c["AP"] for c in judged[:2]]))
    for name, z in (("a", x), ("b", x[::-1])):
        np.savez(tmp_path / f"{name}.npz", x_train=z, y_train=y.astype(bool), x_test=t, y_test=yt)
        assert main(["evaluate", str(tmp_path / f"{name}.npz"), "--more"]) == 0
    assert "left out" in json.loads((tmp_path / "a.results.json").read_text())["evaluation"]["notes"][2]
    found = compare.compare([tmp_path / "a.npz", tmp_path / "b.npz"])[1]
    assert found.real
    assert found.value < 0
    a, b = (json.loads((tmp_path / f"{n}.results.json").read_text())["evaluation"]["rows"][0]["cells"] for n in "ab")
    assert found.value == pytest.approx(b["linear LRAP"]["value"] - a["linear LRAP"]["value"])
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]) == 0
    assert "ranking average" in capsys.readouterr().out


@pytest.mark.parametrize(("y", "yt", "says"), [
    (np.full((9, 2), 2), np.ones((9, 2)), "label 2 in a matrix"),
    (np.ones((9, 2)), np.ones((9, 3)), "give .N, K. and .M, K."),
    (np.ones((9, 2)), np.ones(9), "give .N, K. and .M, K."),
    (np.ones((9, 2)), np.ones((9, 2)), "none of 2 classes"),
    (np.full((9, 2), np.nan), np.ones((9, 2)), "label nan"),
    (np.full((9, 2), "a"), np.ones((9, 2)), "labels of type <U1"),
    (np.zeros((9, 2, 2)), np.zeros((9, 2, 2)), "labels of shapes"),
])  # fmt: skip
def test_bad_labels_are_one_line(y, yt, says, tmp_path, capsys):
    np.savez(tmp_path / "e.npz", x_train=np.ones((9, 3)), y_train=y, x_test=np.ones((9, 3)), y_test=yt)
    assert main(["evaluate", str(tmp_path / "e.npz")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(says, said), said


def test_one_label_an_item_is_torchmetrics():
    rng = np.random.default_rng(2)
    y, kinds = np.r_[np.arange(7), rng.integers(0, 7, 200)], 7
    chance = rng.dirichlet(np.ones(kinds), len(y))
    said = chance.argmax(1)
    got = probes.classification(y, said, list("abcdefg"))
    p, t = torch.from_numpy(said), torch.from_numpy(y)
    assert got["accuracy"] == pytest.approx(float(tm.multiclass_accuracy(p, t, kinds, average="micro")), abs=1e-6)
    assert got["balanced_accuracy"] == pytest.approx(float(tm.multiclass_accuracy(p, t, kinds)), abs=1e-6)
    assert got["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(y, said))
    assert got["confusion"] == tm.multiclass_confusion_matrix(p, t, kinds).tolist()
    for m, f in (
        ("precision", tm.multiclass_precision),
        ("recall", tm.multiclass_recall),
        ("f1", tm.multiclass_f1_score),
    ):
        for kind in ("macro", "micro", "weighted"):
            assert got[kind][m] == pytest.approx(float(f(p, t, kinds, average=kind)), abs=1e-6)
        assert [c[m] for c in got["per_class"]] == pytest.approx(f(p, t, kinds, average=None).tolist(), abs=1e-6)
    top = tm.multiclass_accuracy(torch.from_numpy(chance), t, kinds, top_k=5, average="micro")
    assert probes.calibration(chance, y, times=2)["top5"] == pytest.approx(float(top), abs=1e-6)


def test_retrieval_is_torchmetrics_where_it_is_the_same():
    rng = np.random.default_rng(3)
    q, b, yq, yb = rng.normal(size=(20, 5)), rng.normal(size=(40, 5)), rng.integers(0, 3, 20), rng.integers(0, 3, 40)
    got = {name: r.value for name, r in ev.retrieval(q, yq, b, yb, ks=(1, 5)).items()}
    cos = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    want: dict[str, list[float]] = {name: [] for name in got}
    for s, y in zip(torch.from_numpy(cos) + 2, yq):  # above 0, as its average precision takes the rest for wrong
        t = torch.from_numpy(yb == y)
        for k in (1, 5):
            # the field's recall@k, a hit or none, is torchmetrics' hit rate; its recall is the share that is found
            want[f"recall@{k}"].append(float(tr.retrieval_hit_rate(s, t, top_k=k)))
            want[f"precision@{k}"].append(float(tr.retrieval_precision(s, t, top_k=k)))
            want[f"nDCG@{k}"].append(float(tr.retrieval_normalized_dcg(s, t, top_k=k)))
        want["MRR"].append(float(tr.retrieval_reciprocal_rank(s, t)))
        want["R-precision"].append(float(tr.retrieval_r_precision(s, t)))
        # its average precision of the first R divides by how many of these are right, MAP@R by R
        r = int(t.sum())
        first = float(tr.retrieval_average_precision(s, t, top_k=r))
        want["MAP@R"].append(first * float(tr.retrieval_r_precision(s, t)))
    assert got == pytest.approx({name: np.mean(v) for name, v in want.items()}, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torchmetrics', of its own tables
def test_clusters_pairs_and_grades_are_torchmetrics():
    rng = np.random.default_rng(4)
    y, found = rng.integers(0, 4, 90), rng.integers(0, 3, 90)
    got = {name: r.value for name, r in ev.clusters.agreement(y, found, times=2).items()}
    p, t = torch.from_numpy(found), torch.from_numpy(y)
    assert got["NMI"] == pytest.approx(float(tc.normalized_mutual_info_score(p, t)), abs=1e-6)
    assert got["AMI"] == pytest.approx(float(tc.adjusted_mutual_info_score(p, t)), abs=1e-6)
    assert got["ARI"] == pytest.approx(float(tc.adjusted_rand_score(p, t)), abs=1e-6)
    same = rng.random(90) < 0.4
    scores = rng.random(90)
    s, t = torch.from_numpy(scores), torch.from_numpy(same).long()
    assert ev.verification(scores, same, times=2)["AUC"].value == pytest.approx(float(tm.binary_auroc(s, t)), abs=1e-6)
    false, true, _ = tm.binary_roc(s, t)
    for ours, its in zip(similarity.roc(scores, same), (false, true)):
        assert ours == pytest.approx(its.numpy(), abs=1e-6)
    # torchmetrics' equal error rate is the mean of both rates at the nearest threshold, ours the crossing of the lines
    assert abs(similarity.equal_error_rate(scores, same) - float(tm.binary_eer(s, t))) < 1 / min(
        same.sum(), (~same).sum()
    )
    grades = ev.graded(scores, found + scores, times=2)
    other = torch.from_numpy(found + scores)
    assert grades["Spearman"].value == pytest.approx(float(spearman_corrcoef(s, other)), abs=1e-6)
    assert grades["Pearson"].value == pytest.approx(float(pearson_corrcoef(s, other)), abs=1e-6)
