"""What is above a stated limit is refused at once and takes no memory; bad images are listed, odd ones read right."""

import gzip
import io
import json
import os
import resource
import struct
import time
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from nearfar import cli
from nearfar import recipe as recipes
from nearfar.data import limits, open_image, open_source
from nearfar.data.annotations import open_scenes
from nearfar.data.voc import tree

RNG = np.random.default_rng(0)
HUGE = 50_000
MB = 2**20


@contextmanager
def refused(says, seconds=1.0, megabytes=200):
    """A ``UserError`` of one line, soon, without the memory."""
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=says) as error:
        yield
    assert time.process_time() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < megabytes * 1024
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


# Pictures that say that they are huge --------------------------------------------------------------------------------


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(side):
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, side), (279, 4, 100)]  # fmt: skip
    rows = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + rows + bytes(104)


def jpeg(side):
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    raw = bytearray(out.getvalue())
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(raw)


def webp(side):
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    raw = bytearray(out.getvalue())
    at = raw.index(b"VP8X") + 12
    raw[at : at + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(raw)


BOMBS = {
    "png": b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0))
    + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b""),
    "gif": b"GIF89a" + struct.pack("<HH", HUGE, HUGE) + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0"
    + struct.pack("<HH", HUGE, HUGE) + b"\0\x02\x02D\x01\0;",
    "tif": tiff(HUGE), "jpg": jpeg(HUGE), "webp": webp(HUGE), "ppm": b"P6 50000 50000 255 " + bytes(100),
    "bmp": b"BM" + struct.pack("<IHHIIiiHH", 154, 0, 0, 54, 40, HUGE, HUGE, 1, 24) + bytes(124),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_picture_of_absurd_size_is_refused_by_the_stated_limit(kind, tmp_path, monkeypatch):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(BOMBS[kind])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # whatever the program around does to Pillow's own limit
    with refused(f"{limits.PIXELS:,} pixels" if kind != "webp" else "cannot be read"):
        open_image(path, (8, 8, 3))
    monkeypatch.undo()
    with refused(f"{limits.PIXELS:,} pixels" if kind != "webp" else "cannot be read"):
        open_image(path, (8, 8, 3))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    source = open_source(tmp_path, max_bad=0.5).train
    assert [s.name for s in source.skipped] == [path.name]


def test_no_program_is_started_for_a_picture(tmp_path):
    """PostScript under an image's name would be handed to Ghostscript."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with refused("not an image"):
        open_image(tmp_path / "a.jpg", (8, 8, 3))


def test_a_pipe_under_an_image_s_name_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert open_source(tmp_path, max_bad=0.5).train.skipped[0].reason == "not a file"


# Archives and texts that unpack to more than they say, or say more than can be -------------------------------------


def zeros(gigabytes):
    """(deflated zeros, their number): one flushed megabyte over and over."""
    packer = zlib.compressobj(9, wbits=-15)
    first = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (gigabytes * 1024 - 1) + packer.flush(), gigabytes * 2**30


def write_zip(path, name, head, body, size):
    """One member of deflated ``head`` and ``body``, which says of itself that it unpacks to ``size``."""
    packer = zlib.compressobj(9, wbits=-15)
    data = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH) + body
    with zipfile.ZipFile(path, "w") as file:
        about = zipfile.ZipInfo(name)
        about.compress_type, about.compress_size, about.file_size = zipfile.ZIP_DEFLATED, len(data), size
        about.header_offset = about.CRC = 0
        file.fp.write(about.FileHeader(zip64=True) + data)
        file.filelist.append(about)
        file.NameToInfo[name] = about
        file.start_dir, file._didModify = file.fp.tell(), True


def head_of(shape):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    body, n = zeros(10)
    head = head_of((n // 2**20, 1024, 1024))
    write_zip(tmp_path / "a.npz", "x.npy", head, body, len(head) + n)
    assert (tmp_path / "a.npz").stat().st_size < 20 * MB
    with refused(r"unpacks to 10,\d+,\d+,\d+ bytes, more than 4,294,967,296 and than 100 times"):
        open_source(tmp_path / "a.npz")
    write_zip(tmp_path / "b.npz", "x.npy", head, body, 1000)  # and says that it is small
    with refused("cannot be read as .npz"):
        open_source(tmp_path / "b.npz")


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    body, n = zeros(5)
    whole = (n // 2**20, 1024, 1024)
    for shape, says in (((1, 8, 8), "more bytes of data"), (whole, "unpacks to 5,368,709,120 bytes")):
        head = bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape)
        packer = zlib.compressobj(9, wbits=-15)
        path = tmp_path / "a-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(b"")[:10] + packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH) + body)
        with refused(says):
            open_source(path)


def annotated(folder):
    for name in ("images", "annotations"):
        (folder / name).mkdir()
    held = json.dumps({"images": [], "annotations": [], "categories": []})
    for part in ("train", "val"):
        (folder / "annotations" / f"instances_{part}.json").write_text(held)
    return folder / "annotations" / "instances_train.json"


def test_annotations_that_are_huge_or_deep(tmp_path):
    path = annotated(tmp_path)
    path.write_text('{"images": ' + "[" * 10**6 + "]" * 10**6 + "}")
    with refused("is no JSON"):
        open_scenes(tmp_path)
    with open(path, "wb") as file:
        file.truncate(limits.JSON + 1)  # which takes no disk
    with refused(f"more than {limits.JSON:,} bytes: split it"):
        open_scenes(tmp_path)


def test_xml_with_entities_is_not_read(tmp_path):
    laughs = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij")) + "]><a>&j;</a>"  # fmt: skip
    outside = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><a>&a;</a>'
    for text in (laughs, outside):
        for encoding in ("utf-8", "utf-16"):
            with refused("DOCTYPE"):
                tree(text.encode(encoding))
    assert tree(b"<a><b> x </b></a>").findtext("b") == " x "
    assert tree(b"<a>" * 10**5 + b"</a>" * 10**5).tag == "a"


@pytest.mark.parametrize("text", ["batch = " + "[" * 10**5, "a" + ".a" * 10**5 + " = 1", "[a" + ".a" * 10**5 + "]",
                                  "seed = " + "9" * 10**5, "#" * (limits.TOML + 1)])  # fmt: skip
def test_a_recipe_that_is_huge_or_deep(text, tmp_path):
    (tmp_path / "recipe.toml").write_text(text)
    with refused("recipe.toml"):
        recipes.read(tmp_path)


# Bad images, and odd ones --------------------------------------------------------------------------------------------


def photo(seed, size=(12, 12)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def photos(folder, n=120):
    """``n`` files: 5 % that cannot be read, four odd ones that can, and the rest. -> why each bad one cannot"""
    for i in range(n - 10):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        photo(i).save(folder / "ab"[i % 2] / f"{i:03}.png")
    bad = {"a/empty.png": "not an image", "b/empty.jpg": "not an image", "a/text.jpg": "not an image",
           "b/<b>text.png": "not an image", "a/cut.png": "truncated", "b/cut.jpg": "truncated"}  # fmt: skip
    for name in bad:
        kind, out = name.rpartition(".")[2], io.BytesIO()
        photo(7).save(out, {"jpg": "JPEG"}.get(kind, "PNG"), **({"quality": 95} if kind == "jpg" else {}))
        cut = out.getvalue()[: -len(out.getvalue()) // 4]
        (folder / name).write_bytes(b"" if "empty" in name else b"some text\n" if "text" in name else cut)
    Image.new("CMYK", (12, 12), (0, 255, 255, 0)).save(folder / "a" / "cmyk.jpg", quality=100)
    Image.fromarray(np.full((12, 12), 60_000, np.uint16)).save(folder / "a" / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    half = np.zeros((12, 12, 3), np.uint8)
    half[:, :6] = 255  # white on the left
    Image.fromarray(half).save(folder / "b" / "turned.jpg", exif=exif, quality=100)
    frames = [Image.new("RGB", (12, 12), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(folder / "b" / "animated.gif", save_all=True, append_images=frames[1:])
    return bad


def test_odd_images_are_taken_right(tmp_path):
    photos(tmp_path / "p")
    source = open_source(tmp_path / "p").train
    assert source.shape == (12, 12, 3)
    seen = {name: source.read([i])[0].astype(int) for i, name in enumerate(source.names)}
    np.testing.assert_allclose(seen["a/cmyk.jpg"], np.broadcast_to([255, 0, 0], (12, 12, 3)), atol=3)
    assert (seen["a/sixteen.png"] == 233).all()  # 60000 / 257
    assert seen["b/turned.jpg"][:5].min() > 240  # what was on the left is above
    assert seen["b/turned.jpg"][7:].max() < 15
    assert (seen["b/animated.gif"] == [255, 0, 0]).all()  # the first frame
    np.testing.assert_array_equal(seen["a/004.png"], np.asarray(photo(4)))


def test_a_run_lists_each_bad_image_and_stops_above_the_share(tmp_path, capsys):
    bad = photos(tmp_path / "p")
    words = ["train", str(tmp_path / "p"), "--steps", "2", "--batch", "16", "--width", "4", "--out"]
    assert cli.main([*words, str(tmp_path / "run")]) == 0
    assert "skipped 6 unreadable images, the first a/cut.png: " in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} == set(bad)
    assert all(bad[row["name"]] in row["reason"] and row["part"] == "train" for row in rows)
    page = (tmp_path / "run" / "report.html").read_text()
    for name, why in bad.items():
        assert name.replace("<", "&lt;").replace(">", "&gt;") in page
        assert why in page
    (tmp_path / "p" / "a" / "seventh.png").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([*words, str(tmp_path / "again")]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert "7 of 121 images cannot be read (5.79% > 5%)" in said.err
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before
