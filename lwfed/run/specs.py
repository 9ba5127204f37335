"""Specs sent to other machines: with absolute paths, as one string, or through the store if long."""

from __future__ import annotations

from lwfed.spec.load import build_spec, parse_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.spec.stored import stored_values
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.canonical import canonical, digest_of
from lwfed.types.errors import NotFoundError, SpecError
from lwfed.types.uris import absolute

LONGEST = 32 * 1024
"""Largest spec, in bytes, that is passed as text: a pod accepts 128 KiB of arguments in total."""
MARK = "sha256:"


def pack_spec(spec: RunSpec, *, store: Store | None) -> str:
    """Returns a spec as one string; equal specs give equal strings.

    Args:
        spec: The experiment.
        store: The store that a long spec is written to; None writes nothing.

    Returns:
        Canonical JSON, or `sha256:` and the digest under which the store holds the spec.
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
    """Returns the spec from a string made by `pack_spec`.

    Raises:
        NotFoundError: The store does not hold the spec.
        SpecError: The text is not a spec, or the stored spec does not match its digest.
    """
    if text.startswith(MARK):
        digest = text.removeprefix(MARK)
        values = store.read_ref(paths.spec(digest))
        if values is None:
            raise NotFoundError(
                f"the store {store.uri} has no spec {digest[:12]}", remedy="submit the experiment again"
            )
        if digest_of(values) != digest:
            raise SpecError(f"the spec {digest[:12]} in the store is damaged", remedy="submit the experiment again")
        return build_spec(stored_values(values))
    return parse_spec(text)


def with_absolute_paths(spec: RunSpec, *, store: Store) -> RunSpec:
    """Returns a spec with absolute paths, so that its run can be resumed from any folder."""
    root = None if spec.data.root is None else absolute(spec.data.root)
    return spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"root": root}),
            "store": spec.store.model_copy(update={"uri": store.uri}),
        }
    )
