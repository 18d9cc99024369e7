import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import nearfar
from nearfar import cli
from nearfar.training import keeper


def nf(*words, **env) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "nearfar", *map(str, words)], capture_output=True, text=True,
                          env=os.environ | env, timeout=300)  # fmt: skip


def test_a_run_is_whole(small_run):
    held = {p.name for p in small_run.folder.iterdir()}
    assert {"recipe.toml", "metrics.jsonl", "checkpoints", "results.json", "report.html", "environment.json"} <= held
    rows = [json.loads(line) for line in (small_run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 30
    if importlib.util.find_spec("tensorboard"):
        assert list((small_run.folder / "tensorboard").glob("events*"))
    assert rows[-1]["loss"] < rows[0]["loss"]
    results = json.loads((small_run.folder / "results.json").read_text())["evaluation"]
    assert [r["embedding"] for r in results["rows"]] == ["nearfar", "projection", "untrained encoder", "raw pixels"]
    assert results["notes"] == [
        "no test image is among the images the encoder was trained on",
        "0 of 100 test images (0.0%) are near-duplicates of training images"]  # fmt: skip


def test_embed_and_load(small_run, digits):
    x = digits[0][:50]
    a, b = small_run.embed(x), nearfar.load(small_run.folder).embed(x[..., None])
    np.testing.assert_array_equal(a, b)
    assert a.shape == (50, 64)  # 8 x 8 pixels: 8 x width
    assert small_run.embed(x, project=True).shape == (50, 128)
    np.testing.assert_allclose(small_run.embed(x / 255.0), a, atol=1e-4)  # floats in [0, 1] are the same images
    with pytest.raises(ValueError, match=r"gives images of 8×8×3, the run was trained on 8×8×1"):
        small_run.embed(np.zeros((2, 9, 8, 3), np.uint8))


def weights(run):
    return keeper.newest(run.folder / "checkpoints", print).tensors(keeper.METHOD)


def test_same_recipe_same_weights(tmp_path, digits):
    x = digits[0][:200]
    np.save(tmp_path / "x.npy", x)
    first = nearfar.train(tmp_path / "x.npy", out=tmp_path / "a", minutes=0.03, batch=64, width=4, evaluate=False)
    again = nearfar.train(recipe=tmp_path / "a" / "recipe.toml", out=tmp_path / "b", evaluate=False)
    a = weights(first)
    b = weights(again)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)  # bit for bit, though the first was timed by the clock
    assert first.recipe == again.recipe
    other = nearfar.train(recipe=first.recipe.changed(seed=1), out=tmp_path / "c", evaluate=False)
    c = weights(other)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_grey_rgb_and_many_channels_train(tmp_path, channels):
    x = np.random.default_rng(0).integers(0, 256, (40, 12, 10, channels), dtype=np.uint8)
    run = nearfar.train((x, np.arange(40) % 2), out=tmp_path / "r", steps=3, batch=16, width=4)
    assert run.embed(x).shape == (40, 32)
    assert (run.folder / "report.html").is_file()


def test_a_folder_of_images_from_the_command_line(tmp_path, digits, capsys):
    from PIL import Image

    for i, (x, y) in enumerate(zip(*digits)):
        if i < 120 and y < 3:
            (tmp_path / "p" / str(y)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(tmp_path / "p" / str(y) / f"{i}.png")
    (tmp_path / "p" / "0" / "torn.png").write_bytes(b"\x89PNG torn")
    run = str(tmp_path / "run")
    assert cli.main(["train", str(tmp_path / "p"), "--steps", "3", "--batch", "8", "--width", "4", "--out", run,
                     "--max-bad", "0.2", "--views.flip", "0"]) == 0  # fmt: skip
    said = capsys.readouterr()
    assert "skipped 1 unreadable images, the first 0/torn.png: not an image" in said.err
    assert "raw pixels" in said.out
    assert nearfar.load(run).recipe.views["flip"] == 0
    for end in ("npz", "parquet"):
        out = tmp_path / f"e.{end}"
        assert cli.main(["embed", run, str(tmp_path / "p"), "-o", str(out)]) in ((0,) if end == "npz" else (0, 2))
    held = np.load(tmp_path / "e.npz")
    assert held["features"].shape == (len(held["names"]), 32)
    assert cli.main(["embed", run, str(tmp_path / "p"), "-o", str(tmp_path / "e.npz")]) == 2
    assert "--force" in capsys.readouterr().err
    picture = str(tmp_path / "strip.png")
    assert cli.main(["neighbours", run, str(tmp_path / "p"), "3", "--k", "4", "-o", picture]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    one = str(next((tmp_path / "p" / "1").glob("*.png")))
    assert cli.main(["neighbours", run, str(tmp_path / "p"), one, "--k", "1"]) == 0
    assert capsys.readouterr().out.startswith("1.000  1/")  # an image's nearest is itself
    assert cli.main(["evaluate", run, "--draws", "2"]) == 0
    assert "macro: precision" in capsys.readouterr().out
    assert cli.main(["report", run]) == 0


def test_no_labels_and_one_class_still_report(tmp_path, digits, capsys):
    x = digits[0][:60]
    said = []
    nearfar.train(x, out=tmp_path / "a", steps=2, batch=16, width=4, say=said.append)
    assert "no labels" in said[0]
    nearfar.train((x, ["cat"] * 60), out=tmp_path / "b", steps=2, batch=16, width=4, say=said.append)
    assert any("one class only" in s for s in said)
    assert "No labels were there" in (tmp_path / "a" / "report.html").read_text()


def test_an_output_in_use_is_kept(tmp_path, digits):
    x = digits[0][:40]
    keep = tmp_path / "mine"
    keep.mkdir()
    (keep / "thesis.txt").write_text("words")
    for force in (False, True):
        with pytest.raises(ValueError, match="is in use|other things"):
            nearfar.train(x, out=keep, steps=1, batch=16, force=force)
    assert (keep / "thesis.txt").read_text() == "words"
    nearfar.train(x, out=tmp_path / "r", steps=1, batch=16, width=4, evaluate=False)
    with pytest.raises(ValueError, match="is in use: pass another --out, --resume .* or --force"):
        nearfar.train(x, out=tmp_path / "r", steps=1, batch=16)
    nearfar.train(x, out=tmp_path / "r", steps=2, batch=16, width=4, evaluate=False, force=True)


@pytest.mark.parametrize(("words", "says"), [
    (["trian", "digits"], "unknown verb 'trian'; did you mean 'train'"),
    (["train", "nowhere/"], "nowhere/: no such file or folder"),
    (["train", "digits", "--method", "simclrr"], "unknown method 'simclrr'; did you mean 'simclr'"),
    (["train", "digits", "--encoder", "cn"], "unknown encoder 'cn'; did you mean 'cnn'"),
    (["train", "digits", "--batch", "5000"], "batch 5000 is larger than the 1200 training images"),
    (["train", "digits", "--epochs", "1", "--steps", "1"], "more than one budget"),
    (["embed", "nowhere", "digits", "-o", "x.npz"], "nowhere is no run: there is no such folder"),
    (["report", "nowhere"], "nowhere: no such run"),
    (["train", "digits", "--policy", "simcrl"], "unknown policy 'simcrl'; did you mean 'simclr'"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # nothing is left half-made


def test_an_unknown_flag_names_the_nearest():
    said = nf("train", "digits", "--temprature", "1")
    assert said.returncode == 2
    assert "--temperature" in said.stdout + said.stderr
    assert "Traceback" not in said.stderr


def test_help_is_quick_and_without_torch():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        said = nf("--help")
        times.append(time.perf_counter() - start)
    assert said.returncode == 0
    assert "train" in said.stdout
    code = "import sys, nearfar.cli as c; c.main(['--help']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    print(f"nearfar --help: {min(times):.2f} s")


SABOTAGE = """
    import sys
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torchvision", "timm"):
                {how}
    sys.meta_path.insert(0, Finder())
    from nearfar.cli import main
"""


@pytest.mark.parametrize(("how", "says"), [
    ("raise ModuleNotFoundError(f'No module named {name!r}', name=name)", "which is not installed: pip install"),
    ("raise RuntimeError('operator torchvision::nms does not exist')", "does not import beside this torch"),
])  # fmt: skip
def test_without_torchvision_the_core_works(tmp_path, how, says):
    start = textwrap.dedent(SABOTAGE).format(how=how)

    def main(*words: str) -> subprocess.CompletedProcess:
        code = f"{start}\nsys.exit(main({list(words)}))"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    said = main("train", "digits", "--steps", "2", "--width", "4", "--out", str(tmp_path / "r"))
    assert said.returncode == 0, said.stderr
    for words in (["torchvision:CIFAR10"], ["digits", "--encoder", "torchvision:resnet18"],
                  ["digits", "--encoder", "timm:resnet18"]):  # fmt: skip
        said = main("train", *words, "--out", str(tmp_path / "q"))
        assert said.returncode == 2
        assert says in said.stderr
        assert len(said.stderr.strip().splitlines()) == 1
    said = main("doctor")
    assert said.returncode == 0
    assert "missing" in said.stdout or "broken" in said.stdout


@pytest.mark.parametrize(("name", "size"), [
    ("torchvision:resnet18", 32), ("torchvision:mobilenet_v3_small", 64), ("torchvision:vit_b_16", 32),
    ("timm:resnet18", 32), ("timm:vit_tiny_patch16_224", 64), ("resnet10", 32), ("resnet18", 72),
])  # fmt: skip
def test_backbones_by_name(name, size):
    pytest.importorskip(name.split(":")[0] if ":" in name else "torch")
    from nearfar.encoders import image_encoder

    encoder = image_encoder(name, (size, size, 2), torch.zeros(2), torch.ones(2))
    assert encoder.eval()(torch.rand(2, 2, size, size)).shape == (2, encoder.features)
    if name.endswith("resnet18") and ":" in name:
        first = next(m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d))
        assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))  # the small-image stem


class Page(HTMLParser):
    """Collects what a page would load, and checks that what is opened is closed."""

    void = frozenset(["meta", "img", "br", "link", "input", "hr"])

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_startendtag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_alone(small_run):
    page = Page()
    page.feed((small_run.folder / "report.html").read_text())
    assert page.open == []
    assert page.loads
    assert all(v.startswith(("data:", "#")) for v in page.loads)


def test_hostile_names_are_only_text(tmp_path, digits):
    evil = "<script>alert(1)</script>"
    x, y = digits
    keep = y < 2
    nearfar.train((x[keep], np.array([evil, "</script>&"])[y[keep]]), out=tmp_path / "r", steps=2, batch=32, width=4)
    text = (tmp_path / "r" / "report.html").read_text()
    assert evil not in text
    assert "alert(1)" in text


def test_a_page_of_a_bare_run(small_run, tmp_path):
    (tmp_path / "r").mkdir()
    shutil.copy(small_run.folder / "recipe.toml", tmp_path / "r")
    (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    from nearfar import report

    assert "nearfar evaluate RUN" in report.write(tmp_path / "r").read_text()


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium to open the page in")
def test_the_page_opens_in_a_browser(small_run, tmp_path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}",
             "--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom"]  # fmt: skip
    said = subprocess.run(["chromium", *flags, f"file://{small_run.folder / 'report.html'}"], capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert 'data-points="100"' in said.stdout  # the map's script ran to its end
    assert "Uncaught" not in said.stderr


def test_doctor_says_what_is_there(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in out
    assert "torchvision" in out


def test_docs_commands_exist():
    root = Path(nearfar.__file__).parent.parent
    text = (root / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text
