"""`nearfar predictors` on real runs: against SciPy, and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_digits

import nearfar
from nearfar.cli import main
from nearfar.evaluate.predictors import kendall, predictive, spearman
from nearfar.predictors import MEASURES, Measured, of_runs, predictors

CASES = [("simclr", 5), ("vicreg", 5), ("byol", 5), ("simclr", 2), ("barlow-twins", 5)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Five tiny runs on a part of digits, judged on the same items."""
    x, y = load_digits(return_X_y=True)
    images, labels = (x.reshape(-1, 8, 8) * 15).astype(np.uint8)[:200], y[:200]
    folder, out = tmp_path_factory.mktemp("runs"), []
    for i, (method, steps) in enumerate(CASES):
        run = nearfar.train((images, labels), out=folder / str(i), method=method, steps=steps, width=4, batch=64,
                            show=False)  # fmt: skip
        out.append(run.folder)
    return out


few = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=5, max_size=30)


@given(few)
def test_correlations_are_scipys_with_ties(pairs):
    x, y = np.array(pairs, np.float64).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(spearman(x, y))
        assert math.isnan(kendall(x, y))
        return
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert kendall(x, -np.exp(y)) == pytest.approx(-kendall(x, y), abs=1e-12)  # of ranks alone


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, held = np.random.default_rng(0), []
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of two normals with Pearson's 0.6
    for seed in range(40):
        x, e = rng.normal(size=(2, 60))
        found = predictive({"m": x}, 0.6 * x + 0.8 * e, seed=seed)["m"]
        held.append(found.low <= truth <= found.high)
    assert np.mean(held) > 0.85


def test_the_command_says_what_scipy_says_of_results_json(runs, tmp_path, capsys):
    files = [tmp_path / f"p.{kind}" for kind in ("json", "svg", "png")]
    assert main(["predictors", *map(str, runs), "-o", *map(str, files)]) == 0
    assert "RankMe" in capsys.readouterr().out
    assert files[1].read_text().count("<use") > 5 * 12  # a dot a run in each panel, and ticks
    assert files[2].read_bytes().startswith(b"\x89PNG")
    said = json.loads(files[0].read_text())
    assert [r["name"] for r in said["runs"]] == list(map(str, runs))
    results = [json.loads((run / "results.json").read_text()) for run in runs]
    for space, name in (("features", "nearfar"), ("projections", "projection")):
        for measure in MEASURES:
            x = [r["geometry"][name][measure] for r in results]
            if None in x:  # features of few dimensions have no α
                assert measure == "alpha_req"
                continue
            if measure == "alpha_req":
                x = np.abs(np.array(x) - 1)
            for probe in ("linear", "1 label linear", "10 labels linear"):
                y = [row["cells"][probe]["value"] for r in results for row in r["evaluation"]["rows"]
                     if row["embedding"] == "nearfar"]  # fmt: skip
                (c,) = [c for c in said["correlations"]
                        if (c["space"], c["measure"], c["probe"]) == (space, measure, probe)]  # fmt: skip
                assert c["spearman"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
                assert c["kendall"]["value"] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-9)
                assert c["spearman"]["n"] == 5
                assert c["spearman"]["low"] <= c["spearman"]["high"]


def made(n=6, **changed):
    """Runs whose features' LiDAR rises with accuracy; changed: of the last one."""
    keys = [f"{space} {m}" for space in ("features", "projections") for m in MEASURES]
    out = [{"name": str(i), "split": "a", "measures": dict.fromkeys(keys, 1.0) | {"features lidar": float(i)},
            "accuracies": {"linear": i / n}} for i in range(n)]  # fmt: skip
    out[-1] |= changed
    return [Measured(**r) for r in out]


def test_a_measure_that_a_run_lacks_is_judged_over_the_others():
    runs = made()
    (whole,) = [c for c in of_runs(runs) if (c.space, c.measure) == ("features", "lidar")]
    assert (whole.spearman.value, whole.kendall.value, whole.spearman.n) == (pytest.approx(1), pytest.approx(1), 6)
    lacking = made(measures=dict(runs[-1].measures) | {"features lidar": None, "features rankme": None})
    found = {(c.space, c.measure): c for c in of_runs(lacking)}
    assert found["features", "lidar"].spearman.n == 5
    assert math.isnan(found["features", "rankme"].spearman.value)  # all alike
    with pytest.raises(nearfar.UserError, match="5 and 0 were judged on different items"):
        of_runs(made(split="b"))


def test_what_cannot_be_correlated_is_one_line(runs, tmp_path, capsys):
    names = list(map(str, runs))
    old = shutil.copytree(runs[0], tmp_path / "old")
    results = json.loads((old / "results.json").read_text())
    del results["geometry"]["nearfar"]["lidar"]
    (old / "results.json").write_text(json.dumps(results))
    empty = tmp_path / "empty"
    empty.mkdir()
    for argv, says in [
        (names[:4], "4 runs: give 5 or more"),
        ([*names, names[0]], "is given more than once"),
        ([*names, str(tmp_path / "none")], "none: no such run"),
        ([*names, str(empty)], f"run nearfar evaluate {empty}"),
        ([*names, str(old)], f"run nearfar evaluate {old}"),
        ([*names, "-o", "picture.gif"], "picture.gif: give a name that ends in .json, .svg or .png"),
    ]:
        assert main(["predictors", *argv]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    with pytest.raises(nearfar.UserError, match="0 runs: give 5"):
        predictors([])
