"""A short form of benchmarks/fuzz.py, and properties of recipes and IDX: read as they are, or refused in one line."""

import gzip
import signal
import struct
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.data import idx
from nearfar.errors import UserError
from nearfar.recipe import Recipe, from_toml, to_toml

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import fuzz
from fuzz_runs import Page, only_text

SLOW = {"results": 12, "metrics": 6, "gallery": 8}  # a report each
SEED = 10**6  # other inputs than the long run's


def one_line(error):
    assert "\n" not in str(error)
    assert len(str(error)) < 400


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the watchdog wants an alarm")
def test_thousands_of_broken_files_are_read_or_refused():
    said = []
    found = fuzz.fuzz([], lambda kind: SLOW.get(kind, 40), SEED, said.append)
    assert not any(count["finding"] for count in found.values()), "\n".join(said)
    assert all(count["read"] for count in found.values()), "a kind of which nothing is read tries little"
    assert sum(count["refused"] for count in found.values()) > 400


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("idx")


KEYS = st.text(max_size=8) | st.sampled_from([
    "batch", "method", "views.flip", "optim.lr", "optim.name", "settings.temperature", "seed", "pace", "views", "optim",
    "source"])  # fmt: skip
VALUES = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=20).map(lambda t: f"'{t}'"),
                   st.just("[]"), st.just("{}"), st.just("[[1.0, 0.5, 0.1]]"), st.just("{flip = 0.5}"))  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES), max_size=5))
def test_any_recipe_is_one_that_round_trips_or_one_line(rows):
    try:
        recipe = from_toml("\n".join(f"{key} = {str(value).lower()}" for key, value in rows))
    except UserError as error:
        one_line(error)
    else:
        assert isinstance(recipe, Recipe)
        assert from_toml(to_toml(recipe)) == recipe


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 4), min_size=1, max_size=4),
       st.sampled_from([0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E, 0x07]), st.booleans(), st.integers(0, 90))  # fmt: skip
def test_any_idx_file_is_what_it_says_or_one_line(place, content, shape, kind, zipped, end):
    path = place / f"x-idx3-ubyte{'.gz' * zipped}"
    raw = (struct.pack(">HBB", 0, kind, len(shape)) + struct.pack(f">{len(shape)}I", *shape) + content)[: 90 - end]
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    try:
        array = idx.read_idx(path)
    except UserError as error:
        one_line(error)
    else:
        assert array.shape == tuple(shape)
        order = array.dtype.newbyteorder(">")
        assert array.astype(order).tobytes() == raw[4 + 4 * len(shape) :]


@pytest.mark.parametrize("page", ["<iframe>", "<p onclick=x>", "<a href='javascript:x'>", "<img src='http://x'>",
                                  "<p style='background:url(//x)'>", "<script>1</script>"])  # fmt: skip
def test_the_fuzzer_sees_what_is_more_than_text(page):
    with pytest.raises(AssertionError):
        only_text(f"<p>{page}</p>")
    assert Page().scripts == 0
    only_text("<p>&lt;script&gt;</p><img src='data:image/png;base64,AA'>")


def test_the_fuzzer_finds_what_is_wrong(monkeypatch):
    """Each kind of finding, from inputs that have it."""
    def of(read, **more):
        return fuzz.tried(lambda folder, rng: fuzz.Input(lambda: read(folder), **more), 0)

    def hang(folder):
        while True:
            time.sleep(0.01)

    def fail(error):
        raise error

    def leave(folder):
        (folder / "half").touch()
        raise UserError("no")

    assert of(lambda folder: None) == "read"
    assert of(lambda folder: fail(UserError("no"))) == "refused"
    assert of(lambda folder: fail(KeyError("x"))).startswith("KeyError")
    assert of(lambda folder: fail(UserError("two\nlines"))).startswith("not one line")
    assert of(lambda folder: fail(UserError("x" * 401))).startswith("not one line")
    assert of(lambda folder: warnings.warn("of something", stacklevel=1)).startswith("warns: of something")
    assert of(leave) == "leaves ['half']"
    assert of(lambda folder: fail(UserError("no")), words=("doctor",)).startswith("doctor: exit code 0")
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    assert of(hang).startswith("hangs: ")
    monkeypatch.setattr(fuzz, "SECONDS", 60)
    monkeypatch.setattr(fuzz, "BYTES", 2**26)
    assert of(lambda folder: np.ones(fuzz._peak() + 2**27, np.uint8)).startswith("takes ")
