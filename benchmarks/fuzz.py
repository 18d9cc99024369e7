"""Feed it anything: mutated recipes, annotations, arrays, archives, pictures and run folders, by the ten thousand.

    python benchmarks/fuzz.py --inputs 3000
    python benchmarks/fuzz.py --kinds png --seed 17 --inputs 1     # one input again

Each input is a valid file, made or taken from a set of small real ones, and mutated: bits, bytes, runs, cuts, splices,
interesting integers; JSON, TOML and XML by structure, too; zips by member. It is to be read, or refused by a
``UserError`` of one line. Anything else is a finding: another exception, a warning that escapes, more than ten
seconds, more than two gigabytes, a file that is left where none was to be. Findings are printed with their seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import resource
import shutil
import signal
import struct
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from nearfar import compare, methods, recipe
from nearfar.data import annotations, open_image, open_source
from nearfar.errors import UserError
from nearfar.report import write as write_report
from nearfar.run import Run

SECONDS, BYTES, LINE = 10, 2 * 2**30, 500
Rng = np.random.Generator
_INTEGERS = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
_VALUES = [None, True, -1, 0, 1, 2**63, -(2**70), 1e308, float("nan"), float("inf"), "", "x" * 3000, "\x00\x1b[2J\n",
           "<script>alert(1)</script>", "../../etc/passwd", [], {}, [[]], {"a": {}}, [1, "2", None]]  # fmt: skip


# Mutations --------------------------------------------------------------------------------------------------------


def bent(raw: bytes, rng: Rng, other: bytes = b"") -> bytes:
    """Bytes with one to four changes; their beginning, where headers are, more often than the rest."""
    data = bytearray(raw)
    for _ in range(rng.integers(1, 5)):
        if not data:
            return bytes(rng.integers(0, 256, rng.integers(0, 64), dtype=np.uint8))
        at = int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 64)))
        how, n = rng.integers(8), int(rng.integers(1, 17))
        if how == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            data[at : at + n] = rng.integers(0, 256, n, dtype=np.uint8).tobytes()
        elif how == 2:
            del data[at:]
        elif how == 3:
            del data[at : at + n]
        elif how == 4:
            data[at:at] = data[at : at + 4 * n]
        elif how == 5:
            value = _INTEGERS[rng.integers(len(_INTEGERS))]
            data[at : at + 4] = struct.pack((">I", "<I")[rng.integers(2)], value)
        elif how == 6:
            data[at : at + 2] = struct.pack((">H", "<H")[rng.integers(2)], _INTEGERS[rng.integers(10)])
        else:
            data[at:] = other[int(rng.integers(len(other) + 1)) :]
    return bytes(data)


def restructured(held: object, rng: Rng, depth: int = 0) -> object:
    """JSON's values with something of them taken away, doubled, nested, or another value in its place."""
    if depth == 0 and rng.random() < 0.02:
        deep: object = 1
        for _ in range(int(rng.integers(100, 3000))):
            deep = [deep]
        return deep
    if rng.random() < 0.25 or not isinstance(held, dict | list) or not held:
        return _VALUES[rng.integers(len(_VALUES))]
    copy = dict(held) if isinstance(held, dict) else list(held)
    key = list(copy)[rng.integers(len(copy))] if isinstance(copy, dict) else int(rng.integers(len(copy)))
    how = rng.integers(5)
    if how == 0:
        del copy[key]
    elif how == 1 and isinstance(copy, list):
        copy.append(copy[key])
    elif how == 1:
        copy[str(key) + "x"] = copy[key]
    else:
        copy[key] = restructured(copy[key], rng, depth + 1)
    return copy


def json_bytes(held: object, rng: Rng) -> bytes:
    try:
        raw = json.dumps(restructured(held, rng) if rng.random() < 0.7 else held).encode()
    except RecursionError:
        raw = b"[" * 5000
    return raw if rng.random() < 0.6 else bent(raw, rng, raw)


def zipped(members: dict[str, bytes], rng: Rng) -> bytes:
    """A zip whose checksums are right, of members that are not."""
    out, share = io.BytesIO(), 1.5 / len(members)
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, raw in members.items():
            if rng.random() < share / 6:
                continue
            changed = bent(raw, rng, raw) if rng.random() < share else raw
            file.writestr(name if rng.random() > share / 6 else "../" + name, changed)
    raw = out.getvalue()
    return raw if rng.random() < 0.8 else bent(raw, rng, raw)


# Inputs: what is written into a folder, and what is done with it -----------------------------------------------------


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def arrays_of(rng: Rng) -> np.ndarray:
    kinds = [np.uint8, np.float32, np.uint16, np.float64, np.int32, np.bool_]
    shape = (int(rng.integers(1, 9)), 8, 8, *([3] if rng.random() < 0.5 else []))
    return rng.integers(0, 255, shape).astype(kinds[rng.integers(len(kinds))])


def picture(rng: Rng, kind: str) -> bytes:
    out, side = io.BytesIO(), int(rng.integers(1, 40))
    mode = {"jpeg": ["L", "RGB", "CMYK"], "png": ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"], "gif": ["P", "L"],
            "bmp": ["L", "RGB", "1"], "webp": ["RGB", "RGBA"], "tiff": ["L", "RGB", "F", "I;16", "CMYK"],
            "ppm": ["L", "RGB"]}[kind]  # fmt: skip
    chosen = mode[rng.integers(len(mode))]
    values = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(values) if chosen not in ("I;16", "F") else Image.fromarray(
        values[..., 0].astype(np.uint16 if chosen == "I;16" else np.float32))  # fmt: skip
    image = image if chosen in ("I;16", "F") else image.convert(chosen)
    more = {"tiff": {"compression": [None, "tiff_lzw", "packbits", "tiff_adobe_deflate"][rng.integers(4)]},
            "gif": {"save_all": True, "append_images": [image.copy()]}}.get(kind, {})  # fmt: skip
    image.save(out, kind, **more)
    return out.getvalue()


def read_picture(kind: str) -> Callable[[Path, Rng], Callable[[], object]]:
    suffix = {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)

    def make(folder: Path, rng: Rng) -> Callable[[], object]:
        raw = picture(rng, kind)
        path = folder / f"a.{suffix}"
        path.write_bytes(bent(raw, rng, picture(rng, kind)))
        (folder / "b.png").write_bytes(picture(rng, "png"))

        def read() -> None:
            with contextlib.suppress(UserError) if rng.random() < 0.5 else contextlib.nullcontext():
                open_image(path, (8, 8, 3))
            source = open_source(folder, image_size=8, max_bad=1.0, say=lambda text: None).train
            source.read(np.arange(len(source)))
            assert len(source) + len(source.skipped) == 2

        return read

    return make


def toml(folder: Path, rng: Rng) -> Callable[[], object]:
    names = methods.names()
    module = methods.module(names[rng.integers(len(names))])
    preset = list(module.PRESETS)[rng.integers(len(module.PRESETS))]
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    text = recipe.to_toml(recipe.filled(name, preset))
    if rng.random() < 0.5:  # a value for another
        lines = text.splitlines()
        at = int(rng.integers(len(lines)))
        values = ["nan", "inf", "-1", "1e400", "true", '""', "[]", "{}", "0x7fffffffffffffff", "9" * 400, "[[[]]]",
                  "1979-05-27", '"\\u0000"', "[" * 3000 + "]" * 3000, '"' + "a" * 5000 + '"']  # fmt: skip
        lines[at] = lines[at].partition("=")[0] + "= " + values[rng.integers(len(values))]
        text = "\n".join(lines)
    raw = text.encode() if rng.random() < 0.4 else bent(text.encode(), rng, text.encode())
    (folder / "recipe.toml").write_bytes(raw)
    return lambda: recipe.read(folder)


def idx(folder: Path, rng: Rng) -> Callable[[], object]:
    n = int(rng.integers(1, 6))
    images = struct.pack(">4I", 0x803, n, 8, 8) + rng.integers(0, 256, n * 64, dtype=np.uint8).tobytes()
    labels = struct.pack(">2I", 0x801, n) + rng.integers(0, 3, n, dtype=np.uint8).tobytes()
    zipped = rng.random() < 0.5
    for name, raw in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        raw = bent(raw, rng, images) if rng.random() < 0.6 else raw
        raw = gzip.compress(raw, 1) if zipped else raw
        raw = bent(raw, rng, images) if zipped and rng.random() < 0.3 else raw
        (folder / (name + ".gz" * zipped)).write_bytes(raw)
    path = folder if rng.random() < 0.5 else next(folder.glob("*images*"))
    return lambda: _all_of(open_source(path, say=lambda text: None))


def _all_of(splits: object) -> None:
    splits.train.read(np.arange(min(8, len(splits.train))))


def npy_file(folder: Path, rng: Rng) -> Callable[[], object]:
    raw = npy(arrays_of(rng))
    (folder / "x.npy").write_bytes(bent(raw, rng, raw))
    return lambda: _all_of(open_source(folder / "x.npy"))


def npz_members(rng: Rng) -> dict[str, bytes]:
    x = arrays_of(rng)
    y = rng.integers(0, 3, len(x))
    names = np.array([["a", "b", "c"], ["<b>", "é", ""]][rng.integers(2)])
    return {"x.npy": npy(x), "y.npy": npy(y), "classes.npy": npy(names)}


def npz_file(folder: Path, rng: Rng) -> Callable[[], object]:
    (folder / "x.npz").write_bytes(zipped(npz_members(rng), rng))
    return lambda: _all_of(open_source(folder / "x.npz"))


def embeddings(folder: Path, rng: Rng) -> Callable[[], object]:
    z = rng.normal(size=(12, 4)).astype(np.float32)
    y = np.arange(12) % 3
    held = {"x_train.npy": npy(z), "y_train.npy": npy(y), "x_test.npy": npy(z), "y_test.npy": npy(y)}
    if rng.random() < 0.3:
        split = np.array(["train", "test"] * 6)
        held = {"features.npy": npy(z), "labels.npy": npy(y // 2), "split.npy": npy(split)}
    (folder / "e.npz").write_bytes(zipped(held, rng))
    return lambda: compare._parts(folder / "e.npz")


_VOC = """<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25</ymax>
</bndbox></object><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object></annotation>"""
_LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "' + "&a;" * 20 + '"><!ENTITY c "' + "&b;" * 20 + '">]>'


def voc(folder: Path, rng: Rng) -> Callable[[], object]:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    listed(folder / "ImageSets" / "Main", rng)
    for stem in "abcd":
        Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / f"{stem}.jpg")
        text = _VOC
        if rng.random() < 0.5:
            values = ["nan", "-1e9", "", "9" * 30, "cat<b>", "&c;", "inf", "0x3", "<name/>", "1 2"]
            old = [">3<", ">20<", ">cat<", ">40<", ">1<", ">25<"][rng.integers(6)]
            text = text.replace(old, f">{values[rng.integers(len(values))]}<")
        text = _LAUGHS + text if rng.random() < 0.1 else text
        raw = bent(text.encode(), rng, text.encode()) if rng.random() < 0.5 else text.encode()
        (folder / "Annotations" / f"{stem}.xml").write_bytes(raw)
    return lambda: annotations.open_scenes(folder, 1.0)


def listed(folder: Path, rng: Rng) -> None:
    """train.txt and test.txt with four names, seldom mutated."""
    for name, stems in (("train", b"a\nb\n"), ("test", b"c\nd\n")):
        (folder / f"{name}.txt").write_bytes(bent(stems, rng) if rng.random() < 0.1 else stems)


def coco(folder: Path, rng: Rng) -> Callable[[], object]:
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
    return lambda: annotations.open_scenes(folder, 1.0)


def masks(folder: Path, rng: Rng) -> Callable[[], object]:
    for name in ("images", "masks", "splits"):
        (folder / name).mkdir()
    listed(folder / "splits", rng)
    for stem in "abcd":
        (folder / "images" / f"{stem}.png").write_bytes(picture(rng, "png"))
        side = Image.open(folder / "images" / f"{stem}.png").size
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 3, side[::-1], dtype=np.uint8)).save(out, "png")
        raw = out.getvalue()
        (folder / "masks" / f"{stem}.png").write_bytes(bent(raw, rng, raw) if rng.random() < 0.2 else raw)
    if rng.random() < 0.3:
        (folder / "classes.txt").write_bytes(bent(b"background\ncat\ndog\n", rng))
    return lambda: annotations.open_scenes(folder, 1.0)


def run_folder(made: Path) -> Callable[[Path, Rng], Callable[[], object]]:
    """A run's files, one to three of them mutated: report, weights, engine and all."""

    def make(folder: Path, rng: Rng) -> Callable[[], object]:
        run = folder / "run"
        shutil.copytree(made, run)
        files = sorted(p for p in run.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
        for i in rng.choice(len(files), rng.integers(1, 4), replace=False):
            raw = files[i].read_bytes()
            if files[i].suffix == ".json" and rng.random() < 0.7:
                files[i].write_bytes(json_bytes(json.loads(raw), rng))
            else:
                files[i].write_bytes(bent(raw, rng, raw))

        def read() -> None:
            write_report(run)
            with contextlib.redirect_stderr(io.StringIO()):
                Run(run).embed(np.zeros((2, 8, 8), np.uint8))

        return read

    return make


def predictions(made: Path) -> Callable[[Path, Rng], Callable[[], object]]:
    def make(folder: Path, rng: Rng) -> Callable[[], object]:
        with zipfile.ZipFile(made / "predictions.npz") as file:
            members = {name: file.read(name) for name in file.namelist()}
        for name in ("a", "b"):
            (folder / name).mkdir()
            shutil.copy(made / "recipe.toml", folder / name)
            shutil.copy(made / "results.json", folder / name)
            (folder / name / "predictions.npz").write_bytes(zipped(members, rng))
        return lambda: compare.compare([folder / "a", folder / "b"])

    return make


def kinds(made: Path) -> dict[str, Callable[[Path, Rng], Callable[[], object]]]:
    pictures = {k: read_picture(k) for k in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm")}
    return {"recipe": toml, "idx": idx, "npy": npy_file, "npz": npz_file, "embeddings": embeddings, "voc": voc,
            "coco": coco, "masks": masks, **pictures, "run": run_folder(made),
            "predictions": predictions(made)}  # fmt: skip


# The run ----------------------------------------------------------------------------------------------------------


class Hangs(BaseException):
    """Ten seconds are over."""


def _alarm(number: int, frame: object) -> None:
    raise Hangs


def tried(make: Callable, seed: int) -> str:
    """``read``, ``refused``, or what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            do = make(folder, np.random.default_rng(seed))
            before = {p for p in folder.rglob("*") if p.name != "report.html"}
            signal.alarm(SECONDS)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                do()
            said = "read"
        except UserError as error:
            text = str(error)
            said = "refused" if text and len(text) <= LINE and text.isprintable() else f"not one line: {text!r}"
        except Hangs:
            said = "hangs: " + traceback.format_exc().splitlines()[-3].strip()
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [f for f in where if "nearfar" in f.filename] or where
            said = f"{type(error).__name__}: {str(error)[:150]!r} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        finally:
            signal.alarm(0)
        left = {p for p in folder.rglob("*") if p.name != "report.html"} - before if said != "read" else ()
        return f"left {sorted(p.name for p in left)[:3]}" if left else said


def a_run(folder: Path) -> Path:
    """What the mutated run folders are copies of."""
    import nearfar

    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    run = nearfar.train((x, np.arange(60) % 3), out=folder / "run", steps=4, batch=16, width=4, show=False)
    return run.folder


def fuzz(chosen: list[str], inputs: int, seed: int, show: Callable[[str], None] = print) -> int:
    """Try so many inputs of each kind; how many findings there are."""
    signal.signal(signal.SIGALRM, _alarm)
    os.environ["NEARFAR_CACHE"] = "off"
    findings = 0
    with tempfile.TemporaryDirectory() as name:
        known = kinds(a_run(Path(name)))
        show(f"{'kind':12} {'inputs':>7} {'read':>7} {'refused':>8} {'findings':>9}")
        for kind in chosen or known:
            count: dict[str, int] = {}
            for i in range(seed, seed + inputs):
                said = tried(known[kind], i)
                if said not in ("read", "refused"):
                    show(f"  {kind} --seed {i}: {said}")
                    said = "finding"
                count[said] = count.get(said, 0) + 1
            findings += count.get("finding", 0)
            show(f"{kind:12} {inputs:7,} {count.get('read', 0):7,} {count.get('refused', 0):8,} "
                 f"{count.get('finding', 0):9,}")  # fmt: skip
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.name == "posix" else 0
    resource.setrlimit(resource.RLIMIT_AS, (here + 2 * BYTES, resource.RLIM_INFINITY))
    raise SystemExit(1 if fuzz(given.kinds, given.inputs, given.seed, lambda text: print(text, flush=True)) else 0)


if __name__ == "__main__":
    main()
