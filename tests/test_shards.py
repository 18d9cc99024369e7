"""Tar shards are read as Python's tarfile and webdataset read them, and nothing hostile in one is."""

import gc
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import nearfar
from nearfar.data import Loader, open_source
from nearfar.data.records import scan
from nearfar.data.tar import Broken, members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
SETTLED = 0.15  # seconds after which a file's stamp is trusted


def png(seed, size=(8, 8)):
    x = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(x).save(out, "PNG")
    return out.getvalue()


def info(name, size=0, **fields):
    member = tarfile.TarInfo(name)
    member.size = size
    for key, value in fields.items():
        setattr(member, key, value)
    return member


def write(path, files, kind=tarfile.PAX_FORMAT):
    """An archive of (name, content) or (TarInfo, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files:
            member = name if isinstance(name, tarfile.TarInfo) else info(name, len(content))
            tar.addfile(member, io.BytesIO(content))
    return path


def records(first, n, label=lambda i: str(i % 3)):
    for i in range(first, first + n):
        yield f"{i:05d}.png", png(i)
        if label(i) is not None:
            yield f"{i:05d}.cls", label(i).encode()


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path / "cache"))
    for s in range(4):
        write(tmp_path / "set" / f"s-{s:03d}.tar", records(20 * s, 20))
    time.sleep(SETTLED)
    return tmp_path / "set"


name = st.lists(st.text("ab.é _-", min_size=1, max_size=70), min_size=1, max_size=4).map("/".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(name, st.integers(0, 1500), st.sampled_from([None, None, None, tarfile.DIRTYPE])),
                max_size=8), st.sampled_from(sorted(FORMATS)))  # fmt: skip
def test_members_are_those_that_tarfile_finds(tmp_path_factory, found, kind):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for text, size, other in found:
            member = info(text.strip("/") or "a", 0 if other else size, **({"type": other} if other else {}))
            try:
                tar.addfile(member, io.BytesIO(b"x" * size))
            except ValueError:  # too long for ustar
                continue
    with tarfile.open(path) as tar:
        want = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    assert [m[:3] for m in members(path)] == want


def test_large_sizes_and_long_names_in_every_way_they_are_written(tmp_path):
    for kind in FORMATS.values():
        files = [(f"{'d' * 90}/{'e' * 60}/a.png", b"1" * 700)]
        if kind != tarfile.USTAR_FORMAT:
            files += [("ü" * 150 + "/" + "l" * 300 + ".png", b"2" * 512), ("b.png", b"")]
        path = write(tmp_path / f"{kind}.tar", files, kind)
        assert [(m.name, m.size, m.refused) for m in members(path)] == [(n, len(c), "") for n, c in files]
    raw = bytearray(write(tmp_path / "g.tar", [("a.png", b"3" * 600)], tarfile.GNU_FORMAT).read_bytes())
    raw[124:136] = b"\x80" + (600).to_bytes(11, "big")  # base 256
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / "g.tar").write_bytes(raw)
    assert [m[:3] for m in members(tmp_path / "g.tar")] == [("a.png", 512, 600)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_wrong_with_an_archive_is_said_or_harmless(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("tar") / "a.tar", [("a.png", b"x" * 600), ("n" * 200 + ".png", b"y" * 30)])
    raw = bytearray(path.read_bytes()[:5120])
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    path.write_bytes(raw)
    try:
        for member in members(path):
            assert 0 <= member.at <= member.at + member.size <= len(raw)
    except Broken as error:
        said = str(error)
        assert said.isprintable()


def test_a_set_of_shards_is_a_source(shards):
    source = open_source(shards).train
    assert (len(source), source.shape, source.classes) == (80, (8, 8, 3), ("0", "1", "2"))
    assert source.labels.tolist() == [i % 3 for i in range(80)]
    assert source.names[21] == "s-001.tar/00021.png"
    assert source.blocks.tolist() == [0, 20, 40, 60, 80]
    want = np.stack([np.asarray(Image.open(io.BytesIO(png(i)))) for i in range(80)])
    for opened in (source, open_source(shards).train, open_source(shards, cache_gb=0, say=print).train,
                   open_source(f"{shards}/s-{{000..003}}.tar").train):  # fmt: skip
        np.testing.assert_array_equal(opened.read(range(80)), want)
        np.testing.assert_array_equal(opened.item_hashes, source.item_hashes)
        assert (opened.fingerprint(), opened.names) == (source.fingerprint(), source.names)
    assert len(open_source(shards / "s-002.tar").train) == 20


def test_a_second_opening_reads_no_header_and_a_changed_shard_is_seen(shards, monkeypatch):
    first = open_source(shards).train
    monkeypatch.setattr("nearfar.data.records.scan", None)
    counted = []
    again = open_source(shards, progress=lambda *at: counted.append(at)).train
    assert (again.names, again.labels.tolist(), counted) == (first.names, first.labels.tolist(), [])
    monkeypatch.undo()
    monkeypatch.setenv("NEARFAR_CACHE", str(shards.parent / "cache"))
    write(shards / "s-001.tar", records(20, 19))
    write(shards / "s-009.tar", records(500, 2, lambda i: "zebra"))
    (shards / "s-003.tar").unlink()
    time.sleep(SETTLED)
    looked = []
    monkeypatch.setattr("nearfar.data.records.scan", lambda path: looked.append(path.name) or scan(path))
    changed = open_source(shards, progress=lambda *at: counted.append(at)).train
    assert (sorted(looked), counted[-1]) == (["s-001.tar", "s-009.tar"], (2, 2))  # only what is new is looked at
    monkeypatch.setenv("NEARFAR_CACHE", "off")
    anew = open_source(shards).train
    assert len(changed) == 61
    assert (changed.names, changed.labels.tolist(), changed.classes) == (anew.names, anew.labels.tolist(), anew.classes)
    np.testing.assert_array_equal(changed.read(range(61)), anew.read(range(61)))
    monkeypatch.setenv("NEARFAR_CACHE", str(shards.parent / "cache"))
    assert changed.fingerprint() != first.fingerprint()
    for path in (shards.parent / "cache").glob("*.shards"):
        path.write_bytes(path.read_bytes()[:-300])
    said = []
    assert len(open_source(shards, say=said.append).train) == 61
    assert len(said) == 1
    assert "looking through the shards anew" in said[0]


def test_labels_of_json_and_names_and_of_some_records_only(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", "off")
    texts = ["10", "9", "10", "9"]
    path = write(tmp_path / "n.tar", records(0, 4, texts.__getitem__))
    assert open_source(path).train.classes == ("9", "10")  # numbers by their worth
    held = [({"label": "cat"}, 0), ({"cls": "dog", "caption": "a dog"}, 1), ({"label": "cat"}, 0)]
    files = [f for i, (about, _) in enumerate(held)
             for f in ((f"d/{i}.json", json.dumps(about).encode()), (f"d/{i}.png", png(i)), (f"d/{i}.txt", b"a"))]
    source = open_source(write(tmp_path / "j.tar", files)).train
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1, 0])
    said = []
    some = open_source(write(tmp_path / "s.tar", records(0, 4, ["1", None, "1", "2"].__getitem__)), say=said.append)
    assert some.train.labels is None
    assert "1 of 4 records have no label" in said[0]


def test_train_and_test_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", "off")
    for base in ("a/train/{}.tar", "b/birds-train-{}.tar"):
        for i in range(2):
            write(tmp_path / base.format(i), records(10 * i, 10))
    write(tmp_path / "a/val/0.tar", records(30, 3, lambda i: "2"))
    write(tmp_path / "b/birds-test-0.tar", records(30, 3, lambda i: "2"))
    for folder in "ab":
        splits = open_source(tmp_path / folder)
        assert (len(splits.train), len(splits.test), splits.test.labels.tolist()) == (20, 3, [2, 2, 2])


@pytest.mark.parametrize(("member", "why"), [
    (info("00.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "it is a symbolic link"),
    (info("00.png", type=tarfile.LNKTYPE, linkname="00001.png"), "it is a hard link"),
    (info("00.png", type=tarfile.CHRTYPE), "it is a device"),
    (info("00.png", type=tarfile.FIFOTYPE), "it is a pipe"),
    (info("/00.png"), "its name leads out of the archive"),
    (info("a/../../00.png"), "its name leads out of the archive"),
    (info("00.png", len(png(3)) // 2), "truncated|broken|cannot|not an image|Truncated"),
])  # fmt: skip
def test_hostile_members_are_named_and_left_out(tmp_path, monkeypatch, member, why):
    monkeypatch.setenv("NEARFAR_CACHE", "off")
    content = png(3)[: member.size]
    path = write(tmp_path / "a.tar", [*records(1, 30), (member, content), *records(31, 9)])
    source = open_source(path).train
    assert len(source) == 39
    assert len(source.skipped) == 1
    assert "00.png" in source.skipped[0].name
    with pytest.raises(ValueError, match=r"1 of 40 images cannot be read \(2.5% > 0%\), the first a.tar/.*00.png: "):
        open_source(path, max_bad=0)


def test_what_is_wrong_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", "off")
    folder = tmp_path / "set"
    good = write(folder / "a.tar", records(0, 5))
    raw = good.read_bytes()
    cases = {
        "is compressed: .*gunzip": (folder / "b.tar.gz", b"\x1f\x8b"),
        "it is compressed \\(gzip\\)": (folder / "b.tar", b"\x1f\x8b" + raw),
        "it is cut short: 00002.png at byte 4,096 would end": (folder / "b.tar", raw[:4700]),
        "the header at byte 0 has a wrong checksum": (folder / "b.tar", b"x" + raw[1:]),
    }
    for says, (path, content) in cases.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says) as error:
            open_source(folder)
        assert "\n" not in str(error.value)
        path.unlink()
    (folder / "b.tar").write_bytes(raw[:4700])
    said = []
    source = open_source(folder, max_bad=0.5, say=said.append).train
    assert (len(source), len(said), len(source.skipped)) == (5, 1, 1)
    for spec, says in ((f"{folder}/a-{{0..3}}.tar", "a-0.tar: no such shard, and 3 more"),
                       (f"{folder}/{{0..9999999}}.tar", "at most 1,000,000 shards"),
                       (write(tmp_path / "c.tar", [("a.txt", b"")]), "holds no images")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            open_source(spec)


def test_an_archive_beside_pictures_is_no_shard(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", "off")
    (tmp_path / "p" / "cat").mkdir(parents=True)
    (tmp_path / "p" / "cat" / "1.png").write_bytes(png(0))
    write(tmp_path / "p" / "images.tar", records(0, 4))
    assert open_source(tmp_path / "p").train.names == ["cat/1.png"]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same(shards):
    webdataset = pytest.importorskip("webdataset")
    paths = sorted(map(str, shards.glob("*.tar")))
    theirs = [(r["__key__"], r["png"], r["cls"]) for r in webdataset.WebDataset(paths, shardshuffle=False)]
    gc.collect()  # its files are left open
    source = open_source(shards).train
    assert [key for key, _, _ in theirs] == [os.path.splitext(n.split("/")[1])[0] for n in source.names]
    assert [cls.decode() for _, _, cls in theirs] == [source.classes[y] for y in source.labels]
    want = np.stack([np.asarray(Image.open(io.BytesIO(content))) for _, content, _ in theirs])
    np.testing.assert_array_equal(source.read(range(80)), want)


def test_a_run_is_trained_on_shards_goes_on_at_any_step_and_embeds(shards, tmp_path, monkeypatch):
    run = nearfar.train(shards, out=tmp_path / "run", steps=2, batch=8, width=4, evaluate=False)
    assert run.embed(shards).shape[0] == 80
    monkeypatch.setenv("NEARFAR_CACHE_GB", "0")
    source = open_source(shards, say=print).train
    whole = [batch.index.tolist() for batch in Loader(source, 8, 3).iterate(0, 25)]
    assert [b.index.tolist() for b in Loader(source, 8, 3).iterate(13, 25)] == whole[13:]
    ranks = [Loader(source, 8, 3, rank, 2) for rank in range(2)]
    assert [np.concatenate([r.indices(step) for r in ranks]).tolist() for step in range(25)] == whole


def test_memory_and_seconds_do_not_grow_with_the_number_of_images(tmp_path):
    """The short form of benchmarks/scale.py."""
    script = Path(__file__).parents[1] / "benchmarks" / "scale.py"
    words = ["--images", "2000", "--batches", "20", "--work", str(tmp_path)]
    out = subprocess.run([sys.executable, "-W", "error", script, *words],
                         capture_output=True, text=True, check=True).stdout  # fmt: skip
    rows = [re.split(r" *\| *", line.strip("| ")) for line in out.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["2,000", of, what] for of, what in (
            *(("folder", f"{nth} opening") for nth in ("first", "second")),
            *(("shards", f"{nth} opening") for nth in ("first", "second")),
            *(("shards", f"streamed, {nth}") for nth in ("first", "second")))]  # fmt: skip
    assert all(float(row[7]) < float(row[6]) + 40 for row in rows)  # MB at the peak and when imported
    assert not list(tmp_path.iterdir())
