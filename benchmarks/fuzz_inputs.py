"""What benchmarks/fuzz.py tries of pictures, arrays and annotations: what is written, and what is done with it."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mutations import Rng, bent, json_bytes, npy, pick, png_bytes, zipped
from PIL import Image

from nearfar import compare
from nearfar.data import annotations, open_image, open_source

REAL = Path(os.environ.get("NEARFAR_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


@dataclass(frozen=True)
class Input:
    """What is done with what was written, and the command that is to refuse it wherever that does."""

    read: Callable[[], object]
    words: tuple[str, ...] = ()


Make = Callable[[Path, Rng], Input]


def real(pattern: str, rng: Rng, most: int = 200_000) -> bytes | None:
    """A small real file, a quarter of the times and where the data are."""
    if rng.random() > 0.25:
        return None
    found = [p for p in itertools.islice(sorted(REAL.glob(pattern)), 40) if p.stat().st_size <= most]
    return pick(found, rng).read_bytes() if found else None


# Pictures ---------------------------------------------------------------------------------------------------------


def picture(rng: Rng, kind: str) -> bytes:
    out, side = io.BytesIO(), int(rng.integers(1, 40))
    modes = {"jpeg": ["L", "RGB", "CMYK"], "png": ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"], "gif": ["P", "L"],
             "bmp": ["L", "RGB", "1"], "webp": ["RGB", "RGBA"], "tiff": ["L", "RGB", "F", "I;16", "CMYK"],
             "ppm": ["L", "RGB"]}  # fmt: skip
    chosen = pick(modes[kind], rng)
    values = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(values) if chosen not in ("I;16", "F") else Image.fromarray(
        values[..., 0].astype(np.uint16 if chosen == "I;16" else np.float32))  # fmt: skip
    image = image if chosen in ("I;16", "F") else image.convert(chosen)
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 10))
    several = {"save_all": True, "append_images": [image.copy()]}
    more = {"tiff": {"compression": pick([None, "tiff_lzw", "packbits", "tiff_adobe_deflate"], rng)}, "gif": several,
            "jpeg": {"progressive": bool(rng.integers(2)), "exif": exif}, "png": {"exif": exif},
            "webp": several if rng.random() < 0.3 else {}}.get(kind, {})  # fmt: skip
    image.save(out, kind, **more)
    return out.getvalue()


def read_picture(kind: str) -> Make:
    suffix = {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)
    where = {"jpeg": "detection/bccd/JPEGImages/*.jpg", "png": "pairs/emoji/img/*.png"}.get(kind, "no/*")

    def make(folder: Path, rng: Rng) -> Input:
        raw = real(where, rng) or picture(rng, kind)
        path = folder / f"a.{suffix}"
        by_chunk = kind == "png" and rng.random() < 0.7
        path.write_bytes(png_bytes(raw, rng) if by_chunk else bent(raw, rng, picture(rng, kind), 8))
        (folder / "b.png").write_bytes(picture(rng, "png"))

        def read() -> None:
            source = open_source(folder, image_size=8, max_bad=1.0, say=lambda text: None).train
            source.read(np.arange(len(source)))
            assert len(source) + len(source.skipped) == 2
            open_image(path, (8, 8, 3))

        return Input(read, ("views", str(folder), "-o", str(folder / "out.png")))

    return make


# Arrays -----------------------------------------------------------------------------------------------------------


def arrays_of(rng: Rng) -> np.ndarray:
    kind = pick([np.uint8, np.float32, np.uint16, np.float64, np.int32, np.bool_], rng)
    shape = (int(rng.integers(1, 9)), 8, 8, *([3] if rng.random() < 0.5 else []))
    return rng.integers(0, 255, shape).astype(kind)


def _source(path: Path) -> Input:
    def read() -> None:
        splits = open_source(path, say=lambda text: None)
        splits.train.read(np.arange(min(8, len(splits.train))))

    return Input(read, ("views", str(path), "-o", str(path.parent / "out.png")))


def idx(folder: Path, rng: Rng) -> Input:
    n = int(rng.integers(1, 6))
    images = struct.pack(">4I", 0x803, n, 8, 8) + rng.integers(0, 256, n * 64, dtype=np.uint8).tobytes()
    labels = struct.pack(">2I", 0x801, n) + rng.integers(0, 3, n, dtype=np.uint8).tobytes()
    packed = rng.random() < 0.5
    for name, raw, share in (("train-images-idx3-ubyte", images, 0.6), ("train-labels-idx1-ubyte", labels, 0.2)):
        raw = bent(raw, rng, images) if rng.random() < share else raw
        raw = gzip.compress(raw, 1) if packed else raw
        raw = bent(raw, rng, images) if packed and rng.random() < 0.2 else raw
        (folder / (name + ".gz" * packed)).write_bytes(raw)
    held = real("fashion-mnist/t10k-labels*.gz", rng)
    if held and rng.random() < 0.3:
        (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(bent(held, rng, images))
        return _source(folder / "t10k-labels-idx1-ubyte.gz")
    return _source(next(folder.glob("*images*")))


def npy_file(folder: Path, rng: Rng) -> Input:
    raw = npy(arrays_of(rng))
    (folder / "x.npy").write_bytes(bent(raw, rng, raw, 10))
    return _source(folder / "x.npy")


def npz_file(folder: Path, rng: Rng) -> Input:
    x = arrays_of(rng)
    names = np.array(pick([["a", "b", "c"], ["<b>", "é", ""]], rng))
    members = {"x.npy": npy(x), "y.npy": npy(rng.integers(0, 3, len(x))), "classes.npy": npy(names)}
    held = real("series/*.npz", rng, 60_000)
    (folder / "x.npz").write_bytes(bent(held, rng, held) if held else zipped(members, rng))
    return _source(folder / "x.npz")


def embeddings(folder: Path, rng: Rng) -> Input:
    z, y = rng.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3
    held = {"x_train.npy": npy(z), "y_train.npy": npy(y), "x_test.npy": npy(z), "y_test.npy": npy(y)}
    if rng.random() < 0.5:
        split = np.array(["train", "test"] * 6)
        held = {"features.npy": npy(z), "labels.npy": npy(y // 2), "split.npy": npy(split)}
    path = folder / "e.npz"
    path.write_bytes(zipped(held, rng))

    def read() -> None:
        compare._parts(path)
        if rng.random() < 0.05:  # judged to the end, which takes longer
            compare.judge_file(path, draws=1)

    return Input(read, ("evaluate", str(path), "--draws", "1"))


def shard(folder: Path, rng: Rng) -> Input:
    """A tar of pictures with labels, of any format; what is within it is seldom changed, its headers are."""
    out = io.BytesIO()
    kind = pick([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], rng)
    with tarfile.open(fileobj=out, mode="w", format=kind) as file:
        for i in range(int(rng.integers(1, 5))):
            image, label = picture(rng, "png"), str(i % 2).encode()
            members = {".png": png_bytes(image, rng) if rng.random() < 0.1 else image, ".cls": label}
            for end, raw in members.items():
                odd = pick(["a", "b/" * 60, "é", "../x", "/x"], rng) if rng.random() < 0.2 else ""
                head = tarfile.TarInfo(f"{odd}{i}{end}")
                head.size = len(raw)
                head.type = pick([*[tarfile.REGTYPE] * 20, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE], rng)
                file.addfile(head, io.BytesIO(raw))
    raw, at = bytearray(out.getvalue()), 512 * int(rng.integers(4))
    if rng.random() < 0.5:  # a header that is changed, and its checksum right
        raw[at : at + 512] = bent(bytes(raw[at : at + 512]), rng).ljust(512, b"\0")[:512]
        raw[at + 148 : at + 156] = b" " * 8
        raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    (folder / "s").mkdir()
    (folder / "s" / "a.tar").write_bytes(bytes(raw) if rng.random() < 0.7 else bent(bytes(raw), rng, bytes(raw)))
    return _source(folder / "s")


# Annotations ------------------------------------------------------------------------------------------------------

_VOC = """<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25</ymax>
</bndbox></object><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object></annotation>"""
_LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "' + "&a;" * 20 + '"><!ENTITY c "' + "&b;" * 20 + '">]>'
_FETCH = '<!DOCTYPE a [<!ENTITY c SYSTEM "file:///etc/passwd">]>'


def listed(folder: Path, rng: Rng) -> None:
    """train.txt and test.txt with four names, seldom mutated."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, stems in (("train", b"a\nb\n"), ("test", b"c\nd\n")):
        (folder / f"{name}.txt").write_bytes(bent(stems, rng) if rng.random() < 0.1 else stems)


def _scenes(folder: Path) -> Input:
    return Input(lambda: annotations.open_scenes(folder, 1.0), ("views", str(folder), "-o", str(folder / "out.png")))


def voc(folder: Path, rng: Rng) -> Input:
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    listed(folder / "ImageSets" / "Main", rng)
    values = ["nan", "-1e9", "", "9" * 30, "cat&lt;b>", "&c;", "inf", "0x3", "<name/>", "1 2",
              "<a>" * 900 + "</a>" * 900]  # fmt: skip
    for stem in "abcd":
        Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / f"{stem}.jpg")
        text = (real("detection/bccd/Annotations/*.xml", rng) or _VOC.encode()).decode()
        if rng.random() < 0.5:
            text = text.replace(pick([">3<", ">20<", ">cat<", ">40<", ">1<", ">25<"], rng), f">{pick(values, rng)}<")
        text = pick([_LAUGHS, _FETCH], rng) + text if rng.random() < 0.1 else text
        raw = text.encode("utf-16") if rng.random() < 0.05 else text.encode()
        raw = bent(raw, rng, raw) if rng.random() < 0.5 else raw
        (folder / "Annotations" / f"{stem}.xml").write_bytes(raw)
    return _scenes(folder)


def coco(folder: Path, rng: Rng) -> Input:
    for name in ("images", "annotations"):
        (folder / name).mkdir()
    for i in range(4):
        Image.new("RGB", (40, 30)).save(folder / "images" / f"{i}.jpg")
    for at, part in ((0, "train"), (2, "val")):
        held = {"images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (at, at + 1)],
                "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
                "annotations": [{"id": i, "image_id": at + i % 2, "category_id": 3 + 4 * (i % 2), "area": 120,
                                 "bbox": [1, 2, 10, 12], "iscrowd": 0} for i in range(4)]}  # fmt: skip
        raw = json_bytes(held, rng) if rng.random() < 0.5 else json.dumps(held).encode()
        (folder / "annotations" / f"instances_{part}.json").write_bytes(raw)
    return _scenes(folder)


def masks(folder: Path, rng: Rng) -> Input:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    listed(folder / "splits", rng)
    for stem in "abcd":
        raw = picture(rng, "png")
        (folder / "images" / f"{stem}.png").write_bytes(raw)
        side, out = Image.open(io.BytesIO(raw)).size, io.BytesIO()
        Image.fromarray(rng.integers(0, 3, side[::-1], dtype=np.uint8)).save(out, "png")
        raw = real("segmentation/dsb2018/labels/*.png", rng, 20_000) if rng.random() < 0.2 else None
        raw = raw or out.getvalue()
        (folder / "masks" / f"{stem}.png").write_bytes(bent(raw, rng, raw) if rng.random() < 0.2 else raw)
    if rng.random() < 0.3:
        (folder / "classes.txt").write_bytes(bent(b"background\ncat\ndog\n", rng))

    def read() -> None:
        scenes = annotations.open_scenes(folder, 1.0)
        for scene in (*scenes.train, *scenes.test):
            scenes.mask(scene)

    return Input(read)
