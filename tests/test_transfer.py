"""Transfer: judges against pycocotools and torchmetrics, models against torchvision's, the command on small data."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torchvision
from sklearn.metrics import f1_score
from test_scenes import masks, voc
from torchmetrics.segmentation import MeanIoU

import nearfar
from nearfar import downstream
from nearfar.cli import main
from nearfar.data.annotations import open_scenes
from nearfar.encoders.dense import Pyramid, dilate, levels
from nearfar.encoders.image import image_encoder
from nearfar.errors import UserError
from nearfar.evaluate import detection as boxes_judge
from nearfar.evaluate.detection import Found, detection
from nearfar.evaluate.segmentation import confusion, segmentation
from nearfar.transfer import classification as classes_task
from nearfar.transfer import detection as boxes_task
from nearfar.transfer import segmentation as masks_task
from nearfar.transfer import tables
from nearfar.transfer.fitting import _orders, fit
from nearfar.transfer.pictures import Pictures, augmented, draw
from nearfar.transfer.settings import Settings


def encoder(name="resnet10", width=8, channels=3):
    torch.manual_seed(0)
    return image_encoder(name, (96, 96, channels), torch.full((channels,), 0.5), torch.full((channels,), 0.3),
                         width=width if ":" not in name else 0)  # fmt: skip


def some_boxes(seed, pictures=30, kinds=3):
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(pictures):
        n = int(rng.integers(0, 9))
        corner, side = rng.uniform(0, 200, (n, 2)), rng.uniform(8, 90, (n, 2))
        boxes, labels = np.concatenate([corner, corner + side], 1), rng.integers(0, kinds, n)
        truth.append(Found(boxes, (rng.random(n) > 0.1).astype(float), labels))  # a tenth are crowds
        seen = rng.random(n) < 0.7
        more = int(rng.integers(0, 12))
        corner = rng.uniform(0, 200, (more, 2))
        every = np.concatenate([boxes[seen] + rng.normal(0, 4, (seen.sum(), 4)),
                                np.concatenate([corner, corner + 40], 1)])  # fmt: skip
        said = np.concatenate([labels[seen], rng.integers(0, kinds, more)])
        found.append(Found(every, rng.random(len(every)).round(2), said))
    return found, truth


def by_pycocotools(found, truth, kinds):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        held = COCO()
        held.dataset = {"images": [{"id": i + 1} for i in range(len(truth))],
                        "categories": [{"id": k + 1, "name": str(k)} for k in range(kinds)],
                        "annotations": boxes_judge._annotations(truth, True)}  # fmt: skip
        held.createIndex()
        said = [{k: a[k] for k in ("image_id", "category_id", "bbox", "score")}
                for a in boxes_judge._annotations(found, False)]  # fmt: skip
        judge = COCOeval(held, held.loadRes(said), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_pycocotools(seed):
    found, truth = some_boxes(seed)
    ours, theirs = detection(found, truth, ["a", "b", "c"], times=20), by_pycocotools(found, truth, 3)
    for name, value in zip(("mAP", "AP50", "AP75"), theirs.stats[:3]):
        assert ours.results[name].value == pytest.approx(value, abs=1e-6)
    for k, row in enumerate(ours.per_class):
        assert row["AP"] == pytest.approx(theirs.eval["precision"][:, :, k, 0, 2].mean(), abs=1e-6)
        assert row["AP50"] == pytest.approx(theirs.eval["precision"][0, :, k, 0, 2].mean(), abs=1e-6)
        assert row["boxes"] == sum(int(((t.labels == k) & (t.scores > 0)).sum()) for t in truth)
    assert ours.results["AP50"].low <= ours.results["AP50"].high


def test_pictures_drawn_again_are_judged_as_pycocotools_judges_copies_of_them():
    found, truth = some_boxes(5, pictures=12)
    ours = detection(found, truth, ["a", "b", "c"], seed=3, times=2)
    rows = np.random.default_rng(3).integers(0, 12, 12)
    theirs = by_pycocotools([found[i] for i in rows], [truth[i] for i in rows], 3)
    assert ours.drawn["mAP"][0] == pytest.approx(theirs.stats[0], abs=1e-6)


def test_what_cannot_be_judged_is_a_line():
    found, truth = some_boxes(0, pictures=3)
    none = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    with pytest.raises(UserError, match="no test picture has a box"):
        detection([none], [none], ["a"])
    with pytest.raises(UserError, match="2 pictures were looked at and 3 have their truth"):
        detection(found[:2], truth, ["a", "b", "c"])
    with pytest.raises(UserError, match="picture 0: a box or score found is NaN"):
        detection([found[0]._replace(boxes=found[0].boxes * np.nan)], truth[:1], ["a", "b", "c"])
    assert detection([none] * 3, truth, ["a", "b", "c"], times=3).results["mAP"].value == 0


def test_segmentation_is_torchmetrics():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (9, 20, 30)).astype(np.uint8)
    said = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape)).astype(np.uint8)
    ours = segmentation([confusion(s, t, 4) for s, t in zip(said, truth)], list("abcd"))
    # torchmetrics takes the mean over pictures of each one's; ours sums pixels first: so all pictures as one
    theirs = MeanIoU(num_classes=4, input_format="index")(torch.tensor(said.reshape(1, -1, 30)).long(),
                                                          torch.tensor(truth.reshape(1, -1, 30)).long())  # fmt: skip
    assert ours.results["mIoU"].value == pytest.approx(float(theirs), abs=1e-6)
    assert ours.results["pixel accuracy"].value == pytest.approx((said == truth).mean(), abs=1e-9)
    for k, row in enumerate(ours.per_class):
        naive = ((said == k) & (truth == k)).sum() / ((said == k) | (truth == k)).sum()
        assert row["IoU"] == pytest.approx(naive, abs=1e-9)
    assert ours.results["mIoU"].low < ours.results["mIoU"].value < ours.results["mIoU"].high


def test_pixels_of_255_are_judged_by_nobody():
    truth = np.array([[0, 1, 255]], np.uint8)
    assert confusion(np.array([[0, 1, 0]]), truth, 2).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(UserError, match="holds class 5 of 2"):
        confusion(np.array([[0, 5, 0]]), truth, 2)
    with pytest.raises(UserError, match="give the same size"):
        confusion(np.zeros((2, 2), int), truth, 2)
    with pytest.raises(UserError, match="no pixel"):
        segmentation([np.zeros((2, 2))], ["a", "b"])


@pytest.mark.parametrize("name", ["resnet10", "resnet18", "torchvision:resnet18", "torchvision:resnet50",
                                  "cnn", "timm:resnet18", "timm:convnext_atto"])
def test_levels_are_what_the_maps_are(name):
    net = encoder(name)
    held = levels(net, 3)
    assert [v.stride for v in held] == sorted({v.stride for v in held})
    x = torch.rand(1, 3, 128, 192)
    for level in held:
        m = net.maps(x)[level.name]
        assert m.shape == (1, level.channels, 128 // level.stride, 192 // level.stride)
    grid = Pyramid(net, 3, width=16)
    maps = list(grid(x).values())
    assert [round(128 / m.shape[2]) for m in maps] == grid.strides
    assert all(m.shape[1] == 16 for m in maps)


def test_an_encoder_without_maps_is_a_line():
    with pytest.raises(UserError, match="gives no feature maps"):
        levels(encoder("torchvision:mobilenet_v3_small"), 3)


@torch.no_grad()
def test_dilated_is_torchvisions_dilated():
    ours = dilate(encoder("torchvision:resnet50"), 3, 8)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(ours.backbone.net.state_dict(), strict=False)
    ours.eval()
    x, net = torch.rand(2, 3, 64, 96), theirs
    y = (x - ours.mean) / ours.std
    y = net.maxpool(net.relu(net.bn1(net.conv1(y))))
    want = net.layer4(net.layer3(net.layer2(net.layer1(y))))
    got = ours.maps(x)["stage4"]
    assert got.shape == want.shape == (2, 2048, 8, 12)
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("stride", [8, 16, 32])
@torch.no_grad()
def test_dilation_keeps_the_middle_of_a_flat_picture(stride):
    net, other = encoder("resnet18").eval(), encoder("resnet18").eval()
    dilate(other, 3, stride)
    x = torch.full((1, 3, 512, 512), 0.7)
    a, b = net.maps(x)["stage4"], other.maps(x)["stage4"]
    assert b.shape[2] == 512 // stride
    # far from the edges all cells see the same, however far apart they look
    assert torch.allclose(a[..., a.shape[2] // 2, a.shape[3] // 2], b[..., b.shape[2] // 2, b.shape[3] // 2], atol=1e-4)


def squares(folder, n=24, seed=0):
    """Bright squares (one class) and dark ones (another) on grey noise: to be found by a detector in a minute."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    held = {"train": {}, "test": {}}
    pixels = {}
    for i in range(n):
        image = rng.integers(100, 150, (64, 96, 3), np.uint8)
        objects = []
        for kind in ("bright", "dark"):
            side = int(rng.integers(18, 30))
            x, y = int(rng.integers(0, 96 - side)), int(rng.integers(0, 64 - side))
            image[y : y + side, x : x + side] = 250 if kind == "bright" else 5
            objects.append((kind, 0, x + 1, y + 1, x + side, y + side))
        name = f"p{i:02d}"
        held["test" if i % 3 == 0 else "train"][name] = objects
        pixels[name] = image
    voc(folder, held, size=(96, 64))
    for name, image in pixels.items():
        Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
    return folder


@pytest.mark.parametrize("head", boxes_task.HEADS)
def test_a_detector_gives_boxes_at_the_files_size_and_its_loss_falls(tmp_path, head):
    scenes = open_scenes(squares(tmp_path / "s"))
    chosen = Settings(head=head, steps=12, batch=4, image_size=48, width=64, precision="32-true")
    part = Pictures(scenes, scenes.train, 3, 48)
    net = boxes_task.build(encoder(width=16), 3, 2, chosen)
    losses = fit(net, chosen, len(part), lambda rows: boxes_task.batch_of(part, rows, chosen, torch.device("cpu")),
                 boxes_task.loss_of, frozen=False, seed=0, show=False)  # fmt: skip
    assert losses[-1] < losses[0]
    test = Pictures(scenes, scenes.test, 3, 48)
    found = boxes_task.predict(net, test, range(len(test)))
    for f in found:
        assert len(f.boxes) == len(f.scores) == len(f.labels)
        assert set(f.labels.tolist()) <= {0, 1}
        if len(f.boxes):
            assert f.boxes.min() >= -1e-3
            assert (f.boxes[:, 2] <= 96.01).all()
            assert (f.boxes[:, 3] <= 64.01).all()
    assert set(boxes_task.judged(found, test, 0).results) == {"mAP", "AP50", "AP75"}


def test_a_detector_learns_to_find_squares(tmp_path):
    scenes = open_scenes(squares(tmp_path / "s", n=36))
    chosen = Settings(head="fcos", steps=120, batch=8, image_size=0, width=64, precision="32-true", encoder_rate=1.0)
    part, test = Pictures(scenes, scenes.train, 3, 0), Pictures(scenes, scenes.test, 3, 0)
    net = boxes_task.build(encoder(width=16), 3, 2, chosen)
    fit(net, chosen, len(part), lambda rows: boxes_task.batch_of(part, rows, chosen, torch.device("cpu")),
        boxes_task.loss_of, frozen=False, seed=0, show=False)  # fmt: skip
    judged = boxes_task.judged(boxes_task.predict(net, test, range(len(test))), test, 0)
    assert judged.results["AP50"].value > 0.6
    assert all(row["AP50"] > 0.4 for row in judged.per_class)


def test_what_is_frozen_stays_to_the_bit(tmp_path):
    scenes = open_scenes(squares(tmp_path / "s", n=6))
    chosen = Settings(steps=3, batch=2, image_size=48, width=64, precision="32-true")
    part = Pictures(scenes, scenes.train, 3, 48)
    net = boxes_task.build(encoder(), 3, 2, chosen)
    before = {k: v.clone() for k, v in net.encoder.state_dict().items()}
    heads = [p.detach().clone() for p in net.net.head.parameters()]
    for frozen in (True, False):
        fit(net, chosen, len(part), lambda rows: boxes_task.batch_of(part, rows, chosen, torch.device("cpu")),
            boxes_task.loss_of, frozen=frozen, seed=0, show=False)  # fmt: skip
        same = all(torch.equal(v, before[k]) for k, v in net.encoder.state_dict().items())
        assert same is frozen
    assert not all(torch.equal(a, b) for a, b in zip(heads, net.net.head.parameters()))


def test_augmented_boxes_stay_on_their_squares(tmp_path):
    scenes = open_scenes(squares(tmp_path / "s"))
    part = Pictures(scenes, scenes.train, 3, 0)
    torch.manual_seed(0)
    seen = total = 0
    for i in range(len(part)):
        image, target = augmented(*part[i], part.canvas())
        assert image.shape == (3, *part.canvas())
        for box, label in zip(target["boxes"].round().int().tolist(), target["labels"].tolist()):
            x0, y0, x1, y1 = box
            inside = image[:, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].float()
            if inside.numel() > 300 and len(target["labels"]) == 2:
                middle = float(inside.median())  # a part of the other square may lie in it
                seen += middle > 150 if label == 0 else middle < 100
                total += 1
    assert seen >= 0.9 * total
    assert total > 10


def test_augmented_masks_go_with_their_pictures(tmp_path):
    scenes = open_scenes(masks(tmp_path / "m", top=1))
    part = Pictures(scenes, scenes.train, 3, 0)
    image, mask = part[0]
    painted = torch.where(mask[None] == 1, 255, 0).expand(3, -1, -1).byte()
    torch.manual_seed(1)
    seen, cut = augmented(painted, mask, (32, 32))
    assert set(cut.unique().tolist()) <= {0, 1, 255}
    bright = seen.float().mean(0)
    assert bright[cut == 1].mean() > 2 * bright[cut == 0].mean()
    assert (bright[cut == 255] == 0).all()


@pytest.mark.parametrize("head", masks_task.HEADS)
def test_a_segmenter_gives_masks_at_the_files_size(tmp_path, head):
    scenes = open_scenes(masks(tmp_path / "m"))
    chosen = Settings(head=head, steps=3, batch=4, image_size=0, crop=32, precision="32-true")
    part = Pictures(scenes, scenes.train, 3, 0)
    net = masks_task.build(encoder(), 3, 3, chosen)
    fit(net, chosen, len(part), lambda rows: masks_task.batch_of(part, rows, chosen, torch.device("cpu")),
        masks_task.loss_of, frozen=False, seed=0, show=False)  # fmt: skip
    found = masks_task.predict(net, part, range(2))
    assert found[0].shape == (20, 24)
    assert found[0].max() <= 2


def test_every_picture_comes_equally_often():
    rows = np.concatenate(list(_orders(7, 4, 14, 3)))
    assert (np.bincount(rows) == 8).all()
    assert not np.array_equal(rows, np.concatenate(list(_orders(7, 4, 14, 4))))


def test_drawn_pictures_show_every_class_and_are_the_seeds_alone(data):
    scenes = open_scenes(data / "detection/bccd")
    for seed in range(5):
        part = draw(scenes, 3, seed)
        assert part == draw(scenes, 3, seed)
        assert {int(k) for s in part for k in s.labels} == {0, 1, 2}
    assert draw(scenes, 3, 0) != draw(scenes, 3, 1)
    assert len(draw(scenes, "10%", 0)) == 20
    assert len(draw(scenes, 0, 0)) == 205
    with pytest.raises(UserError, match="206 labelled pictures of 205"):
        draw(scenes, 206, 0)


def test_intervals_of_one_seed_and_of_several():
    rng = np.random.default_rng(0)
    items = rng.normal(0, 0.01, 200)
    one = tables.interval(items[None])
    assert one == pytest.approx(np.quantile(items, (0.025, 0.975)))
    far = tables.interval(np.stack([items - 0.2, items, items + 0.2]))
    assert far[0] < -0.1
    assert far[1] > 0.1  # seeds that differ widen it
    same = tables.interval(np.stack([items] * 3))
    assert same == pytest.approx(one, abs=4e-3)


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory):
    """A run on the training part of the squares, a few steps: enough to transfer from."""
    folder = tmp_path_factory.mktemp("dense")
    squares(folder / "squares")
    return nearfar.train(folder / "squares", patch=32, out=folder / "run", encoder="resnet10", width=8, steps=4,
                         batch=16, show=False), folder / "squares"  # fmt: skip


def test_the_command_writes_table_pictures_and_page(dense_run, capsys):
    run, source = dense_run
    asked = ["transfer", str(run.folder), str(source), "--labels", "6", "50%", "--steps", "3", "--seeds", "2",
             "--image-size", "64", "--width", "64", "--batch", "4"]  # fmt: skip
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "detection, 2 seeds, judged on 8 test pictures" in said
    assert "6 labels, frozen: pre-training adds" in said
    folder = run.folder / "transfer/detection-fcos"
    held = json.loads((folder / "results.json").read_text())
    modes, starts = ("frozen", "fine-tuned"), ("random", "pre-trained")
    assert [(r["labels"], r["start"], r["mode"]) for r in held["rows"]] == [
        (n, start, mode) for n in (6, "50%") for mode in modes for start in starts]
    assert {"settings", "test hash", "encoder weights", "intervals"} <= set(held["protocol"])
    page = (run.folder / "report.html").read_text()
    assert "Transferred to other tasks" in page
    assert page.count("<figcaption>truth</figcaption>") == 4
    before = (folder / "cells.jsonl").read_text()
    assert main(asked) == 0  # nothing is done twice
    assert (folder / "cells.jsonl").read_text() == before
    assert json.loads((folder / "results.json").read_text())["rows"] == held["rows"]


    model = nearfar.Transferred(folder)
    found = model.predict(sorted((source / "JPEGImages").iterdir())[:2])
    assert [type(f).__name__ for f in found] == ["Found", "Found"]
    assert model.classes == ("bright", "dark")
    with pytest.raises(UserError, match="cannot be read: not an image"):
        model.predict(source / "Annotations/p00.xml")
    with pytest.raises(UserError, match="is missing"):
        nearfar.Transferred(run.folder)


def test_killed_it_goes_on_and_ends_with_the_same_numbers(dense_run, tmp_path):
    run, source = dense_run
    asked = [sys.executable, "-m", "nearfar", "transfer", str(run.folder), str(source), "--labels", "6", "--steps",
             "4", "--seeds", "2", "--image-size", "64", "--width", "64", "--batch", "4", "--modes",
             "fine-tuned"]  # fmt: skip
    cells = tmp_path / "a/cells.jsonl"
    process = subprocess.Popen([*asked, "--out", str(tmp_path / "a")], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    for _ in range(600):
        if cells.is_file() and cells.read_text().count("\n") >= 1:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = cells.read_text().splitlines()[0]
    with open(cells, "a") as file:
        file.write('{"labels": 6, "se')  # cut in the middle of a line
    chosen = Settings(steps=4, image_size=64, width=64, batch=4)
    ask = {"labels": (6,), "seeds": 2, "modes": ("fine-tuned",), "settings": chosen, "show": False}
    after = downstream.transfer(run, source, out=tmp_path / "a", **ask)
    assert cells.read_text().splitlines()[0] == done
    whole = downstream.transfer(run, source, out=tmp_path / "b", **ask)
    seeds = [[r["cells"]["mAP"]["seeds"] for r in held["rows"]] for held in (after, whole)]
    assert seeds[0] == seeds[1]


def test_a_cut_test_picture_is_left_out_and_counted(dense_run, tmp_path, capsys):
    import shutil

    run, source = dense_run
    shutil.copytree(source, tmp_path / "s")
    path = tmp_path / "s/JPEGImages/p00.jpg"
    path.write_bytes(path.read_bytes()[:700])  # the header is whole
    asked = ["transfer", str(run.folder), str(tmp_path / "s"), "--labels", "6", "--steps", "1", "--seeds", "1",
             "--batch", "2", "--image-size", "64", "--width", "64", "--modes", "frozen", "--out",
             str(tmp_path / "o")]  # fmt: skip
    assert main(asked) == 2
    assert "1 of 8 test pictures are broken, the first" in capsys.readouterr().err
    assert main([*asked, "--max-bad", "0.2"]) == 0
    held = capsys.readouterr()
    assert "judged on 7 test pictures" in held.out
    assert "1 test pictures left out, the first" in held.err


def test_segmentation_by_the_command(dense_run, tmp_path, capsys):
    run, _ = dense_run
    source = masks(tmp_path / "m")
    assert main(["transfer", str(run.folder), str(source), "--labels", "4", "--steps", "2", "--seeds", "1", "--head",
                 "deeplabv3", "--crop", "32", "--image-size", "0", "--batch", "4", "--out", str(tmp_path / "o")]) == 0
    held = json.loads((tmp_path / "o/results.json").read_text())
    assert held["task"] == "segmentation"
    assert [c["name"] for c in held["rows"][0]["per_class"]] == ["background", "class 1", "class 2"]


def test_classification_frozen_is_the_few_label_probe(small_run, tmp_path):
    chosen = Settings(steps=5, batch=16, precision="32-true")
    held = downstream.transfer(small_run, small_run.recipe.source, labels=(2, 5), seeds=2, settings=chosen,
                               out=tmp_path, show=False)  # fmt: skip
    judged = small_run.evaluate(draws=2, labels_per_class=(2, 5))
    for n in (2, 5):
        cells = [r["cells"]["accuracy"]["seeds"] for r in held["rows"]
                 if (r["labels"], r["start"], r["mode"]) == (n, "pre-trained", "frozen")]  # fmt: skip
        want = judged["nearfar"][f"{n} labels linear"].detail["draws"]
        assert cells[0] == pytest.approx(want, abs=1e-6)


    model = nearfar.Transferred(tmp_path)
    x = np.load(small_run.recipe.source)["x_test"]
    splits = small_run.open(small_run.recipe.source)
    said = model.predict(x)
    share = (said == np.array(splits.test.classes)[splits.test.labels]).mean()
    cell = next(r["cells"]["accuracy"]["seeds"][0] for r in held["rows"]
                if (r["labels"], r["start"], r["mode"]) == (5, "pre-trained", "fine-tuned"))  # fmt: skip
    assert share == pytest.approx(cell, abs=1e-9)


def test_classified_is_scikit_learns(small_run):
    splits = small_run.open(small_run.recipe.source)
    part = classes_task.Labelled(splits.test, 0, 255)
    y = splits.test.labels
    said = np.where(np.random.default_rng(0).random(len(y)) < 0.7, y, 3)
    judged = classes_task.judged(said, part, 0)
    assert judged.results["accuracy"].value == pytest.approx((said == y).mean())
    assert judged.results["macro F1"].value == pytest.approx(f1_score(y, said, average="macro"))
    rows = np.repeat(np.arange(len(y)), np.random.default_rng(0).multinomial(len(y), np.full(len(y), 1 / len(y))))
    assert judged.drawn["accuracy"][0] == pytest.approx((said == y)[rows].mean())
    assert judged.drawn["macro F1"][0] == pytest.approx(f1_score(y[rows], said[rows], average="macro", labels=range(10),
                                                                 zero_division=0))  # fmt: skip


def test_wrong_wishes_are_lines(dense_run, small_run, tmp_path, capsys):
    run, source = dense_run
    for asked, line in [
        (["--head", "yolo"], "unknown head 'yolo' for detection"), (["--modes", "thawed"], "unknown mode 'thawed'"),
        (["--labels", "99"], "99 labelled pictures of 16"), (["--labels", "x"], "x"), (["--seeds", "0"], "seeds 0"),
        (["--task", "poetry"], "unknown task 'poetry'"), (["--task", "segmentation"], "holds no masks"),
        (["--steps", "0"], "steps 0: give 1 or more"), (["--image-size", "8"], "image_size 8"),
        (["--width", "80"], "width 80: give a multiple of 32"), (["--precision", "8"], "precision '8'"),
    ]:  # fmt: skip
        assert main(["transfer", str(run.folder), str(source), "--out", str(tmp_path / "o"), *asked]) == 2
        said = capsys.readouterr().err.strip()
        assert line in said
        assert len(said.splitlines()) == 1
    assert main(["transfer", str(small_run.folder), str(small_run.recipe.source), "--labels", "1000"]) == 2
    assert "1000 labels a class" in capsys.readouterr().err
    assert main(["transfer", str(run.folder), str(tmp_path / "none")]) == 2
