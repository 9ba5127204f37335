"""Text that people write, checked before it is used: not compressed, no key twice, no half of a character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwfed.types.errors import DataError

_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_PACKED, _UNPACK = "is compressed", "decompress it, for example by gunzip, under the same name"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def refuse_compressed(path: Path, content: bytes) -> None:
    """Raises DataError if a file is compressed."""
    if content.startswith(_COMPRESSED):
        raise DataError(f"{path} {_PACKED}", remedy=_UNPACK)


def decoded_text(content: bytes, *, empty: str) -> str:
    """Returns a file's text, without a byte order mark.

    Args:
        content: The file's bytes.
        empty: The remedy if it is empty.

    Raises:
        DataError: It is empty, compressed, or not UTF-8; the problem is to follow the file's name.
    """
    if content.startswith(_COMPRESSED):
        raise DataError(_PACKED, remedy=_UNPACK)
    if not content.strip():
        raise DataError("is empty", remedy=empty)
    if content.startswith(_UTF16) or b"\0" in content:
        raise DataError("is not UTF-8 text: it has NUL bytes or is UTF-16", remedy="save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        around = content[max(error.start - 12, 0) : error.start + 12].decode("latin-1")
        raise DataError(
            f"is not UTF-8: line {line} has the byte 0x{content[error.start]:02x} in {around!r}",
            remedy="save it as UTF-8, for example by `iconv -f latin1 -t utf8`",
        ) from None


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
