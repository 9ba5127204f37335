"""Seeds: hex text derived from names, without a global generator; the same name gives the same numbers everywhere."""

from __future__ import annotations

import hashlib

from lwfed.types.canonical import canonical


def derive(seed: str | int, *names: str | int) -> str:
    """Derives a seed from a parent seed and a path of names.

    Args:
        seed: The parent seed: hex text, or the spec's integer.
        names: What the seed is for, such as `("init", "image.blocks.3")`.

    Returns:
        64 hex digits.
    """
    return hashlib.sha256(canonical([str(seed), *names])).hexdigest()


def as_int(seed: str) -> int:
    """Returns the seed as an integer in [0, 2^63), for generators that need one."""
    return int(seed[:16], 16) >> 1
