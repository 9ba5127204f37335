"""Opens the store that a URI names."""

from __future__ import annotations

from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.types.errors import SpecError


def open_store(uri: str) -> Store:
    """Opens the store at a URI: a folder, `file://...` or `s3://bucket/prefix`.

    Raises:
        SpecError: The URI has an unknown scheme.
    """
    scheme, sign, rest = uri.partition("://")
    if sign and scheme == "s3":
        from lwfed.store.s3.store import S3Store

        return S3Store(uri)
    if sign and scheme != "file":
        raise SpecError(f"`store.uri` {uri}: there is no store for {scheme}://", remedy="name a folder, or s3://bucket")
    return LocalStore(rest if sign else uri)
