"""No file of a user's can make the program run code, and no name in one is more than text in the report."""

import ast
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_run import Page

import nearfar
from nearfar import report

ROOT = Path(nearfar.__file__).parent

# What would load or run code from a file, unpack what it names, or take a guard away.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "tarfile",
           "torch.distributed.checkpoint", "torch.package", "xml", "xml.etree", "xml.etree.ElementTree",
           "xml.parsers", "xml.parsers.expat", "xml.sax", "xml.dom", "lxml", "subprocess", "code", "runpy"}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.hub.load", "torch.jit.load", "np.loads",
         "torch.load_state_dict_from_url", "os.system", "os.popen", "shutil.unpack_archive", "extract", "extractall",
         "read_pickle", "torch.serialization.add_safe_globals"}  # fmt: skip
SWITCHES = {"LOAD_TRUNCATED_IMAGES", "MAX_IMAGE_PIXELS"}
ALLOWED = {
    # Element and TreeBuilder hold what was read; the parser is our own, which refuses every DOCTYPE and with it every
    # entity (tests/test_inputs.py::test_xml_with_entities_is_not_read)
    ("data/voc.py", "xml.etree.ElementTree"), ("data/voc.py", "xml.parsers"), ("data/voc.py", "xml.parsers.expat"),
    # git says at which commit the code is; no file decides what it is asked
    ("environment.py", "subprocess"),
    # of bytes that it has just written
    ("evaluate/corruptions.py", "Image.open without formats"),
}  # fmt: skip


def dotted(node):
    """``a.b.c`` of a name or an attribute."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)] if isinstance(node, ast.Name) else reversed(parts))


def dangers(text):
    """What a module's source has of the above: (line, what)"""
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{a.name}" for a in node.names)]
            yield from ((node.lineno, name) for name in names if name in CALLS)
            names += [a.name for a in node.names if a.name in SWITCHES]
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            bare = called.rpartition(".")[2]
            if called in CALLS or (bare in CALLS and "." in called and bare not in ("eval", "compile", "exec")):
                yield node.lineno, called
            given = {k.arg: k.value for k in node.keywords}
            if bare in ("import_module", "require") and isinstance(node.args[0], ast.Constant):
                names = [node.args[0].value]
            for key, wanted in (("allow_pickle", False), ("trust_remote_code", False), ("weights_only", True)):
                if key in given and not (isinstance(given[key], ast.Constant) and given[key].value is wanted):
                    yield node.lineno, key
            if called == "np.load" and "allow_pickle" not in given:
                yield node.lineno, "np.load without allow_pickle=False"
            if called == "Image.open" and not {"formats"} & given.keys():
                yield node.lineno, "Image.open without formats"
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            names = [n for n in (dotted(node).rpartition(".")[2],) if n in SWITCHES]
        yield from ((node.lineno, name) for name in names if name in MODULES | SWITCHES)


def test_nothing_of_the_code_runs_what_a_file_holds():
    found = {(path.relative_to(ROOT).as_posix(), what)
             for path in ROOT.rglob("*.py") for _, what in dangers(path.read_text())}  # fmt: skip
    assert sorted(found) == sorted(ALLOWED)  # and nothing is allowed that is not there


@pytest.mark.parametrize("line", [
    "import pickle", "torch.load('x')", "from torch import load", "np.load(f)", "np.load(f, allow_pickle=True)",
    "import torch.distributed.checkpoint as d", "from torch.distributed import checkpoint", "eval('1')", "exec('1')",
    "tar.extractall('.')", "tar.extract('x')", "import yaml", "from xml.etree import ElementTree",
    "ImageFile.LOAD_TRUNCATED_IMAGES = True", "Image.MAX_IMAGE_PIXELS = None", "Image.open(f)",
    "importlib.import_module('pickle')", "load(x, weights_only=False)", "f(trust_remote_code=True)",
])  # fmt: skip
def test_the_scan_sees_each_danger(line):
    assert list(dangers(line))
    assert not list(dangers("net.eval()\nnp.load(f, allow_pickle=False)\nre.compile('x')\nImage.open(f, formats=F)"))


# The report ---------------------------------------------------------------------------------------------------------

HOSTILE = ["<script>window.hostile=1</script>", '"><img src=x onerror="window.hostile=1">',
           "</script><script>hostile()",
           "javascript:hostile()", "' onmouseover='hostile()", "]]><b-hostile>", "red;background:url(//hostile)",
           "</style><b-hostile>", "&lt;b-hostile&gt;", "<!--", "</pre></details><b-hostile>"]  # fmt: skip


class Elements(Page):
    """Every element with its attributes' names, every address and style, and what scripts hold."""

    def __init__(self):
        super().__init__()
        self.seen, self.styles = [], []

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        self.seen.append((tag, tuple(sorted(key for key, _ in attrs))))
        self.styles += [value for key, value in attrs if key == "style"]

    def handle_startendtag(self, tag, attrs):
        super().handle_startendtag(tag, attrs)
        self.seen.append((tag, tuple(sorted(key for key, _ in attrs))))


def elements(path):
    page = Elements()
    page.feed(path.read_text())
    page.close()
    assert all(v.startswith(("data:image/", "#")) for v in page.loads)
    assert not any("url(" in style for style in page.styles)
    return page.seen


def poisoned(held, evil):
    """The same with every text replaced by a hostile one, keys that are names of things too."""
    if isinstance(held, str):
        return next(evil)
    if isinstance(held, dict):
        return {key: poisoned(value, evil) for key, value in held.items()}
    return [poisoned(value, evil) for value in held] if isinstance(held, list) else held


def in_turn():
    n = 0
    while True:
        yield f"{HOSTILE[n % len(HOSTILE)]} {n}"
        n += 1


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, digits):
    """A run with every section of the page: robustness, retrieval, duplicates, a transfer, findings, bad images."""
    folder = tmp_path_factory.mktemp("hostile")
    x, y = digits
    keep = np.flatnonzero(y < 3)[:90]
    data = (np.concatenate([x[keep], x[keep[:5]]]), np.concatenate([y[keep], y[keep[:5]]]))
    run = nearfar.train(data, out=folder / "run", steps=2, batch=32, width=4, evaluate=False, show=False)
    run.evaluate(data, more=True, robust=True, draws=2)
    finding = {"finding": "collapse", "step": 2, "seen": "a", "cause": "b", "remedy": "c"}
    (run.folder / "doctor.jsonl").write_text(json.dumps(finding) + "\n")
    (run.folder / "skipped.jsonl").write_text(json.dumps({"part": "a", "name": "b", "reason": "c"}) + "\n")
    cell = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {"labels": "10%", "start": "a", "mode": "b", "cells": {"AP": cell}, "per_class": [{"name": "c", "AP50": 0.5}]}
    held = {"task": "a", "source": "b", "rows": [row], "columns": ["AP"], "notes": ["c"], "legend": {"d": "#112233"},
            "gains": [{"title": "a", "column": "AP", **cell, "real": True}],
            "protocol": {"settings": {"head": "a", "steps": 1, "batch": 2}, "judged on pictures": 3}}  # fmt: skip
    (run.folder / "transfer" / "t").mkdir(parents=True)
    (run.folder / "transfer" / "t" / "results.json").write_text(json.dumps(held))
    pixels = np.zeros((8, 8, 3), np.uint8)
    np.savez(run.folder / "transfer" / "t" / "pictures.npz", **{"0/a/truth": pixels, "0/a/b": pixels}, protocol="x")
    return report.write(run.folder).parent


def poison(folder):
    """Hostile text in every text that the run's files hold."""
    evil = in_turn()
    for path in [*folder.glob("*.json"), *folder.rglob("transfer/*/results.json")]:
        held = json.loads(path.read_text())
        bad = poisoned(held, evil)
        if "evaluation" in held:  # names by which rows are found stay; judged classes, notes and titles do not
            for old, new in zip(held["evaluation"]["rows"], bad["evaluation"]["rows"]):
                new["embedding"] = old["embedding"]
            for key in ("tried", "mean over"):
                bad["robustness"]["protocol"][key] = held["robustness"]["protocol"][key]
            bad["evaluation"]["more"][next(evil)] = bad["evaluation"]["more"].pop("raw pixels")
            bad["robustness"]["sensitivity"][next(evil)] = bad["robustness"]["sensitivity"].pop(
                next(iter(bad["robustness"]["sensitivity"])))  # fmt: skip
        if "columns" in held:
            bad["columns"], bad["rows"][0]["cells"] = held["columns"], held["rows"][0]["cells"]
            bad["gains"][0]["column"] = "AP"
            bad["legend"] = {next(evil): "#112233", "b": "red;background:url(//hostile)"}
        path.write_text(json.dumps(bad))
    for name in ("doctor.jsonl", "skipped.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        (folder / name).write_text("".join(json.dumps(poisoned(row, evil)) + "\n" for row in rows))
    with np.load(folder / "gallery.npz") as file:
        held = dict(file)
    for key, value in held.items():
        if value.dtype.kind == "U":
            held[key] = np.array([next(evil) for _ in range(value.size)]).reshape(value.shape)
    np.savez(folder / "gallery.npz", **held)
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace('source = "array"', f"source = '''{next(evil)}'''"))


def test_hostile_text_in_every_file_of_a_run_is_text(whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    before = elements(report.write(folder))
    poison(folder)
    page = report.write(folder)
    assert "could not be drawn" not in page.read_text()
    assert page.read_text().count("hostile") > 100
    after = elements(page)
    assert {e for e in after if e not in before} == set()  # no element, and no attribute, that was not there
    assert abs(len(after) - len(before)) <= 3  # line breaks of a heading, and a colour that is none


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium to open the page in")
def test_no_script_of_a_name_runs_in_a_browser(whole_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    poison(folder)
    page = report.write(folder)
    probe = "<script>document.body.dataset.hostile = String(window.hostile)</script></body>"
    page.write_text(page.read_text().replace("</body>", probe))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--enable-logging=stderr",
             "--dump-dom"]  # fmt: skip
    said = subprocess.run(["chromium", *flags, f"file://{page}"], capture_output=True, text=True, timeout=120)
    assert 'data-hostile="undefined"' in said.stdout  # nothing has set it, and the probe has looked
    assert "<b-hostile" not in said.stdout
    assert "data-points=" in said.stdout  # the page's own script ran
    assert "Uncaught" not in said.stderr
