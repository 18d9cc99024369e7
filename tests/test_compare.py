"""`nearfar compare` and `nearfar evaluate FILE.npz`, on real runs and real files."""

import json
import shutil

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from nearfar import compare
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
    same, _, noisy, linear = compare.compare([embedding / f"{n}.npz" for n in ("raw", "same", "noisy")])
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
    assert [(d.judge, d.value, d.real) for d in found] == [("kNN", 0, False), ("linear", 0, False)]
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
