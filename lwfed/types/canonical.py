"""Canonical JSON, and digests of it."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any


def canonical(value: Any) -> bytes:
    """Encodes a JSON value in its canonical form: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse(data: bytes) -> Any:
    """Parses JSON. Raises ValueError if it is not JSON, or has a number that JSON lacks or levels without end."""
    try:
        return json.loads(data, parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        raise ValueError("it has too many levels") from None


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _refused(text)


def _refused(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def digest_of(value: Any) -> str:
    """Returns the sha256, as 64 hex digits, of a JSON value's canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def readable(value: Any) -> bytes:
    """Encodes a JSON value for people: indented, with sorted keys and a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def by_line(value: Any) -> bytes:
    """Encodes a JSON value like `readable`, but only its first two levels have a line per key.

    `json` indents in pure Python, which is slow; it writes a value without indentation in C.
    """
    return (_indented(value, 2, "\n") + "\n").encode()


def _indented(value: Any, levels: int, line: str) -> str:
    if not levels or not value or not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    inner = line + " "
    names = ((json.dumps(name, ensure_ascii=False), name) for name in sorted(value))
    entries = (f"{quoted}: {_indented(value[name], levels - 1, inner)}" for quoted, name in names)
    return "{" + inner + ("," + inner).join(entries) + line + "}"
