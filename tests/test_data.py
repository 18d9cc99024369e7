import gzip
import importlib.util
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nearfar.data import Loader, hold_out, open_source

RNG = np.random.default_rng(0)


def picture(path, size=(20, 16), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] if mode == "L" else (*size[::-1], len(mode))
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8), mode=None).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    for kind in ("cat", "dog"):
        for i in range(10):
            picture(tmp_path / "photos" / kind / f"{i}.png")
    return tmp_path / "photos"


def test_folder_with_classes(folder):
    s = open_source(folder).train
    assert s.shape == (16, 20, 3)
    assert s.classes == ("cat", "dog")
    assert s.labels.tolist() == [0] * 10 + [1] * 10
    assert s.names[0] == "cat/0.png"
    np.testing.assert_array_equal(s.read([3])[0], np.asarray(Image.open(folder / "cat/3.png")))
    assert s.subset([3]).fingerprint() == open_source(folder).train.subset([3]).fingerprint()


def test_mixed_sizes_and_modes(tmp_path):
    picture(tmp_path / "a.png", (30, 20), "RGBA")
    picture(tmp_path / "b.png", (64, 80), "L")
    picture(tmp_path / "c.jpg", (50, 50))
    Image.new("P", (40, 40)).save(tmp_path / "d.gif")
    Image.fromarray(np.full((40, 40), 60000, np.uint16)).save(tmp_path / "e.png")
    Image.new("CMYK", (40, 40)).save(tmp_path / "f.jpg")
    s = open_source(tmp_path).train
    assert s.shape == (40, 40, 3)
    assert s.labels is None
    assert s.read(range(6)).shape == (6, 40, 40, 3)
    assert s.read([4]).min() == 233  # 60000 / 257
    assert open_source(tmp_path, image_size=24, channels=1).train.shape == (24, 24, 1)


def test_upright_by_exif(tmp_path):
    x = np.zeros((10, 20, 3), np.uint8)
    x[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(x).save(tmp_path / "a.png", exif=exif)
    s = open_source(tmp_path).train
    assert s.shape == (20, 10, 3)
    assert s.read([0])[0, :10].min() == 255


def test_transparent_pixels_lie_over_white(tmp_path):
    x = np.zeros((6, 6, 4), np.uint8)
    x[:3, :, 3] = 255  # black above, clear below
    Image.fromarray(x).save(tmp_path / "a.png")
    pixels = open_source(tmp_path).train.read([0])[0]
    assert pixels[:3].max() == 0
    assert pixels[3:].min() == 255


def test_bad_images_are_named_counted_skipped(folder):
    (folder / "cat/0.png").write_bytes((folder / "cat/0.png").read_bytes()[:200])
    s = open_source(folder, max_bad=0.1).train
    assert len(s) == 19
    assert s.skipped[0].name == "cat/0.png"
    (folder / "dog/1.png").write_bytes(b"")
    (folder / "dog/2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3 of 20 images cannot be read \(15% > 10%\), the first"):
        open_source(folder, max_bad=0.1)


def test_on_demand_is_the_same_as_cached(folder):
    a, b = open_source(folder).train, open_source(folder, cache_gb=0).train
    np.testing.assert_array_equal(a.read([0, 7, 3]), b.read([0, 7, 3]))


def test_train_and_test_folders(tmp_path):
    for part, kinds in (("train", "abc"), ("test", "ac")):
        for kind in kinds:
            picture(tmp_path / part / kind / "1.png")
    splits = open_source(tmp_path)
    assert (len(splits.train), splits.test.labels.tolist()) == (3, [0, 2])
    picture(tmp_path / "test" / "zebra" / "1.png")
    with pytest.raises(ValueError, match="class 'zebra' is not among"):
        open_source(tmp_path)


@pytest.mark.parametrize(("spec", "says"), [
    ("nowhere", "nowhere: no such file or folder"),
    ("digts", "did you mean 'digits'"),
    pytest.param("torchvision:CIFAR11", "did you mean 'CIFAR10'", marks=pytest.mark.skipif(
        importlib.util.find_spec("torchvision") is None, reason="no torchvision to ask")),
])  # fmt: skip
def test_unknown_sources(spec, says):
    with pytest.raises(ValueError, match=says) as error:
        open_source(spec)
    assert "\n" not in str(error.value)


def test_empty_and_imageless_folders(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no images"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="no source of images"):
        open_source(tmp_path / "a.txt")


def test_idx_of_the_mnist_family(data):
    s = open_source(data / "fashion-mnist")
    assert (len(s.train), len(s.test)) == (60_000, 10_000)
    assert s.train.shape == (28, 28, 1)
    assert s.train.labels[:4].tolist() == [9, 0, 0, 3]


def write_idx(path, x, zipped):
    raw = bytes([0, 0, 8, x.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in x.shape) + x.tobytes()
    path.write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_and_its_damage(tmp_path, zipped):
    end = ".gz" if zipped else ""
    x = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    write_idx(path, x, zipped)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{end}", np.arange(6, dtype=np.uint8) % 2, zipped)
    s = open_source(path).train
    np.testing.assert_array_equal(s.read(range(6))[..., 0], x)
    assert s.labels.tolist() == [0, 1] * 3
    write_idx(tmp_path / f"train-labels-idx1-ubyte{end}", np.zeros(5, np.uint8), zipped)
    with pytest.raises(ValueError, match="5 labels for 6 images"):
        open_source(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged|cannot be read"):
        open_source(path)


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path):
    path = tmp_path / "a-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(100))
    with pytest.raises(ValueError, match="is damaged: 100 bytes of data where"):
        open_source(path)


def test_arrays_and_npz(tmp_path):
    x = RNG.integers(0, 256, (9, 6, 7), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.array(list("abcabcabc")))
    s = open_source(tmp_path / "a.npz").train
    assert (s.shape, s.classes) == ((6, 7, 1), ("a", "b", "c"))
    np.save(tmp_path / "a.npy", x)
    np.testing.assert_array_equal(open_source(tmp_path / "a.npy").train.read([2])[0, ..., 0], x[2])
    many = open_source(RNG.random((4, 8, 8, 12))).train
    assert (many.shape, many.low, many.high) == ((8, 8, 12), 0.0, 1.0)
    assert open_source(x, image_size=12).train.shape == (12, 12, 1)


def test_a_test_part_has_the_training_part_s_class_numbers(tmp_path):
    x = np.zeros((3, 4, 4), np.uint8)
    held = {"x_train": x, "y_train": ["a", "b", "c"], "x_test": x[:2], "y_test": ["a", "c"]}
    np.savez(tmp_path / "a.npz", **held)
    assert open_source(tmp_path / "a.npz").test.labels.tolist() == [0, 2]
    np.savez(tmp_path / "a.npz", **held | {"y_test": ["a", "z"]})
    with pytest.raises(ValueError, match="test class 'z' is not among the training classes"):
        open_source(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **held | {"x_test": x[:2, :3]})
    with pytest.raises(ValueError, match="test images are 3×4×1, training images 4×4×1"):
        open_source(tmp_path / "a.npz")


def broken(index):
    x = RNG.random((20, 4, 4))
    x[index, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(("x", "says"), [
    (broken(17), "1 values in 1 images are NaN or infinite, the first in image 17"),
    ((RNG.random((5, 4, 4)), [0, 1]), "2 labels for 5 images"),
    ((RNG.random((2, 4, 4)), [0, -1]), "label 1 is -1"),
    ((RNG.random((2, 4, 4)), [0, 0.5]), "label 1 is 0.5"),
    (RNG.random((5, 3, 32, 32)), "looks channels-first"),
    (RNG.random((5,)), r"shape \(5,\)"),
    (np.zeros((0, 4, 4)), "holds no images"),
    (np.array(["a"]), "holds no images: give uint8"),
])  # fmt: skip
def test_bad_arrays(x, says):
    with pytest.raises(ValueError, match=says) as error:
        open_source(x)
    assert "\n" not in str(error.value)


def test_no_pickle_is_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read as .npy"):
        open_source(tmp_path / "a.npy")


def test_hugging_face_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    held = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 1, 0]}, features=features)
    held.save_to_disk(str(tmp_path / "set"))
    s = open_source(f"hf:{tmp_path / 'set'}").train
    assert (s.shape, s.labels.tolist(), s.classes) == ((8, 8, 3), [0, 1, 1, 0], ("no", "yes"))
    held = datasets.Dataset.from_dict({"image": pictures, "label": [-1] * 4}, features=features)  # kept back
    held.save_to_disk(str(tmp_path / "blind"))
    assert open_source(f"hf:{tmp_path / 'blind'}").train.labels is None


def test_a_large_hugging_face_table_stays_in_its_file(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path / "cache"))
    pictures = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(30)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    held = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 1] * 10}, features=features)
    datasets.DatasetDict({"train": held, "test": held.select(range(6))}).save_to_disk(str(tmp_path / "set"))
    small = open_source(f"hf:{tmp_path / 'set'}")
    time.sleep(0.15)
    monkeypatch.setattr("nearfar.data.named._HELD", 0)
    monkeypatch.setattr("nearfar.data.named._stack", None)
    counted = []
    for gb, decoded in ((None, 30), (None, 30), (0, 66), (0, 66)):  # once each way; the test part holds copies
        large = open_source(f"hf:{tmp_path / 'set'}", cache_gb=gb, say=print, progress=lambda *at: counted.append(at))
        assert sum(done for done, _ in counted) == decoded
        for a, b in ((small.train, large.train), (small.test, large.test)):
            np.testing.assert_array_equal(a.read(range(len(a))), b.read(range(len(b))))
            np.testing.assert_array_equal(a.item_hashes, b.item_hashes)
            assert (a.labels.tolist(), a.classes, list(a.names)) == (b.labels.tolist(), b.classes, list(b.names))
    missing = datasets.Dataset.from_dict({"image": [*pictures, None], "label": [0] * 31}, features=features)
    missing.save_to_disk(str(tmp_path / "hole"))
    source = open_source(f"hf:{tmp_path / 'hole'}").train
    assert (len(source), [(s.name, s.reason) for s in source.skipped]) == (30, [("30", "it is missing")])


def test_torchvision_set():
    pytest.importorskip("torchvision")
    s = open_source("torchvision:FakeData")
    assert (s.train.shape, len(s.test)) == ((32, 32, 3), 100)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 99), st.sampled_from([1, 2, 4]))
def test_loader_sees_each_image_once_an_epoch(n, batch, seed, world):
    batch = max(world, min(batch, n) // world * world)
    if batch > n:
        return
    source = open_source(np.arange(n, dtype=np.uint8)[:, None, None]).train
    loader = Loader(source, batch, seed)
    epoch = np.concatenate([b.index for b in loader.iterate(0, loader.steps_per_epoch)])
    assert len(set(epoch)) == len(epoch) == n // batch * batch
    parts = [Loader(source, batch, seed, r, world).batch(5).index for r in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), loader.batch(5).index)


def test_loader_passes_errors_on_and_refuses_a_batch_too_large():
    source = open_source(np.zeros((8, 2, 2), np.uint8)).train
    with pytest.raises(ValueError, match="batch 9 is larger than the 8 training images"):
        Loader(source, 9, 0)
    torn = source.subset(range(8))
    object.__setattr__(torn, "reader", lambda i: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(Loader(torn, 4, 0).iterate())


def test_hold_out_is_stratified_and_disjoint(digits):
    s = open_source(digits).train
    train, test = hold_out(s, 0.25, 0)
    assert not set(train) & set(test)
    assert len(train) + len(test) == len(s)
    share = np.bincount(s.labels[test]) / np.bincount(s.labels)
    assert share == pytest.approx(0.25, abs=0.01)
    assert np.array_equal(test, hold_out(s, 0.25, 0)[1])
    assert not np.array_equal(test, hold_out(s, 0.25, 1)[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0, 0.95), st.integers(0, 9))
def test_hold_out_takes_its_share_and_leaves_one_of_each_class(sizes, share, seed):
    y = np.repeat(np.arange(len(sizes)), sizes)
    s = open_source((np.zeros((len(y), 2, 2), np.uint8), y)).train
    train, test = hold_out(s, share, seed)
    assert sorted([*train, *test]) == list(range(len(y)))
    assert set(y[train]) == set(y)
    assert len(test) <= round(share * len(y))
    assert abs(np.bincount(y[test], minlength=len(sizes)) - share * np.array(sizes)).max() <= 1
