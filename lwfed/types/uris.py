"""Places that people name: paths, file URIs, and URIs of other schemes."""

from __future__ import annotations

import re
from pathlib import Path

from lwfed.types.errors import SpecError

S3 = "s3://"
_BUCKET = re.compile(r"[a-zA-Z0-9.\-_]{3,255}")
_FILE = re.compile(r"(?i:file:(//(localhost)?(?=/)|(?=/[^/])))(?P<path>/[^?#]*)")  # RFC 8089
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_NO_COLON = re.compile(r"(?i)(s3|https?|file|gs|ftp)//(?P<rest>.*)")
_VARIABLE = re.compile(r"\$(\{\w+\}|[A-Za-z_]\w*)")


def scheme_of(place: str) -> str:
    """Returns the scheme of a URI in lower case, as `s3` of `s3://bucket`, `s3:/bucket` or `S3:bucket`; "" for a path.

    A path whose first part has a colon starts with `./`.
    """
    found = _SCHEME.match(place)
    return found[1].lower() if found else ""


def refuse_mistaken(place: str, *, key: str) -> None:
    """Refuses what is a path by its letters and not by its meaning: it would become a folder of a strange name.

    Folders that exist under such names are taken, but for a scheme without its colon.

    Args:
        place: The path or URI.
        key: The key or option that names it, for messages.

    Raises:
        SpecError: It starts or ends with blanks, has a variable or a `~` that nothing expands, or lacks a colon.
    """
    variable, home = _VARIABLE.search(place), re.search(r"(?<=/)~(?=/|$)", place)
    if found := _NO_COLON.fullmatch(place):
        scheme, rest = found[1].lower(), found["rest"]
        raise SpecError(
            f"`{key}` {place} lacks its colon", remedy=f"write {scheme}://{rest}, or ./{place} for a folder"
        )
    if place != place.strip() and place.strip() and not Path(place).exists():
        raise SpecError(f"`{key}` {place!r} starts or ends with a blank", remedy="name it without blanks around it")
    for part, remedy in (
        (variable, "variables are not expanded: write out what {} stands for"),
        (home, "write the path out: {} stands for the home only at the start"),
    ):
        if part and not Path(place[: part.end()] + place[part.end() :].partition("/")[0]).exists():
            raise SpecError(f"`{key}` {place} has {part[0]} in it", remedy=remedy.format(part[0]))


def bucket_of(uri: str, *, key: str) -> tuple[str, str]:
    """Returns the bucket and the prefix of `s3://bucket/prefix`, without slashes around it.

    Args:
        uri: The URI.
        key: The key or option that names it, for messages.

    Raises:
        SpecError: It names no bucket.
    """
    bucket, _, prefix = uri.removeprefix(S3).partition("/")
    if not uri.startswith(S3) or not _BUCKET.fullmatch(bucket):
        raise SpecError(f"`{key}` {uri} names no bucket", remedy="write it as s3://bucket/prefix")
    return bucket, prefix.strip("/")


def absolute(place: str) -> str:
    """Returns a folder's absolute path, with `~` expanded; the URI of one in a bucket unchanged."""
    return place if place.startswith(S3) else str(Path(place).expanduser().absolute())


def folder_of(place: str, *, key: str, others: str = "") -> str:
    """Returns the path of a folder that is named as a path or as `file:///path`.

    Args:
        place: The path or URI.
        key: The key or option that names it, for messages.
        others: What else may be named, in words.

    Raises:
        SpecError: It is empty, or a URI of another scheme or without an absolute path.
    """
    refuse_mistaken(place, key=key)
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
