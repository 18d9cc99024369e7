"""What benchmarks/fuzz.py tries of recipes and of runs' folders, and the list of all kinds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from fuzz_inputs import Input, Make, coco, embeddings, idx, masks, npy_file, npz_file, read_picture, shard, voc
from mutations import Rng, bent, json_bytes, pick, restructured, toml_bytes, unzipped, zipped

from nearfar import compare, methods, recipe
from nearfar.report import write as write_report
from nearfar.run import Run
from nearfar.training import keeper


def toml(folder: Path, rng: Rng) -> Input:
    name = pick(methods.names("image"), rng)
    preset = pick(list(methods.module(name).PRESETS), rng)
    (folder / "recipe.toml").write_bytes(toml_bytes(recipe.to_toml(recipe.filled(name, preset)), rng))
    return Input(lambda: recipe.read(folder),
                 ("train", "--recipe", str(folder / "recipe.toml"), "--out", str(folder / "run")))  # fmt: skip


class Page(HTMLParser):
    """Fails where what was read became anything but text."""

    scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        assert tag not in ("iframe", "object", "embed", "base", "form", "b-hostile"), f"<{tag}>"
        for key, value in attrs:
            assert not key.startswith("on"), f"{key}={value}"
            value = (value or "").strip().lower()
            assert key not in ("src", "href", "xlink:href") or value.startswith(("data:image/", "#")), f"{key}={value}"
            assert key != "style" or "url(" not in value, f"{key}={value}"


def only_text(page: str) -> None:
    """A report in which nothing that was read is an element, an attribute or a script."""
    held = Page()
    held.feed(page)
    assert held.scripts in (0, 2), f"{held.scripts} scripts"


def part_of_run(made: Path, *names: str) -> Make:
    """A run's folder of which some files are mutated, and the rest of what is drawn left out, to save time."""

    def make(folder: Path, rng: Rng) -> Input:
        run = folder / "run"
        run.mkdir()
        for name in {"recipe.toml", *names}:
            (shutil.copytree if (made / name).is_dir() else shutil.copy)(made / name, run / name)
        files = sorted(p for p in run.rglob("*") if p.is_file() and p.relative_to(run).parts[0] in names)
        for i in rng.choice(len(files), rng.integers(1, min(3, len(files)) + 1), replace=False):
            files[i].write_bytes(_mutated(files[i], rng))
        if "checkpoints" in names and rng.random() < 0.6:
            for manifest in run.rglob("manifest.json"):
                _sealed(manifest)

        def read() -> None:
            if "checkpoints" in names:
                with contextlib.redirect_stderr(io.StringIO()):  # a damaged checkpoint is named
                    Run(run).embed(np.zeros((2, 8, 8), np.uint8))
            else:
                only_text(write_report(run).read_text(encoding="utf-8"))

        words = ("embed", str(run), str(made.parent / "two.npz"), "-o", str(folder / "e.npz"))
        return Input(read, words if "checkpoints" in names else ("report", str(run)))

    return make


def _sealed(manifest: Path) -> None:
    """Sizes and digests made right again, as who means harm would."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        body = json.loads(manifest.read_bytes())["body"]
        for name in body["files"]:
            raw = (manifest.parent / name).read_bytes()
            body["files"][name] = (len(raw), hashlib.sha256(raw).hexdigest())
        manifest.write_bytes(keeper._manifest(body))


def _mutated(path: Path, rng: Rng) -> bytes:
    raw, by_structure = path.read_bytes(), rng.random() < 0.7
    if path.suffix == ".json" and by_structure:
        return json_bytes(json.loads(raw), rng)
    if path.suffix == ".jsonl" and by_structure:
        rows = [json.loads(line) for line in raw.splitlines()]
        lines = (json_bytes(row, rng) if rng.random() < 0.4 else json.dumps(row).encode() for row in rows)
        return b"\n".join(lines) + b"\n"
    if path.suffix == ".npz" and by_structure:
        members = unzipped(raw)
        if rng.random() < 0.3:  # arrays in one another's place
            keys = list(members)
            members[pick(keys, rng)] = members[pick(keys, rng)]
        return zipped(members, rng)
    return bent(raw, rng, raw)


def predictions(made: Path) -> Make:
    members = unzipped((made / "predictions.npz").read_bytes())
    results = json.loads((made / "results.json").read_text())

    def make(folder: Path, rng: Rng) -> Input:
        for name in ("a", "b"):
            (folder / name).mkdir()
            shutil.copy(made / "recipe.toml", folder / name)
            held = results if rng.random() < 0.7 else restructured(results, rng)
            (folder / name / "results.json").write_text(json.dumps(held))
            raw = (made / "predictions.npz").read_bytes() if name == "b" else zipped(members, rng)
            (folder / name / "predictions.npz").write_bytes(raw)
        runs = (str(folder / "a"), str(folder / "b"))
        return Input(lambda: compare.compare(runs), ("compare", *runs))

    return make


def a_run(folder: Path) -> Path:
    """What the mutated run folders are copies of, with every section of the report."""
    import nearfar

    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    run = nearfar.train((x, np.arange(60) % 3), out=folder / "run", steps=4, batch=16, width=4, show=False)
    run.evaluate((x, np.arange(60) % 3), more=True, robust=True, draws=2)
    np.savez(folder / "two.npz", x=x[:2])
    found = {"finding": "collapse", "step": 2, "seen": "<b>", "cause": "c", "remedy": "r"}
    (run.folder / "doctor.jsonl").write_text(json.dumps(found) + "\n")
    (run.folder / "skipped.jsonl").write_text(json.dumps({"part": "train", "name": "a", "reason": "b"}) + "\n")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    few = [{k: row[k] for k in ("step", "loss", "gradient") if k in row} for row in rows]  # a figure takes its time
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    return run.folder


def kinds(made: Path) -> dict[str, Make]:
    """Every kind by its name; ``made`` is a run."""
    pictures = {k: read_picture(k) for k in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm")}
    return {"recipe": toml, "idx": idx, "npy": npy_file, "npz": npz_file, "embeddings": embeddings, "voc": voc,
            "coco": coco, "masks": masks, "tar": shard, **pictures, "predictions": predictions(made),
            "checkpoint": part_of_run(made, "checkpoints", "engine.json"), "results": part_of_run(made, "results.json"),
            "metrics": part_of_run(made, "metrics.jsonl", "doctor.jsonl", "skipped.jsonl"),
            "gallery": part_of_run(made, "gallery.npz")}  # fmt: skip

