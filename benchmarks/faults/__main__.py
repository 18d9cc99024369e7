"""Faults, really made: what a run survives, as a table for docs/reliability.md.

    python benchmarks/faults                    every row, about 20 minutes on one core
    python benchmarks/faults kills damage       some of them
    python benchmarks/faults --short kills      a short form, which the tests run

Exits with 1 where anything is not as it should be.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from attempts import Wrong, ground, scratch

ROWS = {
    "kills": "SIGKILL at random instants, resumed each time",
    "damage": "a checkpoint's file cut short, or a bit flipped",
    "disk": "the disk full while a checkpoint is written",
    "stopping": "SIGTERM, SIGUSR1, Ctrl-C; to one process, and to one of two",
    "elastic": "SIGKILL of one of two processes under `torchrun --max-restarts 3`",
    "finite": "a loss that is not finite",
    "memory": "memory that runs out in a step",
    "feeding": "an image that goes bad while training streams it",
    "twice": "two commands on one run's folder",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--short", action="store_true")
    given = parser.parse_args()
    bad = 0
    with scratch() as folder:
        made = ground(folder, given.short)
        for name in given.rows or ROWS:
            begun = time.monotonic()
            try:
                what = importlib.import_module(name).prove(made)
            except Wrong as error:
                bad, what = 1, f"WRONG: {error}"
            print(f"| {ROWS[name]} | {what} | `python benchmarks/faults {name}` | {time.monotonic() - begun:.0f} s |",
                  flush=True)  # fmt: skip
        if bad:
            print(f"what was left behind lies in {folder}", file=sys.stderr)
            folder.rename(folder.with_name(folder.name + "-wrong"))
    return bad


if __name__ == "__main__":
    sys.exit(main())
