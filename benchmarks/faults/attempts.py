"""Attempts at a command: real processes that can be killed at any instant, and what they leave compared.

A fresh process spends seconds on imports. ``forked`` ones come from this process, which has imported everything and
run nothing (one thread, no kernel), so that hundreds can be killed in minutes; ``fresh`` ones are ``python -m
nearfar``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false", "MPLBACKEND": "agg"}

import numpy as np  # after what decides its threads

ROOT = Path(__file__).resolve().parents[2]
OFTEN = ("--checkpoint-minutes", "0.00001")  # whenever none is being written
TIMES = {"time", "images_per_second"}  # of a row: what two runs may differ in


class Wrong(AssertionError):
    """What was to be proven is not so."""


def hold(true: object, said: str) -> None:
    if not true:
        raise Wrong(said)


@dataclass
class Attempt:
    """A process under way, whose words go to ``log``; which is killed with its children where it does not end."""

    pid: int
    log: Path
    begun: float = field(default_factory=time.monotonic)
    code: int | None = None

    def over(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def send(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> int:
        end = time.monotonic() + seconds
        while not self.over():
            if time.monotonic() > end:
                for pid in (*descendants(self.pid), self.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise Wrong(f"no end after {seconds:.0f} s: {self.said[-500:]}")
            time.sleep(0.002)
        return self.code

    def until(self, seen: Callable[[], bool], seconds: float = 60, nap: float = 0.0) -> bool:
        """Look as often as can be until ``seen`` or the end; whether it was seen."""
        end = time.monotonic() + seconds
        while not seen():
            if self.over() or time.monotonic() > end:
                return False
            time.sleep(nap)
        return True

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def line(self) -> str:
        """The last line, which is the error's."""
        return (self.said.strip().splitlines() or [""])[-1]


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def forked(argv: list[str], log: Path, before: Callable[[], None] = lambda: None, **env: str) -> Attempt:
    """``nearfar ARGV`` in a fork of this process; ``before`` is called in it first."""

    def command() -> int:
        from nearfar.cli import main

        os.environ.update(env)
        before()
        return main(argv)

    return called(command, log)


def called(job: Callable[[], int | None], log: Path) -> Attempt:
    """A function in a fork of this process; what it returns is the exit code."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Attempt(pid, log)
    code = 70
    try:
        os.setpgid(0, 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = job() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def fresh(argv: list[str], log: Path, *, python: tuple[str, ...] = ("-m", "nearfar"), **env: str) -> Attempt:
    """``python -m nearfar ARGV``, from nothing."""
    words = [sys.executable, *python, *argv]
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    whole = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    to = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
    try:
        return Attempt(os.posix_spawn(sys.executable, words, whole, file_actions=to, setpgroup=0), log)
    finally:
        os.close(out)


def warm(argv: list[str], log: Path) -> None:
    """Import here what a command imports, as a child that ran it once says; this process stays one thread."""
    names = log.with_suffix(".modules")

    def first() -> int:
        from nearfar.cli import main

        code = main(argv)
        names.write_text("\n".join(sorted(sys.modules)))
        return code

    attempt = called(first, log)
    hold(attempt.wait() == 0, f"the first run fails: {attempt.said[-500:]}")
    for name in names.read_text().split():
        if name not in ("__main__", "__mp_main__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    hold(len(os.listdir("/proc/self/task")) == 1, "imports have started threads: no fork would be safe")


@dataclass(frozen=True)
class Ground:
    """A folder with data in it: 300 handwritten digits without labels, and 200 with labels beside 60 to judge by."""

    folder: Path
    labelled: Path
    plain: Path
    short: bool = False

    def begin(self, out: Path, *flags: str) -> list[str]:
        """The words of a small training on the plain images."""
        return ["train", str(self.plain), *once("--width", "8", "--batch", "32", *flags), "--out", str(out)]

    def whole(self, *flags: str) -> Path:
        """The uninterrupted run that others are held against, in a process of its own (in short a fork)."""
        run = self.folder / "-".join(["whole", *flags]).replace(":", "-").replace("--", "-")
        if not run.exists():
            attempt = (forked if self.short else fresh)(self.begin(run, *flags), self.folder / "whole.log")
            hold(attempt.wait() == 0, f"{flags}: {attempt.said[-800:]}")
        return run


def once(*words: str) -> list[str]:
    """The last of each flag's values."""
    return [w for pair in dict(zip(words[::2], words[1::2])).items() for w in pair]


def ground(folder: Path, short: bool) -> Ground:
    from sklearn.datasets import load_digits

    held = load_digits()
    x, y = np.round(held.images * (255 / 16)).astype(np.uint8), held.target
    y = y % 3  # three kinds, so that judging is quick
    np.savez(folder / "digits.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:260], y_test=y[200:260])
    np.save(folder / "plain.npy", x[:300])
    made = Ground(folder, folder / "digits.npz", folder / "plain.npy", short)
    warm(["train", str(made.labelled), "--width", "8", "--batch", "32", "--steps", "12", "--out", str(folder / "warm")],
         folder / "warm.log")  # fmt: skip
    return made


def checkpoints(run: Path) -> list[Path]:
    """Whole ones, the first first."""
    return sorted((run / "checkpoints").glob("step-*"))


def side(run: Path, of: str = "") -> bool:
    """Whether a checkpoint is being written, or was when its process, ``.PID``, was killed."""
    try:
        return any(e.name.startswith(".step-") and e.name.endswith(of) for e in os.scandir(run / "checkpoints"))
    except FileNotFoundError:
        return False


def weights(run: Path) -> tuple[str, str]:
    """The last checkpoint's name, and SHA-256 of its weights' file."""
    last = checkpoints(run)[-1]
    return last.name, hashlib.sha256((last / "method.safetensors").read_bytes()).hexdigest()


def rows(run: Path) -> list[dict]:
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES}
            for line in (run / "metrics.jsonl").read_text().splitlines()]  # fmt: skip


def judged(run: Path) -> object:
    """Results, but for what they say of time."""
    path = run / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


def same(run: Path, reference: Path) -> None:
    """Weights to the bit, rows one by one, results: fails where anything differs."""
    hold(weights(run) == weights(reference), f"{run}: weights differ: {weights(run)}, {weights(reference)}")
    a, b = rows(run), rows(reference)
    hold([r["step"] for r in a] == [r["step"] for r in b], f"{run}: rows lost or doubled: {[r['step'] for r in a]}")
    wrong = [(r["step"], k) for r, s in zip(a, b) for k in r.keys() | s.keys() if r.get(k) != s.get(k)]
    hold(not wrong, f"{run}: rows differ: {wrong[:5]}")
    hold(judged(run) == judged(reference), f"{run}: results differ")
    hold(not side(run), f"{run}: a half-written checkpoint is left")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes away where all went well."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
