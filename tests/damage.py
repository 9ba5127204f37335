"""Ways in which files and values get damaged, each drawn from a seeded generator."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

NUMBERS = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Returns a copy with up to four faults: other bits, other numbers (most in the header), cuts, holes, doubles."""
    made = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(min(len(made), 120) if rng.random() < 0.6 else len(made)))
        match rng.integers(5):
            case 0:
                made[place] ^= 1 << int(rng.integers(8))
            case 1:
                order = "<I" if rng.random() < 0.5 else ">I"
                made[place : place + 4] = struct.pack(order, NUMBERS[rng.integers(len(NUMBERS))])
            case 2:
                del made[max(place, 1) :]
            case 3:
                del made[place : place + int(rng.integers(1, 40))]
            case _:
                made[place:place] = made[place : place + int(rng.integers(1, 40))]
        made = made or bytearray(b"\0")
    return bytes(made)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hides what libraries in C write about damaged files."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, "", " ", "\0", "\ud83d", "../a", "a" * 5_000,
    [], {}, [[]], {"id": 1},
)  # fmt: skip


def altered(tree: Any, rng: np.random.Generator) -> Any:
    """Returns a json tree with a value anywhere replaced, removed or doubled."""
    if rng.random() < 0.05 or not isinstance(tree, dict | list) or not tree:
        return VALUES[rng.integers(len(VALUES))]
    key: Any = list(tree)[rng.integers(len(tree))] if isinstance(tree, dict) else int(rng.integers(len(tree)))
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    match rng.integers(6):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, list):
            copy.append(copy[key])
        case _:
            copy[key] = altered(copy[key], rng)
    return copy
