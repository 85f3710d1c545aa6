"""Freed memory is kept on request, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from foundation.allocator import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
def work():
    for _ in range(20):
        several = [np.ones(200_000) for _ in range(10)]
        del several
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> tuple[int, int]:
    command = [sys.executable, "-c", FAULTS, what]
    kept, count = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(kept), int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_arrays_reuse_memory() -> None:
    kept, some = faults("keep")
    _, many = faults("leave")
    assert kept == 1
    assert some < 100 < many
