"""Near-duplicates of test images in the training part: planted ones are found, lookalikes are not."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import nearfar
from nearfar.errors import UserError
from nearfar.evaluate.duplicates import SAMPLE, near_duplicates, products, reduced


def sheet(data, name, n):
    held = np.asarray(Image.open(data / f"cifar10/{name}.webp").convert("RGB"))
    return held.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)[:n].copy()


def jpeg(image):
    side = io.BytesIO()
    Image.fromarray(image).save(side, "JPEG", quality=50)
    return np.asarray(Image.open(side))


COPIES = {
    "jpeg": jpeg, "mirror": lambda x: x[:, ::-1], "shift": lambda x: np.roll(x, 1, 1),
    "brighter": lambda x: (x * 1.2).clip(0, 255).astype(np.uint8), "darker": lambda x: (x * 0.8).astype(np.uint8),
    "rescaled": lambda x: np.asarray(Image.fromarray(x).resize((24, 24)).resize((32, 32))),
}  # fmt: skip


@pytest.fixture(scope="module")
def cifar(data):
    return sheet(data, "train_0", 3000), sheet(data, "test", 300)


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_found(cifar, kind):
    train, test = cifar[0], cifar[1].copy()
    rows = np.arange(5, 65)
    test[rows] = [COPIES[kind](train[i * 40]) for i in rows]
    found = near_duplicates(test, train, sample=500)
    hit = np.isin(rows, found.test)
    assert hit.mean() >= 0.9
    where = {int(i): int(j) for i, j in zip(found.test, found.train)}
    assert np.mean([where[int(i)] == i * 40 for i in rows[hit]]) > 0.98  # and of the right training image
    assert len(found.test) - hit.sum() <= 8  # CIFAR-10's own: about 3 in 100 against all 50,000 training images
    assert (np.diff(found.correlation) <= 1e-6).all()


def test_what_is_drawn_apart_is_not_found():
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(1200, 6, 6, 3)).repeat(3, 1).repeat(3, 2)
    assert len(near_duplicates(smooth[:200], smooth[200:]).test) == 0
    assert near_duplicates(smooth[:200], smooth[200:]).within == 0


def test_duplicates_within_the_training_part_are_counted(cifar):
    train = np.concatenate([cifar[0][:1000], cifar[0][:100, :, ::-1]])
    assert near_duplicates(cifar[1], train, sample=1100).within >= 190


def test_the_nearest_is_the_naive_one(cifar):
    train, test = cifar[0][:60].astype(np.float64), cifar[1][:5].copy()
    test[2] = cifar[0][33]
    found = near_duplicates(test, cifar[0][:60])
    assert found.test.tolist() == [2]
    assert found.train.tolist() == [33]

    def unit(x):
        x = x - x.mean((0, 1))
        return x / np.linalg.norm(x)

    best = max((unit(test[2].astype(float)[2:-2, 2:-2]) * unit(t[2:-2, 2:-2])).sum() for t in train)
    assert found.correlation[0] == pytest.approx(best, abs=1e-5)


def test_means_over_areas():
    x = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    got = reduced(x)
    want = x.reshape(3, 32, 2, 32, 3, 3).mean((2, 4))
    assert got.shape == (3, 32, 32, 3)
    assert np.abs(got.astype(float) - want).max() <= 0.5 + 1e-4
    assert reduced(x[:, :8, :8]) is not None


def test_bad_input_is_a_line():
    x = np.zeros((30, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match="give \\(N, H, W, C\\) of one shape"):
        near_duplicates(x, np.zeros((30, 9, 8, 1), np.uint8))
    with pytest.raises(UserError, match="5 training images"):
        near_duplicates(x, x[:5])
    assert products(10_000, 50_000, (32, 32, 3)) == 2 * (10_000 + SAMPLE) * 50_000 * 768


def test_a_run_tells_of_them(data, tmp_path):
    x = sheet(data, "train_0", 700)
    y = np.arange(700) % 2
    x[600:620] = x[:20, :, ::-1]  # mirrored copies in the test part
    x[620:625] = x[20:25]  # and exact ones
    y[600:625] = y[:25]
    np.savez(tmp_path / "d.npz", x_train=x[:600], y_train=y[:600], x_test=x[600:], y_test=y[600:])
    said = []
    run = nearfar.train(tmp_path / "d.npz", out=tmp_path / "run", steps=2, batch=32, width=8, show=False,
                        say=said.append)  # fmt: skip
    held = json.loads((run.folder / "results.json").read_text())["duplicates"]
    assert held["exact"] == 5
    assert 18 <= held["count"] <= 22
    assert {p["test"] for p in held["pairs"]} >= {str(i) for i in range(2, 18)}
    assert any("test images (2" in s or "near-duplicates of training images" in s for s in said)
    left = held["judged"]["nearfar"]["kNN"]
    assert left["all"]["n"] == 100
    assert left["without"]["n"] == 100 - 5 - held["count"]
    page = (run.folder / "report.html").read_text()
    assert "Test images that the training part holds too" in page
    assert "test 3 beside 3" in page
