"""Memory that a round frees stays with the process until the round's end, for the next tensors.

glibc asks the system for each block of more than 32 MiB, and the system clears each page when first used. A lean
step takes and frees gradients of 190 MB, a client twice that for moments: clearing took a third of the CPU time. So
blocks come from the heap, whose free parts are given back once a round: else its holes would add up.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt(3)."""
LARGEST = 2**31 - 1


@lru_cache(maxsize=1)
def reuse_memory() -> bool:
    """Keeps what this process frees, from now on. Returns whether the C library can; glibc does."""
    mallopt = _function("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is None:
        return False
    mallopt(M_ARENA_MAX, 1)  # the heaps of threads have no room for such blocks
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))


def give_back() -> None:
    """Returns the memory that is free now to the system."""
    trim = _function("malloc_trim", ctypes.c_size_t)
    if trim is not None:
        trim(0)


@lru_cache(maxsize=2)
def _function(name: str, *arguments: Any) -> Any:
    """Returns a function of the C library; None if it has no such function."""
    try:
        found = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library; TypeError: Windows
        return None
    found.argtypes, found.restype = arguments, ctypes.c_int
    return found
