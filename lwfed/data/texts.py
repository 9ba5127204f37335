"""Text that people write, checked before it is used: not compressed, no key twice, no half of a character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwfed.types.errors import DataError

_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


def refuse_compressed(path: Path, content: bytes) -> None:
    """Raises DataError if a file is compressed."""
    if content.startswith(_COMPRESSED):
        raise DataError(f"{path} is compressed", remedy="decompress it, for example by gunzip, under the same name")


def is_unicode(text: str) -> bool:
    """Returns whether a text has no half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object. Raises KeyError with a key that it has twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise KeyError(next(key for key in keys if keys.count(key) > 1))
    return values
