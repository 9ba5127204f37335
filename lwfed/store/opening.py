"""Opens the store that a URI names."""

from __future__ import annotations

from lwfed.spec.federation import store_folder
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.types.uris import S3


def open_store(uri: str) -> Store:
    """Opens the store at a URI: a folder, `file:///folder` or `s3://bucket/prefix`.

    Raises:
        SpecError: The URI has an unknown scheme, or names no folder or bucket.
    """
    if uri.startswith(S3):
        from lwfed.store.s3.store import S3Store

        return S3Store(uri)
    return LocalStore(store_folder(uri))
