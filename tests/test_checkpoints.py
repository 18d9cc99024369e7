"""Checkpoints: written whole or not at all, believed only when every bit is as it was, the last and the best kept."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearfar.errors import UserError
from nearfar.training.keeper import Keeper, checked, listed, newest
from nearfar.training.lock import alone
from nearfar.training.metrics import MetricsFile

FILES = ("manifest.json", "method.safetensors", "training.safetensors")


def tensors(seed: int) -> dict:
    g = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(5, 7, generator=g), "count": torch.tensor(seed), "none": torch.zeros(0, 3)}


def write(keeper: Keeper, step: int, score: float | None = None) -> bool:
    files = {"method.safetensors": tensors(step), "training.safetensors": tensors(-step)}
    keeper.write(step, files, {"score": score, "step": step})
    return keeper.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("c")
    keeper = Keeper(folder)
    assert write(keeper, 10)
    assert write(keeper, 20)
    return folder


def test_what_is_written_is_read(two):
    found = newest(two, pytest.fail)
    assert found.step == found.about["step"] == 20
    assert found.files == ("method.safetensors", "training.safetensors")
    for name, sign in (("method.safetensors", 1), ("training.safetensors", -1)):
        for key, value in tensors(sign * 20).items():
            assert torch.equal(found.tensors(name)[key], value)
    assert sorted(p.name for p in two.iterdir()) == ["step-00000010", "step-00000020"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.data())
def test_any_bit_and_any_length_is_seen(two, name, data):
    """The file is named, its checkpoint refused, and the one before taken."""
    path = two / "step-00000020" / name
    good = path.read_bytes()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, 8 * len(good) - 1))
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
    else:
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    said = []
    path.write_bytes(bad)
    try:
        assert newest(two, said.append).step == 10
    finally:
        path.write_bytes(good)
    assert len(said) == 1
    assert str(path) in said[0]


def test_a_missing_file_or_anothers_is_seen_and_only_one_may_be_asked_for(two):
    last = two / "step-00000020"
    held = {name: (last / name).read_bytes() for name in FILES}
    (last / "training.safetensors").unlink()
    with pytest.raises(UserError, match=r"training.safetensors is missing"):
        checked(last)
    assert checked(last, "method.safetensors").step == 20  # to use, not to go on with
    (last / "training.safetensors").write_bytes((two / "step-00000010" / "training.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"training.safetensors is damaged: its content does not match its SHA-256"):
        checked(last)
    (last / "training.safetensors").write_bytes(held["training.safetensors"])
    for harm in (lambda body: body["files"].update({"../../x": [0, ""]}), lambda body: body.pop("about")):
        body = json.loads(held["manifest.json"])["body"]
        harm(body)
        (last / "manifest.json").write_text(json.dumps({"body": body, "sha256": "0" * 64}))
        with pytest.raises(UserError, match=r"manifest.json is not as it was written"):
            checked(last)
    (last / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"manifest.json is not as it was written"):
        checked(last)
    (last / "manifest.json").write_bytes(held["manifest.json"])
    assert checked(last).step == 20


def test_where_none_is_sound_one_line_says_so(tmp_path):
    keeper = Keeper(tmp_path)
    assert write(keeper, 1)
    (tmp_path / "step-00000001" / "method.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no checkpoint that can be used: .*step-00000001/method.safetensors"):
        newest(tmp_path, lambda line: None)
    with pytest.raises(UserError, match="none has been written yet"):
        newest(tmp_path / "nowhere", lambda line: None)


def test_the_last_few_and_the_best_are_kept_and_rests_removed(tmp_path):
    (tmp_path / ".step-00000004.123").mkdir()  # of a process that was killed
    keeper = Keeper(tmp_path, keep=2)
    assert listed(tmp_path) == []
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.4), (4, None), (5, 0.3)):
        assert write(keeper, step, score)
    assert [p.name[-1] for p in listed(tmp_path)] == ["5", "4", "2"]
    assert write(keeper, 5, 0.1)  # an attempt that got as far is repeated
    assert checked(tmp_path / "step-00000005").about["score"] == 0.1
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_that_cannot_be_written_is_said_and_the_ones_before_stand(tmp_path):
    said = []
    keeper = Keeper(tmp_path, say=said.append)
    assert write(keeper, 1)
    (tmp_path / "step-00000002").write_text("a file in the way")  # renaming a folder onto it fails after all is written
    (tmp_path / ".old-step-00000002").mkdir()
    assert not write(keeper, 2)
    assert len(said) == 1
    assert "the checkpoint of step 2 could not be written" in said[0]
    assert checked(tmp_path / "step-00000001").step == 1
    assert write(keeper, 3)


def test_rows_wait_for_room(tmp_path):
    """A disk that is full for a while: no row is lost, cut or doubled."""
    file = MetricsFile(tmp_path, tensorboard=False)
    file.write({"step": 1})
    real, full = file._file, open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    file._file = full
    for step in range(2, 9):
        file.write({"step": step})
    with pytest.raises(OSError) as error:
        file.position()
    assert error.value.errno == errno.ENOSPC
    file._file = real
    assert file.position() == os.stat(tmp_path / "metrics.jsonl").st_size
    file.write({"step": 9})
    file.close()
    full.close()
    again = MetricsFile(tmp_path, os.stat(tmp_path / "metrics.jsonl").st_size, tensorboard=False)
    assert [row["step"] for row in again.rows] == list(range(1, 10))
    again.close()


def test_a_folder_has_one_holder(tmp_path):
    found = []

    def other() -> None:
        try:
            with alone(tmp_path):
                found.append("held")
        except UserError as error:
            found.append(str(error))

    with alone(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert "is being trained by another process" in found[0]
    assert found[1] == "held"
