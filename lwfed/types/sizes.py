"""Sizes in bytes, as people write them: 8GiB, 500MB."""

from __future__ import annotations

import re

from lwfed.types.errors import SpecError

UNITS: dict[str, int] = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("ib", 1024), ("i", 1024))
}
"""Unit of a size, in lower case -> bytes."""


def parse_size(text: str) -> int:
    """Parses a size such as `8GiB`, `500MB`, `1.5 GB` or `1000000`.

    Args:
        text: A number and a unit: B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024).

    Returns:
        Bytes.

    Raises:
        SpecError: The text is not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", text)
    scale = UNITS.get(match[2].lower()) if match else None
    size = int(float(match[1]) * scale) if match and scale else 0
    if size <= 0:
        raise SpecError(f"`{text}` is not a size in bytes", remedy="write for example 8GiB or 500MB")
    return size
