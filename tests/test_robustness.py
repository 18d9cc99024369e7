"""Corruptions against naive loops, theory, Pillow and SciPy; the fitted probes on them; each augmentation alone."""

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates, zoom

import nearfar
from nearfar import cli
from nearfar.data import open_source
from nearfar.evaluate import corruptions as co
from nearfar.evaluate import knn
from nearfar.evaluate.robustness import accuracies, sensitivity
from nearfar.evaluate.severities import SETS, STRENGTH, published_side
from nearfar.views.parts import alone
from nearfar.views.policies import POLICIES, plan_of
from nearfar.views.policy import ImagePolicy


def smooth(n, h, w, c, seed=0):
    """Images with structure, in [0, 1], of 8 bits."""
    x = np.random.default_rng(seed).random((n, h // 2 + 1, w // 2 + 1, c))
    x = np.repeat(np.repeat(x, 2, 1), 2, 2)[:, :h, :w]
    return (x * 255).round() / 255


def strength(x, name, severity):
    return STRENGTH[published_side(*x.shape[1:3])][name][severity - 1]


def rng_of(name, i, seed=0):
    import zlib

    return np.random.default_rng([seed, zlib.crc32(name.encode()), i])


def mirror(i, n):
    """Beyond the edge, without the edge pixel again."""
    while not 0 <= i < n:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i


def test_the_tables_are_whole_and_each_size_takes_the_nearest():
    assert all(set(STRENGTH[side]) == {*co.MAIN, *co.EXTRA} for side in SETS)
    assert all(len(row) == 5 for table in STRENGTH.values() for row in table.values())
    assert [published_side(s, s) for s in (8, 28, 32, 45, 46, 64, 119, 120, 500)] == [32] * 4 + [64] * 3 + [224] * 2


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(co.names(3)), st.integers(0, 5), st.sampled_from([1, 2, 3]), st.integers(8, 21),
       st.integers(8, 21), st.integers(0, 99))  # fmt: skip
def test_what_is_drawn_is_the_images_own(name, severity, channels, h, w, seed):
    if name not in co.names(channels):
        return
    x = smooth(4, h, w, channels, seed)
    whole = co.corrupt(x, name, severity, seed=seed)
    assert whole.shape == x.shape
    assert whole.dtype == np.float32
    assert 0 <= whole.min() <= whole.max() <= 1
    apart = [co.corrupt(x[i : i + 1], name, severity, seed=seed, index=[i])[0] for i in (2, 0)]
    np.testing.assert_allclose(apart, whole[[2, 0]], atol=1e-6)
    if severity == 0:
        np.testing.assert_array_equal(whole, x.astype(np.float32))


def test_noise_has_the_mean_and_variance_of_theory():
    x = np.full((20, 64, 64, 1), 0.5)
    n = x.size
    for name, variance in (
        ("gaussian_noise", lambda c: c**2), ("speckle_noise", lambda c: (c / 2) ** 2),
        ("shot_noise", lambda c: 0.5 / c), ("impulse_noise", lambda c: c / 4),
    ):  # fmt: skip
        for severity in (1, 2, 3):  # where next to nothing is clipped
            want = variance(strength(x, name, severity))
            y = co.corrupt(x, name, severity).astype(np.float64)
            assert abs(y.mean() - 0.5) < 5 * math.sqrt(want / n), name
            assert y.var() == pytest.approx(want, rel=0.05), name
    y = co.corrupt(np.full((20, 64, 64, 3), 0.5), "impulse_noise", 5)
    assert ((y == 0) | (y == 0.5) | (y == 1)).all()
    assert (y != 0.5).mean() == pytest.approx(0.14, abs=0.004)
    assert (y == 1).mean() == pytest.approx(0.07, abs=0.003)
    a, b = co.corrupt(x[:2], "gaussian_noise", 1, seed=1), co.corrupt(x[:2], "gaussian_noise", 1, seed=2)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(a[0].ravel(), a[1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("side", [12, 70])
def test_blurs_are_their_loops(side):
    x = smooth(2, side, side - 2, 1)
    h, w = x.shape[1:3]
    at = np.random.default_rng(1).integers(0, (h, w), (15, 2))
    at = [(0, 0), (h - 1, w - 1), (0, w - 1), *map(tuple, at)]
    for severity in (1, 5):
        radius, edge = strength(x, "defocus_blur", severity)
        got = co.corrupt(x, "defocus_blur", severity)[1, :, :, 0]
        hard = {(i, j): 1.0 for i in range(-8, 9) for j in range(-8, 9) if i * i + j * j <= radius**2}
        soft = {i: math.exp(-i * i / (2 * edge * edge)) for i in (-1, 0, 1)}
        kernel = {}
        for (i, j), v in hard.items():
            for a, p in soft.items():
                for b, q in soft.items():
                    kernel[i + a, j + b] = kernel.get((i + a, j + b), 0) + v * p * q
        total = sum(kernel.values())
        for y0, x0 in at:
            want = sum(v * x[1, mirror(y0 + i, h), mirror(x0 + j, w), 0] for (i, j), v in kernel.items()) / total
            assert got[y0, x0] == pytest.approx(want, abs=1e-6)
        sigma = strength(x, "gaussian_blur", severity)
        got = co.corrupt(x, "gaussian_blur", severity)[1, :, :, 0]
        reach = int(4 * sigma + 0.5)
        line = {i: math.exp(-i * i / (2 * sigma**2)) for i in range(-reach, reach + 1)}
        total = sum(line.values()) ** 2
        for y0, x0 in at:
            want = sum(p * q * x[1, min(max(y0 + i, 0), h - 1), min(max(x0 + j, 0), w - 1), 0]
                       for i, p in line.items() for j, q in line.items()) / total  # fmt: skip
            assert got[y0, x0] == pytest.approx(want, abs=1e-6)
        radius, sigma = strength(x, "motion_blur", severity)
        angle = math.radians(rng_of("motion_blur", 1).uniform(-45, 45))
        got = co.corrupt(x, "motion_blur", severity)[1, :, :, 0]
        weights = [math.exp(-i * i / (2 * sigma**2)) for i in range(2 * radius + 1)]
        for y0, x0 in at:
            want = 0
            for i, v in enumerate(weights):
                r, q = y0 + math.ceil(i * math.sin(angle) - 0.5), x0 + math.ceil(i * math.cos(angle) - 0.5)
                want += v * x[1, min(max(r, 0), h - 1), min(max(q, 0), w - 1), 0] / sum(weights)
            assert got[y0, x0] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (32, 32), (17, 30)])
def test_zoom_blur_is_scipys(h, w):
    x = smooth(2, h, w, 3)
    for severity in (1, 5):
        factors = strength(x, "zoom_blur", severity)
        want = x.copy()
        for f in factors:
            ch, cw = math.ceil(h / f), math.ceil(w / f)
            top, left = (h - ch) // 2, (w - cw) // 2
            for i in range(2):
                big = zoom(x[i, top : top + ch, left : left + cw], (f, f, 1), order=1)
                y0, x0 = (big.shape[0] - h) // 2, (big.shape[1] - w) // 2
                want[i] += big[y0 : y0 + h, x0 : x0 + w]
        np.testing.assert_allclose(co.corrupt(x, "zoom_blur", severity), want / (len(factors) + 1), atol=1e-6)


def test_glass_blur_copies_pixel_by_pixel():
    x = smooth(3, 10, 9, 3)
    sigma, reach, times = strength(x, "glass_blur", 4)
    want = np.floor(co.gaussian_blur(x, sigma, []) * 255)
    for i in range(3):
        moves = rng_of("glass_blur", i).integers(-reach, reach, (times, 10 - 2 * reach, 9 - 2 * reach, 2))
        for t in range(times):
            for a, h in enumerate(range(10 - reach, reach, -1)):
                for b, w in enumerate(range(9 - reach, reach, -1)):
                    want[i, h, w] = want[i, h + moves[t, a, b, 0], w + moves[t, a, b, 1]]
    np.testing.assert_allclose(co.corrupt(x, "glass_blur", 4), co.gaussian_blur(want / 255, sigma, []), atol=1e-6)


def test_fog_is_diamonds_and_squares():
    """Point by point: a square's middle is the mean of its corners, a diamond's of its four neighbours, plus noise."""
    side, decay = 16, 2.5
    noise = np.random.default_rng(3).uniform(-1, 1, (side, side))
    got = co.plasma(side, decay, [np.random.default_rng(3)])[0]
    m, step, wibble = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2
        near = lambda y, x, moves: sum(m[(y + a) % side, (x + b) % side] for a, b in moves) / 4  # noqa: E731
        for y in range(half, side, step):
            for x in range(half, side, step):
                m[y, x] = near(y, x, [(-half, -half), (-half, half), (half, -half), (half, half)])
                m[y, x] += wibble**2 * noise[y, x]
        for y in range(0, side, half):
            for x in range(0, side, half):
                if (y // half + x // half) % 2:
                    m[y, x] = near(y, x, [(-half, 0), (half, 0), (0, -half), (0, half)]) + wibble**2 * noise[y, x]
        step, wibble = half, wibble / decay
    np.testing.assert_allclose(got, (m - m.min()) / (m.max() - m.min()), atol=1e-12)
    x = smooth(1, 13, 16, 1)
    thick, decay = strength(x, "fog", 3)
    clouds = co.plasma(16, decay, [rng_of("fog", 0)])[0, :13]
    want = (x[0, ..., 0] + thick * clouds) * x.max() / (x.max() + thick)
    np.testing.assert_allclose(co.corrupt(x, "fog", 3)[0, ..., 0], want.clip(0, 1), atol=1e-6)


def test_brightness_and_saturation_are_hsvs():
    import colorsys

    x = smooth(2, 8, 9, 3)
    x[0, 0] = x[0, 0, :, :1]  # greys
    x[0, 1] = 0  # black
    for severity in range(1, 6):
        more = strength(x, "brightness", severity)
        factor, added = strength(x, "saturate", severity)
        bright, full = (co.corrupt(x, name, severity) for name in ("brightness", "saturate"))
        for i in np.ndindex(2, 8, 9):
            h, s, v = colorsys.rgb_to_hsv(*x[i])
            assert bright[i] == pytest.approx(colorsys.hsv_to_rgb(h, s, min(v + more, 1)), abs=1e-6)
            assert full[i] == pytest.approx(colorsys.hsv_to_rgb(h, min(max(s * factor + added, 0), 1), v), abs=1e-6)
    c = strength(x, "contrast", 2)
    want = [[[[x[i, :, :, k].mean() * (1 - c) + c * x[i, a, b, k] for k in range(3)] for b in range(9)]
             for a in range(8)] for i in range(2)]  # fmt: skip
    np.testing.assert_allclose(co.corrupt(x, "contrast", 2), want, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_and_pixelate_are_pillows(channels):
    x = smooth(3, 20, 17, channels)
    for severity in (1, 5):
        for i, y in enumerate(co.corrupt(x, "jpeg_compression", severity)):
            image, held = Image.fromarray((x[i] * 255).astype(np.uint8).squeeze()), io.BytesIO()
            image.save(held, "JPEG", quality=strength(x, "jpeg_compression", severity))
            want = np.asarray(Image.open(held)).reshape(y.shape)
            np.testing.assert_array_equal((y * 255).round().astype(np.uint8), want)  # bit for bit
            c = strength(x, "pixelate", severity)
            small = image.resize((int(17 * c), int(20 * c)), Image.Resampling.BOX)
            want = np.asarray(small.resize((17, 20), Image.Resampling.BOX)).reshape(y.shape) / 255
            got = co.corrupt(x[i : i + 1], "pixelate", severity)[0]
            assert np.abs(got - want).max() < 1.01 / 255  # Pillow rounds twice


def test_elastic_is_scipys_sampling_of_the_three_points():
    x = smooth(2, 16, 16, 1)
    shift, sigma, corner = (v * 16 for v in strength(x, "elastic_transform", 3))
    for i in range(2):
        rng = rng_of("elastic_transform", i)
        points = np.array([[13, 13], [13, 3], [3, 3]])  # x, y
        moved = points + corner * rng.uniform(-1, 1, (3, 2))
        back = co.affine(points, moved[None])[0]
        for p, q in zip(points, moved):
            np.testing.assert_allclose(back @ [*q, 1], p, atol=1e-9)
        rows, cols = np.mgrid[:16, :16]
        u = back[0, 0] * cols + back[0, 1] * rows + back[0, 2]
        v = back[1, 0] * cols + back[1, 1] * rows + back[1, 2]
        once = map_coordinates(x[i, ..., 0], [v, u], order=1, mode="mirror")
        noise = rng.uniform(-1, 1, (2, 16, 16))
        field = [shift * co.gaussian_filter(f, sigma, mode="reflect", truncate=3) for f in noise]
        want = map_coordinates(once, [rows + field[1], cols + field[0]], order=1, mode="reflect")
        np.testing.assert_allclose(co.corrupt(x, "elastic_transform", 3)[i, ..., 0], want, atol=1e-6)


def real(data, digits, what):
    if what == "digits":
        return digits[0][:100, ..., None] / 255
    if what == "fashion-mnist":
        part = open_source(data / "fashion-mnist").test
        return part.read(np.arange(100)) / 255.0
    with Image.open(data / "cifar10" / "test.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    tiles = [pixels[y : y + 32, x : x + 32] for y in range(0, 320, 32) for x in range(0, 320, 32)]
    return np.stack(tiles) / 255.0


@pytest.mark.parametrize("what", ["digits", "fashion-mnist", "cifar10"])
def test_severity_grows_on_real_images(data, digits, what):
    """Mean distance from the clean image rises with severity, but where the published strengths do not."""
    x = real(data, digits, what)
    # less, then more, saturation; reach against sigma; whole pixels; large shifts first, then many small ones
    turns = {"saturate", "glass_blur", "pixelate", "elastic_transform"}
    for name in co.names(x.shape[3]):
        away = [float(np.abs(co.corrupt(x, name, s) - x).mean()) for s in range(6)]
        assert away[0] < 1e-7
        assert away[1] > 0, name
        assert away == sorted(away) or name in turns, (name, away)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: co.corrupt(np.zeros((1, 7, 9, 1)), "fog", 1), "sides from 8 up"),
        (lambda: co.corrupt(np.zeros((9, 9)), "fog", 1), "give images"),
        (lambda: co.corrupt(np.zeros((1, 9, 9, 1)), "frog", 1), "unknown corruption 'frog'; did you mean 'fog'"),
        (lambda: co.corrupt(np.zeros((1, 9, 9, 1)), "saturate", 1), "saturate needs 3 channels, the images have 1"),
        (lambda: co.corrupt(np.zeros((1, 9, 9, 1)), "fog", 6), "severity 6: give 1 to 5"),
        (lambda: co.corrupt(np.full((1, 9, 9, 1), 2.0), "fog", 1), r"outside \[0, 1\]"),
        (lambda: co.corrupt(np.full((1, 9, 9, 1), np.nan), "fog", 1), r"outside \[0, 1\]"),
        (lambda: co.corrupt(np.zeros((1, 9, 9, 1), np.uint8), "fog", 1), "uint8"),
        (lambda: co.corrupt(np.zeros((2, 9, 9, 1)), "fog", 1, index=[1]), "1 numbers for 2 images"),
        (lambda: sensitivity(np.ones((1, 2)), np.ones((1, 2))), "two images or more"),
        (lambda: accuracies(np.ones(0), {"fog": np.ones((0, 5))}, ["fog"]), "no items"),
    ],
)
def test_bad_input_is_one_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


def test_accuracies_and_drops_are_the_means():
    rng = np.random.default_rng(0)
    clean = rng.random(300) < 0.9
    hits = {name: clean[:, None] & (rng.random((300, 5)) < p) for name, p in (("a", 0.9), ("b", 0.5), ("extra", 0.1))}
    got = accuracies(clean, hits, ["a", "b", "absent"])
    means = {name: float(np.mean([hit[:, s].mean() for s in range(5)])) for name, hit in hits.items()}
    assert got["mean"]["value"] == pytest.approx((means["a"] + means["b"]) / 2)
    assert got["drop"]["value"] == pytest.approx(1 - (means["a"] + means["b"]) / 2 / clean.mean())
    for name in hits:
        found = got["corruptions"][name]
        assert found["mean"]["value"] == pytest.approx(means[name])
        assert found["drop"]["value"] == pytest.approx(1 - means[name] / clean.mean())
        assert [c["value"] for c in found["severity"]] == pytest.approx(hits[name].mean(0).tolist())
        for cell in (*found["severity"], found["mean"], found["drop"]):
            assert cell["low"] < cell["value"] < cell["high"]
    half = 1.96 * math.sqrt(clean.mean() * (1 - clean.mean()) / 300)  # the normal's
    assert got["clean"]["high"] - got["clean"]["low"] == pytest.approx(2 * half, rel=0.15)
    none = accuracies(np.zeros(5, bool), {"a": np.zeros((5, 5), bool)}, ["a"])
    assert none["drop"] == {"value": None, "low": None, "high": None}


def test_sensitivity_is_the_ratio_of_distances():
    rng = np.random.default_rng(1)
    z, v = rng.normal(size=(40, 5)) + 1, rng.normal(size=(40, 5)) + 1
    cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    other = np.mean([cos(z[i], z[j]) for i in range(40) for j in range(40) if i != j])
    got = sensitivity(z, v)
    assert got["other"]["value"] == pytest.approx(other, abs=1e-6)
    want = (1 - np.mean([cos(a, b) for a, b in zip(z, v)])) / (1 - other)
    assert got["sensitivity"]["value"] == pytest.approx(want, abs=1e-5)
    assert sensitivity(z, z)["sensitivity"]["value"] == pytest.approx(0, abs=1e-6)
    assert sensitivity(np.ones((5, 3)), np.ones((5, 3)))["sensitivity"]["value"] is None  # collapsed


def test_each_part_alone():
    for plan in POLICIES.values():
        held = alone(plan)
        for name, policy in held.items():
            assert policy.side(100) == 100
            if name != "whole policy":
                assert list(alone((policy,))) == [name, "whole policy"]
    assert list(alone(POLICIES["none"])) == ["whole policy"]
    byol = alone(plan_of("byol", {}))
    assert (byol["solarise"].solarise, byol["solarise"].blur, byol["solarise"].bicubic) == (1, 0, True)
    assert (byol["hue"].colour, byol["hue"].hue, byol["hue"].brightness) == (1, 0.1, 0)
    small = alone((ImagePolicy(blur=0.0), ImagePolicy(size=0.5, crop_min=0.05, crop_max=0.1, blur=0.2)))
    assert (small["crop"].crop_min, small["blur"].blur) == (0.2, 1)


def test_a_run_is_judged_on_corrupted_images(small_run, tmp_path, capsys, monkeypatch):
    """The judges are those of the main table: on images as they are they say the same."""
    from nearfar import robustness

    monkeypatch.setattr(robustness, "_VALUES", 64 * 7)  # chunks of seven: 100 images leave a part over
    assert cli.main(["evaluate", str(small_run.folder), "--robust", "--draws", "2", "--labels", "1"]) == 0
    said = capsys.readouterr().out
    assert "mean (without *)" in said
    assert "whole policy" in said
    results = json.loads((small_run.folder / "results.json").read_text())
    held, rows = results["robustness"], {r["embedding"]: r["cells"] for r in results["evaluation"]["rows"]}
    assert (held["protocol"]["items"], held["protocol"]["of"]) == (100, 100)
    assert set(held["corruptions"]) == {"nearfar", "untrained encoder", "raw pixels"}
    for name, judged in held["corruptions"].items():
        for judge, found in judged.items():
            assert found["clean"]["value"] == pytest.approx(rows[name][judge]["value"], abs=0.011)  # one image
            assert set(found["corruptions"]) == set(co.names(1))
    splits = small_run.open(small_run.recipe.source)
    train, test = splits.train, splits.test
    seen = co.corrupt(test.read(np.arange(100)) / 255.0, "fog", 5).reshape(100, -1)
    judge = knn(train.read(np.arange(300)).reshape(300, -1) / 255, train.labels, seen, test.labels, list("0123456789"))
    got = held["corruptions"]["raw pixels"]["kNN"]["corruptions"]["fog"]["severity"][4]["value"]
    assert got == pytest.approx(judge.result.value, abs=0.011)
    parts = held["sensitivity"]
    assert set(parts) == {"crop", "rotation", "shear", "brightness", "contrast", "whole policy"}
    assert parts["crop"]["nearfar"]["sensitivity"]["value"] > parts["contrast"]["nearfar"]["sensitivity"]["value"]
    page = (small_run.folder / "report.html").read_text()
    assert page.count("JPEG compression") == 3  # a picture, its words for who cannot see it, a row of the heat map
    assert "Sensitivity of the features" in page


def test_without_labels_there_are_cosines_and_where_images_are_too_small_a_line(tmp_path, digits, capsys):
    np.save(tmp_path / "x.npy", digits[0][:60])
    np.save(tmp_path / "small.npy", digits[0][:60, :6])
    run = nearfar.train(tmp_path / "x.npy", out=tmp_path / "a", steps=2, batch=16, width=4, show=False)
    assert "nearfar evaluate RUN --robust" in (run.folder / "report.html").read_text()
    said = []
    assert run.evaluate(robust=True, say=said.append) is None
    assert any("cosines alone" in s for s in said)
    held = json.loads((run.folder / "results.json").read_text())["robustness"]
    assert held["corruptions"] is None
    assert set(held["sensitivity"]["crop"]["nearfar"]) == {"cosine", "other", "sensitivity"}
    assert "No labels were there to judge corrupted" in (run.folder / "report.html").read_text()
    small = nearfar.train(tmp_path / "small.npy", out=tmp_path / "b", steps=2, batch=16, width=4, show=False)
    before = (small.folder / "results.json").read_bytes()
    assert cli.main(["evaluate", str(small.folder), "--robust"]) == 2
    assert "robustness: images of 6×8 are too small" in capsys.readouterr().err
    assert (small.folder / "results.json").read_bytes() == before
    np.savez(tmp_path / "e.npz", x_train=np.eye(4), y_train=np.arange(4) % 2, x_test=np.eye(4), y_test=np.arange(4) % 2)
    assert cli.main(["evaluate", str(tmp_path / "e.npz"), "--robust"]) == 2
    assert "--robust takes a run's folder" in capsys.readouterr().err
