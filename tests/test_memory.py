"""Freed memory is kept: a block asked for again costs no page faults. Counted, not timed, in its own process."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from nearfar.training.memory import keep_freed
if {keep}:
    assert keep_freed()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    torch.empty(2**24).fill_(1.0)  # 64 MB
before = faults()
for _ in range(10):
    torch.empty(2**24).fill_(1.0)
print(faults() - before)
"""


def faults(keep):
    got = subprocess.run([sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(got.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is asked")
def test_freed_memory_is_kept():
    kept, given_back = faults(True), faults(False)
    assert kept < 100
    assert given_back > 1000
