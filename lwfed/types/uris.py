"""Places that people name: paths, file URIs, and URIs of other schemes."""

from __future__ import annotations

import re

from lwfed.types.errors import SpecError

_FILE = re.compile(r"(?i:file:(//(localhost)?(?=/)|(?=/[^/])))(?P<path>/[^?#]*)")  # RFC 8089
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def scheme_of(place: str) -> str:
    """Returns the scheme of a URI in lower case, as `s3` of `s3://bucket`, `s3:/bucket` or `S3:bucket`; "" for a path.

    A path whose first part has a colon starts with `./`.
    """
    found = _SCHEME.match(place)
    return found[1].lower() if found else ""


def folder_of(place: str, *, key: str, others: str = "") -> str:
    """Returns the path of a folder that is named as a path or as `file:///path`.

    Args:
        place: The path or URI.
        key: The key or option that names it, for messages.
        others: What else may be named, in words.

    Raises:
        SpecError: It is empty, or a URI of another scheme or without an absolute path.
    """
    scheme, remedy = scheme_of(place), f"name a folder{others}; write ./{place} if it is one"
    if not place.strip():
        raise SpecError(f"`{key}` is empty", remedy=f"name a folder{others}")
    if not scheme:
        return place
    if scheme != "file":
        raise SpecError(f"`{key}` {place}: the scheme {scheme}: is unknown", remedy=remedy)
    named = _FILE.fullmatch(place)
    path = _ESCAPE.sub(lambda escape: bytes.fromhex(escape[1].decode()), named["path"].encode()) if named else b""
    try:
        if named:
            return path.decode()
    except UnicodeDecodeError:
        pass
    raise SpecError(f"`{key}` {place} names no absolute path", remedy="write file:///folder, or the path itself")
