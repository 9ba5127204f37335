"""A spec on its way to other machines: with its places whole, and as one string, long ones by way of the store."""

from __future__ import annotations

import json
from pathlib import Path

from lwfed.spec.load import build_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.canonical import canonical, digest_of
from lwfed.types.errors import NotFoundError, SpecError

LONGEST = 32 * 1024
"""Bytes of a spec that travels as text: a pod takes 128 KiB of arguments in all."""
MARK = "sha256:"


def pack_spec(spec: RunSpec, *, store: Store | None) -> str:
    """Returns a spec as one string; the same for equal specs.

    Args:
        spec: The experiment.
        store: Where a long one is written; None only looks, and writes nothing.

    Returns:
        Canonical JSON, or `sha256:` and the digest of what the store holds.
    """
    values = to_values(spec)
    text = canonical(values)
    if len(text) <= LONGEST:
        return text.decode()
    digest = digest_of(values)
    if store is not None:
        store.write_ref(paths.spec(digest), values)
    return MARK + digest


def unpack_spec(text: str, *, store: Store) -> RunSpec:
    """Returns the spec of a string that `pack_spec` made.

    Raises:
        NotFoundError: The store does not hold it.
        SpecError: It is no spec, or the store holds another one.
    """
    if text.startswith(MARK):
        digest = text.removeprefix(MARK)
        values = store.read_ref(paths.spec(digest))
        if values is None:
            raise NotFoundError(
                f"the store {store.uri} has no spec {digest[:12]}", remedy="submit the experiment again"
            )
        if digest_of(values) != digest:
            raise SpecError(f"the spec {digest[:12]} of the store is damaged", remedy="submit the experiment again")
        return build_spec(values)
    try:
        return build_spec(json.loads(text))
    except ValueError as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"the spec is not JSON: {error}", remedy="pass what `lwfed compile` writes") from None


def placed(spec: RunSpec, *, store: Store) -> RunSpec:
    """Writes places out whole, so that a run can be gone on with from any folder."""
    root = None if spec.data.root is None else str(Path(spec.data.root).expanduser().absolute())
    return spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"root": root}),
            "store": spec.store.model_copy(update={"uri": store.uri}),
        }
    )
