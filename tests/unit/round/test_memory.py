"""Laws of memory that is freed: it serves the next tensors without being cleared, and is given back once a round."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource, threading, torch
from lwfed.round.memory import give_back
from lwfed.round.runtime import deterministic

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def take():
    torch.ones(1 << 24)  # 64 MiB, more than glibc ever takes from its heap by itself

def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1])

def cost():
    for _ in range(9):  # glibc leaves some gaps at first
        take()
    before = faults()
    for _ in range(4):
        take()
    return faults() - before

found = [cost()]
with deterministic(threads=1):
    pass
found.append(cost())
thread = threading.Thread(target=lambda: found.append(cost()))
thread.start()
thread.join()
held = resident()
give_back()
print(*found, held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_cleared_once_a_round() -> None:
    """Measured: page faults of taking and freeing 64 MiB four times, before and after, and on another thread."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    plain, kept, elsewhere, given_back = map(int, done.stdout.split())
    assert plain >= 4 * 16
    assert kept < plain / 10 and elsewhere < plain / 10
    assert given_back >= (64 << 20) // resource.getpagesize() / 2
