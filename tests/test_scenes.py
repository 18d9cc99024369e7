"""Annotated pictures: VOC, COCO and masks, and what real annotations get wrong."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nearfar.cli import main
from nearfar.data import open_source
from nearfar.data.annotations import open_scenes
from nearfar.data.patches import cut, offsets
from nearfar.data.scenes import Counted, clean, part_of, picture
from nearfar.errors import UserError

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>" \
         "<ymax>{}</ymax></bndbox></object>"  # fmt: skip


def voc(folder, pictures, size=(40, 30)):
    """``pictures``: {part: {name: [(class, difficult, x0, y0, x1, y1)]}}"""
    for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / sub).mkdir(parents=True)
    for part, held in pictures.items():
        (folder / "ImageSets/Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in held))
        for name, objects in held.items():
            Image.new("RGB", size, (len(name), 9, 9)).save(folder / "JPEGImages" / f"{name}.jpg")
            said = "".join(OBJECT.format(*o) for o in objects)
            (folder / "Annotations" / f"{name}.xml").write_text(
                f"<annotation><filename>{name}.jpg</filename>{said}</annotation>")
    return folder


GOOD = {"train": {"a": [("cat", 0, 1, 1, 10, 10)], "b": [("dog", 0, 5, 5, 20, 20), ("cat", 1, 1, 1, 5, 5)]},
        "test": {"c": [("dog", 0, 3, 4, 12, 14)]}}  # fmt: skip


def test_voc_boxes_are_counted_from_nought(tmp_path):
    scenes = open_scenes(voc(tmp_path / "v", GOOD))
    assert (scenes.task, scenes.classes, len(scenes.train), len(scenes.test)) == ("detection", ("cat", "dog"), 2, 1)
    assert scenes.test[0].boxes.tolist() == [[2, 3, 12, 14]]
    assert scenes.train[1].labels.tolist() == [1, 0]
    assert scenes.train[1].crowd.tolist() == [False, True]
    assert scenes.notes == ()
    assert picture(scenes.test[0], 3).shape == (30, 40, 3)
    assert picture(scenes.test[0], 1).shape == (30, 40, 1)


def test_what_annotations_get_wrong_is_counted_and_nothing_else_lost(tmp_path):
    bad = {"train": {"a": [("cat", 0, 1, 1, 10, 10), ("cat", 0, -20, 5, 10, 99), ("cat", 0, 50, 50, 60, 60),
                           ("cat", 0, 7, 7, 6, 20), ("cat", 0, 0, 0, 0, 0), ("cat", 0, "?", 1, 2, 3)],
                     "gone": [("cat", 0, 1, 1, 5, 5)], "b": [("cat", 0, 2, 2, 8, 8)], "broken": []},
           "test": {"c": [("dog", 0, 3, 4, 12, 14)], "empty": []}}  # fmt: skip
    folder = voc(tmp_path / "v", bad)
    (folder / "JPEGImages/gone.jpg").unlink()
    (folder / "JPEGImages/broken.jpg").write_bytes(b"no picture")
    scenes = open_scenes(folder, max_bad=0.5)
    said = "\n".join(scenes.notes)
    assert [s.name for s in scenes.train] == ["a", "b"]
    assert scenes.train[0].boxes.tolist() == [[0, 0, 10, 10], [0, 4, 10, 30]]
    assert "1 boxes cut that reach outside the picture, the first in a" in said
    assert "2 boxes left out that lie outside the picture" in said
    assert "1 empty boxes left out" in said
    assert "1 boxes left out that are no numbers" in said
    assert "1 pictures left out that are missing, the first in gone" in said
    assert "1 pictures left out that cannot be read (not an image), the first in broken" in said
    assert "class 'dog' is missing in the training part: its 1 test boxes cannot be learnt" in said
    with pytest.raises(UserError, match=r"2 of 6 pictures are missing or broken .*--max-bad 0\.34"):
        open_scenes(folder)


def test_a_picture_in_both_parts_is_refused(tmp_path):
    folder = voc(tmp_path / "v", GOOD)
    (folder / "ImageSets/Main/test.txt").write_text("a\nc\n")
    with pytest.raises(UserError, match=r"1 pictures are in train\.txt and in test\.txt, the first a"):
        open_scenes(folder)


def test_no_boxes_and_no_test_part_are_lines(tmp_path):
    folder = voc(tmp_path / "v", {"train": {"a": []}, "test": {"c": [("dog", 0, 3, 4, 12, 14)]}})
    with pytest.raises(UserError, match="no training picture has a box"):
        open_scenes(folder)
    (folder / "ImageSets/Main/test.txt").unlink()
    with pytest.raises(UserError, match=r"add test\.txt or val\.txt"):
        open_scenes(folder)
    with pytest.raises(UserError, match="holds no masks"):
        open_scenes(folder, task="segmentation")


def coco(folder, one=False):
    (folder / "annotations").mkdir(parents=True)
    kinds = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 9, "name": "unused"}]
    for part, names in (("train", ["a", "b"]), ("val", ["c"])):
        (folder / part).mkdir()
        for name in names:
            Image.new("RGB", (40, 30)).save(folder / part / f"{name}.png")
        images = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(names)]
        boxes = [{"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 10, 12], "iscrowd": 0},
                 {"id": 2, "image_id": 0, "category_id": 3, "bbox": [30, 20, 30, 30], "iscrowd": 1},
                 {"id": 3, "image_id": 99, "category_id": 3, "bbox": [0, 0, 5, 5]},
                 {"id": 4, "image_id": 0, "category_id": 55, "bbox": [0, 0, 5, 5]},
                 {"id": 5, "image_id": 0, "category_id": 3, "bbox": [0, 0, 0, 5]}]  # fmt: skip
        (folder / f"annotations/instances_{part}2017.json").write_text(
            json.dumps({"images": images, "annotations": boxes, "categories": kinds}))
    return folder


def test_coco(tmp_path):
    scenes = open_scenes(coco(tmp_path / "c"))
    assert scenes.classes == ("dog", "cat")
    a = scenes.train[0]
    assert a.boxes.tolist() == [[1, 2, 11, 14], [30, 20, 40, 30]]
    assert (a.labels.tolist(), a.crowd.tolist()) == ([1, 0], [False, True])
    said = "\n".join(scenes.notes)
    assert "2 boxes left out whose picture is not listed" in said
    assert "2 boxes left out whose category is not listed" in said
    assert "2 empty boxes left out" in said
    (tmp_path / "c/annotations/instances_train2017.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        open_scenes(tmp_path / "c")
    (tmp_path / "c/annotations/instances_train2017.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="has no list 'annotations'"):
        open_scenes(tmp_path / "c")


def masks(folder, n=40, kind=np.uint8, top=2):
    rng = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"images/{i}.png")
        Image.fromarray(rng.integers(0, top + 1, (20, 24)).astype(kind)).save(folder / f"masks/{i}.png")
    return folder


def test_masks_of_classes_of_objects_and_black_and_white(tmp_path):
    scenes = open_scenes(masks(tmp_path / "k"))
    assert (scenes.task, scenes.classes) == ("segmentation", ("background", "class 1", "class 2"))
    assert {s.name for s in scenes.train} == {str(i) for i in range(40) if part_of(str(i)) == "train"}
    assert {s.name for s in scenes.test} == {str(i) for i in range(40) if part_of(str(i)) == "test"}
    assert set(np.unique(scenes.mask(scenes.train[0]))) == {0, 1, 2}
    objects = open_scenes(masks(tmp_path / "o", kind=np.uint16, top=300))
    assert (objects.classes, objects.instances) == (("background", "foreground"), True)
    assert set(np.unique(objects.mask(objects.train[0]))) == {0, 1}
    (tmp_path / "k/classes.txt").write_text("sky\nground\n")
    with pytest.raises(UserError, match="names 2 classes, the masks hold 3"):
        open_scenes(tmp_path / "k")
    (tmp_path / "k/classes.txt").write_text("sky\nground\nroad\n")
    assert open_scenes(tmp_path / "k").classes == ("sky", "ground", "road")
    Image.new("L", (9, 9)).save(scenes.train[0].mask)
    with pytest.raises(UserError, match=r"is 9×9, its picture 24×20"):
        scenes.mask(scenes.train[0])
    scenes.test[0].mask.unlink()
    assert any("have no mask" in note for note in open_scenes(tmp_path / "k", max_bad=0.1).notes)


def test_real_annotations(data):
    boxes = open_scenes(data / "detection/bccd")
    assert (len(boxes.train), len(boxes.test), boxes.classes) == (205, 72, ("Platelets", "RBC", "WBC"))
    nuclei = open_scenes(data / "segmentation/dsb2018")
    assert len(nuclei.train) + len(nuclei.test) < 664  # the rest is the part to try things on
    assert nuclei.instances


def test_training_on_an_annotated_folder_sees_its_training_part_alone(tmp_path):
    rng = np.random.default_rng(0)
    folder = voc(tmp_path / "v", {"train": {f"t{i}": [("x", 0, 1, 1, 9, 9)] for i in range(12)},
                                  "test": {"c": [("x", 0, 3, 4, 12, 14)]}}, size=(64, 48))  # fmt: skip
    for path in (folder / "JPEGImages").iterdir():
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    whole = open_source(folder, say=lambda text: None).train
    assert (len(whole), whole.labels) == (12, None)
    parts = open_source(folder, patch=16, long_side=32, say=lambda text: None).train
    assert (len(parts), parts.shape, parts.labels) == (12 * 2 * 2, (16, 16, 3), None)
    assert not any(name.startswith("c.jpg") for name in parts.names)
    assert main(["train", str(folder), "--patch", "16", "--long-side", "32", "--steps", "2", "--batch", "8",
                 "--out", str(tmp_path / "run")]) == 0  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(8, 64))
def test_patches_cover_a_side(length, patch):
    length = max(length, patch)
    at = offsets(length, patch)
    assert at[0] == 0
    assert at[-1] == length - patch
    assert all(b - a <= patch for a, b in pairwise(at))


def test_patches_are_the_pictures_own_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    for x, y, square in cut(pixels, 32):
        assert np.array_equal(square, pixels[y : y + 32, x : x + 32])
    small = list(cut(pixels[:20], 32))  # mirrored where it is too low
    assert all(s.shape == (32, 32, 3) for _, _, s in small)
    assert np.array_equal(small[0][2][20:], pixels[8:20, :32][::-1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-50, 90, width=32)] * 4), max_size=8))
def test_clean_boxes_lie_inside_and_nothing_is_unaccounted_for(boxes):
    counted = Counted("x")
    kept, mask = clean(np.array(boxes, np.float32).reshape(-1, 4), (40, 30), "p", counted)
    assert len(kept) == mask.sum()
    assert (kept >= 0).all()
    assert (kept[:, 2:] - kept[:, :2] >= 1).all()
    assert (kept[:, [0, 2]] <= 40).all()
    assert (kept[:, [1, 3]] <= 30).all()
    left_out = sum(n for kind, n in counted.kinds.items() if "left out" in kind)
    assert left_out == (~mask).sum()
