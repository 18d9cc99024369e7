"""scikit-learn's own estimator checks, those that make sense for image arrays, and a Pipeline."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import nearfar

SMALL = nearfar.Embedder(epochs=1, batch=16, width=2, settings={"dim": 4})

@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([SMALL])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_pipeline_and_clone_and_repeat():
    held = load_digits()
    x, y = held.images[:200], held.target[:200]
    pipe = make_pipeline(nearfar.Embedder(epochs=2, batch=64), LogisticRegression(max_iter=500))
    assert pipe.fit(x[:150], y[:150]).score(x[150:], y[150:]) > 0.5
    again = nearfar.Embedder(epochs=2, batch=64).fit(x[:150])
    np.testing.assert_array_equal(again.transform(x[150:]), pipe[0].transform(x[150:]))


def test_flattened_rows_are_the_same_images():
    x = load_digits().images[:64]
    e = nearfar.Embedder(epochs=1, batch=32)
    a, b = e.fit(x).transform(x), e.fit(x.reshape(64, 64)).transform(x.reshape(64, 64))
    np.testing.assert_array_equal(a, b)


def test_another_shape_is_one_line():
    e = nearfar.Embedder(epochs=1, batch=8).fit(np.random.default_rng(0).random((16, 8, 8)))
    with pytest.raises(ValueError, match="where fit saw"):
        e.transform(np.zeros((2, 9, 9), np.uint8))
