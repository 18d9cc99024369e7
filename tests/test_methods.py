"""Every method there is a file for: it learns, and what it needs is said."""

import numpy as np
import pytest

import nearfar
from nearfar import methods
from nearfar.evaluate import evaluate


@pytest.mark.parametrize("name", methods.names())
def test_it_learns(name, digits, tmp_path):
    x, y = digits
    run = nearfar.train((x[:800], y[:800]), method=name, out=tmp_path / "r", steps=150, batch=128, width=8, holdout=0,
                        settings={"temperature": 0.5}, evaluate=False, seed=3)  # fmt: skip
    first = run._fresh().eval()
    spaces = {"trained": (run.embed(x[:800]), run.embed(x[800:]))}
    from nearfar import build
    from nearfar.data import open_source

    parts = [open_source(part).train for part in (x[:800], x[800:])]
    build.calibrate(first, parts[0], (0.0, 255.0))
    spaces["untrained"] = tuple(build.embed(first, p, (0.0, 255.0)) for p in parts)
    got = evaluate(spaces, y[:800], y[800:])
    for column in ("1 label linear", "5 labels linear", "kNN"):  # labels are scarce: there the training must show
        assert got["trained"][column].value > got["untrained"][column].value + 0.02, column


@pytest.mark.parametrize("name", [n for n in methods.names() if methods.module(n).SUPERVISED])
def test_supervised_methods_ask_for_labels(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} learns from labels and array has none"):
        nearfar.train(np.zeros((20, 8, 8), np.uint8), method=name, out=tmp_path / "r", batch=8)
    assert not (tmp_path / "r").exists()


def test_unsupervised_methods_do_not_see_labels(digits, tmp_path):
    x, y = digits
    runs = [nearfar.train(data, out=tmp_path / str(i), steps=3, batch=32, width=4, holdout=0, evaluate=False)
            for i, data in enumerate([(x[:100], y[:100]), (x[:100], y[:100][::-1])])]  # fmt: skip
    np.testing.assert_array_equal(runs[0].embed(x[:20]), runs[1].embed(x[:20]))
