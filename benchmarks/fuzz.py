"""Feed it anything: mutated recipes, annotations, arrays, archives, pictures and run folders, by the ten thousand.

    python benchmarks/fuzz.py --inputs 2000
    python benchmarks/fuzz.py --kinds png --seed 17 --inputs 1 --keep png-17     # one input again, kept in a folder

Each input is a valid file, made or real, and mutated: bits, bytes, runs, cuts, splices, interesting integers; JSON,
TOML, XML and zips by their structure, too. It is to be read, or refused by a ``UserError`` of one line, as the command
does with exit code 2. Anything else is a finding, printed with its seed: another exception, a warning that escapes,
more than ten seconds, more than two gigabytes, a file that is left where none was to be, text that became more than
text in a report.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz_inputs import Input, Make
from fuzz_runs import a_run, kinds

from nearfar.cli import main as command
from nearfar.errors import UserError

SECONDS, BYTES, LINE = 10, 2 * 2**30, 400
COMMANDS = 10  # every tenth of what is refused is given to the command, too


class Hangs(BaseException):
    """Ten seconds are over."""


def _alarm(number: int, frame: object) -> None:
    raise Hangs


def _files(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if p.name != "report.html"}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tried(make: Make, seed: int, keep: Path | None = None) -> str:
    """``read``, ``refused``, or what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = make(folder, np.random.default_rng(seed))
        if keep:
            shutil.copytree(folder, keep)
        before, peak = _files(folder), _peak()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            said = _done(given)
            if said == "refused" and given.words and seed % COMMANDS == 0:
                said = _commanded(given)
        if warned:
            return f"warns: {warned[0].message} at {Path(warned[0].filename).name}:{warned[0].lineno}"
        if _peak() - peak > BYTES:
            return f"takes {(_peak() - peak) >> 20} MB"
        left = _files(folder) - before if said == "refused" else ()
        return f"leaves {sorted(p.name for p in left)[:3]}" if left else said


def _guarded(do: Callable[[], str]) -> str:
    """What it gives, or the exception or the hang that it ends in."""
    before = signal.signal(signal.SIGALRM, _alarm)
    try:
        signal.alarm(SECONDS)
        return do()
    except Hangs:
        return "hangs: " + traceback.format_exc().splitlines()[-3].strip()
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f for f in where if "nearfar" in f.filename] or where
        return f"{type(error).__name__}: {str(error)[:150]!r} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _done(given: Input) -> str:
    def do() -> str:
        try:
            given.read()
        except UserError as error:
            text = str(error)
            fine = text and len(re.sub(r"/\S*/", "", text)) <= LINE and text.isprintable()
            return "refused" if fine else f"not one line: {text!r}"
        return "read"

    return _guarded(do)


def _commanded(given: Input) -> str:
    """The command refuses it, too: exit code 2, and lines of ours alone on stderr."""
    err = io.StringIO()

    def do() -> str:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = command(list(given.words))
        lines = err.getvalue().splitlines()
        fine = code == 2 and lines and all(line.startswith("nearfar: ") for line in lines)
        return "refused" if fine else f"{given.words[0]}: exit code {code}, {err.getvalue()!r:.300}"

    return _guarded(do)


def fuzz(
    chosen: list[str], inputs: Callable[[str], int], seed: int, show: Callable[[str], None] = print,
    keep: Path | None = None,
) -> dict[str, Counter]:  # fmt: skip
    """Try so many inputs of each chosen kind, or of all; how many were read, refused, and are findings, by kind."""
    was = os.environ.get("NEARFAR_CACHE")
    os.environ["NEARFAR_CACHE"] = "off"
    found: dict[str, Counter] = {}
    try:
        with tempfile.TemporaryDirectory() as name:
            known = kinds(a_run(Path(name)))
            show(f"| {'kind':12} | {'inputs':>7} | {'refused':>8} | {'accepted':>8} | {'findings':>8} | {'s':>5} |")
            for kind in chosen or known:
                count, begun = Counter(), time.perf_counter()
                for i in range(seed, seed + inputs(kind)):
                    said = tried(known[kind], i, keep)
                    if said not in ("read", "refused"):
                        show(f"  {kind} --seed {i}: {said}")
                        said = "finding"
                    count[said] += 1
                found[kind] = count
                cells = (f"{count[said]:8,}" for said in ("refused", "read", "finding"))
                show(f"| {kind:12} | {inputs(kind):7,} | {' | '.join(cells)} | {time.perf_counter() - begun:5.0f} |")
    finally:
        os.environ.pop("NEARFAR_CACHE")
        os.environ |= {} if was is None else {"NEARFAR_CACHE": was}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files of one input, before they are read")
    given = parser.parse_args()
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.name == "posix" else 0
    resource.setrlimit(resource.RLIMIT_AS, (here + 2 * BYTES, resource.RLIM_INFINITY))
    found = fuzz(given.kinds, lambda kind: given.inputs, given.seed, lambda text: print(text, flush=True), given.keep)
    total = sum(found.values(), Counter())
    print(f"{total.total():,} inputs, {total['finding']:,} findings")
    raise SystemExit(1 if total["finding"] else 0)


if __name__ == "__main__":
    main()
