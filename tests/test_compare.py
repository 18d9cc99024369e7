"""`nearfar compare` and `nearfar evaluate FILE.npz`, on real runs and real files."""

import json
import shutil

import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from nearfar import compare
from nearfar import evaluate as ev
from nearfar.cli import main


@pytest.fixture(scope="module")
def embedding(tmp_path_factory):
    """Digits as they are, and with noise that hides them."""
    x, y = load_digits(return_X_y=True)
    folder, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    for name, noise in (("raw", 0), ("same", 0), ("noisy", 30)):
        z = x + noise * rng.normal(size=x.shape)
        np.savez(folder / f"{name}.npz", x_train=z[:1000], y_train=y[:1000], x_test=z[1000:], y_test=y[1000:])
    return folder


def test_an_embedding_of_any_origin_is_judged_and_compared(embedding, capsys):
    for name in ("raw", "same", "noisy"):
        assert main(["evaluate", str(embedding / f"{name}.npz"), "--draws", "2"]) == 0
    said = json.loads((embedding / "raw.results.json").read_text())["evaluation"]
    cells = said["rows"][0]["cells"]
    x, y = load_digits(return_X_y=True)
    theirs = LogisticRegression(max_iter=5000).fit(x[:1000] / 16, y[:1000]).score(x[1000:] / 16, y[1000:])
    assert cells["linear"]["value"] == pytest.approx(theirs, abs=0.03)
    found = compare.compare([embedding / f"{n}.npz" for n in ("raw", "same", "noisy")])
    same, _, noisy, linear = (d for d in found if d.judge in compare.JUDGES)
    few = [d for d in found if d.name.endswith("noisy.npz") and d.judge not in compare.JUDGES]
    assert [d.judge for d in few] == [f"{n} {judge}" for n in ("1 label", "5 labels", "10 labels")
                                      for judge in ("kNN", "linear")]  # fmt: skip
    theirs = json.loads((embedding / "noisy.results.json").read_text())["evaluation"]["rows"][0]["cells"]
    for d in few:
        a, b = (np.array(c[d.judge]["detail"]["draws"]) for c in (theirs, cells))
        t = ttest_rel(a, b).confidence_interval()
        assert (d.value, d.low, d.high) == pytest.approx((np.mean(a - b), t.low, t.high), abs=1e-9)
    assert (same.value, same.low, same.high, same.real) == (0, 0, 0, False)
    assert noisy.real
    assert noisy.value < -0.2
    with np.load(embedding / "raw.predictions.npz") as a, np.load(embedding / "noisy.predictions.npz") as b:
        want = (b["noisy/linear"] == b["y"]).mean() - (a["raw/linear"] == a["y"]).mean()
    assert linear.value == pytest.approx(want)
    capsys.readouterr()
    assert main(["compare", *(str(embedding / f"{n}.npz") for n in ("raw", "noisy"))]) == 0
    assert "yes" in capsys.readouterr().out


def test_more_is_a_second_table(embedding, capsys):
    assert main(["evaluate", str(embedding / "raw.npz"), "--draws", "2", "--labels", "1", "--more"]) == 0
    assert "each ranked against the others" in capsys.readouterr().out
    more = json.loads((embedding / "raw.results.json").read_text())["evaluation"]["more"]["raw"]
    assert set(more) == {"recall@1", "MAP@R", "MRR", "NMI", "AMI", "ARI", "purity"}
    for cell in more.values():
        assert 0.5 < cell["low"] <= cell["value"] + 0.02
        assert cell["value"] - 0.02 <= cell["high"] <= 1
    assert more["recall@1"]["n"] == 797


def test_what_embed_writes_is_judged(small_run, tmp_path):
    out = tmp_path / "e.npz"
    assert main(["embed", str(small_run.folder), str(small_run.recipe.source), "-o", str(out)]) == 0
    result = compare.judge_file(out, draws=2)
    ours = json.loads((small_run.folder / "results.json").read_text())["evaluation"]["rows"][0]["cells"]
    for judge in ("kNN", "linear"):
        assert result["e"][judge].value == pytest.approx(ours[judge]["value"], abs=0.011)  # one of 100 images
    assert result.classes == tuple("0123456789")


def test_runs_are_compared_where_the_items_are_the_same(small_run, tmp_path):
    found = compare.compare([small_run.folder, small_run.folder])
    assert [d.judge for d in found][:2] == ["kNN", "linear"]
    assert all((d.value, d.low, d.high, d.real) == (0, 0, 0, False) for d in found)
    other = tmp_path / "other"
    shutil.copytree(small_run.folder, other)
    held = json.loads((other / "results.json").read_text())
    held["evaluation"]["protocol"]["items hash"] = "others"
    (other / "results.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match="judged on different items"):
        compare.compare([small_run.folder, other])
    (other / "predictions.npz").write_bytes((other / "predictions.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match="run nearfar evaluate"):
        compare.compare([small_run.folder, other])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones(3)}, "holds x: give features, labels and split"),
        ({"features": np.ones((3, 2)), "labels": np.arange(2), "split": np.array(["train"] * 3)},
         "3 features, 2 labels"),
        ({"x_train": np.ones((3, 2)), "y_train": np.arange(3), "x_test": np.ones((1, 2)), "y_test": np.array([7])},
         "test label 7 is not among"),
        ({"x_train": np.full((3, 2), np.nan), "y_train": np.arange(3), "x_test": np.ones((1, 2)), "y_test": [1]},
         "6 features are NaN"),
        ({"x_train": np.ones((3, 2)), "y_train": np.array([0, 1, -1]), "x_test": np.ones((1, 2)), "y_test": [1]},
         "rows without a label"),
        ({"x_train": np.ones(3), "y_train": np.arange(3), "x_test": np.ones(1), "y_test": [1]}, r"give \(N, d\)"),
        ({"x_train": np.ones((3, 2)), "y_train": np.arange(3), "x_test": np.ones((0, 2)), "y_test": []}, "0 test rows"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_judged_is_one_line(arrays, says, tmp_path, capsys):
    path = tmp_path / "e.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=says):
        compare.judge_file(path)
    assert main(["evaluate", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["e.npz"]


def test_files_that_are_none(tmp_path):
    (tmp_path / "e.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="cut short"):
        compare.judge_file(tmp_path / "e.npz")
    with pytest.raises(ValueError, match="no such file"):
        compare.judge_file(tmp_path / "f.npz")
    with pytest.raises(ValueError, match="no such run"):
        compare.compare([tmp_path / "f.npz", tmp_path / "e.npz"])
    with pytest.raises(ValueError, match="two or more"):
        compare.compare([tmp_path])


def seeds_that_differ(embedding, kind, noise, seeds):
    x, y = load_digits(return_X_y=True)
    for seed in seeds:
        z = x + noise * np.random.default_rng([seed, noise]).normal(size=x.shape)
        path = embedding / f"{kind}-{seed}.npz"
        np.savez(path, x_train=z[:1000], y_train=y[:1000], x_test=z[1000:], y_test=y[1000:])
        compare.judge_file(path, draws=3, labels=(5,))


def test_seeds_of_a_kind_are_compared(embedding, capsys, monkeypatch):
    seeds_that_differ(embedding, "a", 4, range(3))
    seeds_that_differ(embedding, "b", 8, range(2))
    monkeypatch.chdir(embedding)
    found = compare.compare(["a-*.npz", "b-0.npz,b-1.npz"])
    for d in found:
        assert d.seeds == (2, 3)
        assert d.low < d.value < 0
        assert min(d.spread) > 0
    linear = next(d for d in found if d.judge == "linear")
    each = {f"{k}-{i}": json.loads((embedding / f"{k}-{i}.results.json").read_text())["evaluation"]["rows"][0]["cells"]
            ["linear"]["value"] for k, n in (("a", 3), ("b", 2)) for i in range(n)}  # fmt: skip
    a, b = ([v for k, v in each.items() if k[0] == kind] for kind in "ab")
    assert linear.value == pytest.approx(np.mean(b) - np.mean(a))
    assert linear.spread == pytest.approx((np.std(b, ddof=1), np.std(a, ddof=1)))
    assert main(["compare", "a-*.npz", "b-0.npz,b-1.npz"]) == 0
    assert "spread" in capsys.readouterr().out
    for given, says in (("c-*.npz", "no run or file"), ("a-0.npz,,a-1.npz", "missing between"),
                        ("a-0.npz,a-*.npz", "named twice")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            compare.compare([given, "b-0.npz"])


def test_one_seed_a_side_is_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 300)) < 0.7
    assert ev.of_difference_over_seeds(a[None], b[None]) == pytest.approx(ev.of_difference(a, b), abs=1e-12)


@pytest.mark.parametrize("way", ["items", "draws"])
def test_intervals_over_seeds_cover(way):
    """Seeds that differ by as much as items do: single runs' intervals would cover half of the time."""
    rng, covered = np.random.default_rng(1), 0
    for seed in range(200):
        shared = rng.normal(size=40)
        a, b = (shared + 0.3 * rng.normal(size=(8, 1)) + 0.5 * rng.normal(size=(8, 40)) + up for up in (0.2, 0))
        _, low, high = ev.of_difference_over_seeds(a, b, seed, 400) if way == "items" else ev.of_paired_draws(a, b)
        covered += low <= 0.2 <= high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("call", [lambda: ev.of_difference_over_seeds(np.ones((2, 3)), np.ones((2, 4))),
                                  lambda: ev.of_paired_draws(np.ones((2, 1)), np.ones((2, 1)))])  # fmt: skip
def test_values_that_cannot_be_paired_are_one_line(call):
    with pytest.raises(ValueError, match="values") as error:
        call()
    assert "\n" not in str(error.value)
