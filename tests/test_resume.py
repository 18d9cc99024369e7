"""A short form of benchmarks/faults: real processes, really killed, stopped, starved; resumed to the bit."""

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent.parent / "benchmarks" / "faults"


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc, forks and mounts")
def test_whatever_ends_a_run_it_is_resumed_to_the_bit():
    """Killed at random, a disk full, a bit flipped, stopped by signals, begun twice, a loss that is not finite."""
    done = subprocess.run([sys.executable, FAULTS, "--short", "kills", "disk", "damage", "stopping", "twice", "finite"],
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("\n") == 6
    assert "WRONG" not in done.stdout
