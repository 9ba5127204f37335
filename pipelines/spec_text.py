"""Encodes a spec as a pipeline's parameter: only the values that differ from the defaults, to keep it small.

The workflow object contains many escaped copies of it, and its size is limited: see `compile.py`.
"""

from __future__ import annotations

from typing import Any

from lwfed.run.specs import LONGEST, pack_spec
from lwfed.spec.load import build_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.canonical import canonical
from lwfed.types.section import Section

DISCRIMINATOR = "kind"
"""The key that selects one of several sections; it is always written."""


def spec_text(spec: RunSpec, *, store: Store | None = None) -> str:
    """Returns a spec as one string for `lwfed.run.specs.unpack_spec`; the same for equal specs.

    Args:
        spec: The experiment.
        store: The store for a spec that is too long; None: writes nothing.

    Returns:
        Canonical JSON, or `sha256:` and the digest of the spec in the store.
    """
    values = {"name": spec.name, **without_defaults(spec)}  # never empty: an empty spec is refused
    values.setdefault("training", {}).setdefault("rate_scaling", None)  # its absence would mean version 0.1
    if to_values(build_spec(values)) != to_values(spec):
        return pack_spec(spec, store=store)
    text = canonical(values)
    return text.decode() if len(text) <= LONGEST else pack_spec(spec, store=store)


def without_defaults(section: Section) -> dict[str, Any]:
    """Returns a section as plain values, without defaults."""
    found: dict[str, Any] = {}
    for name, field in type(section).fields().items():
        value = getattr(section, name)
        default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        if name == DISCRIMINATOR or field.is_required() or value != default:
            found[name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return without_defaults(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
