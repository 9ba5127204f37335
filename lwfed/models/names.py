"""Names: the map between canonical tensor names and those of the libraries, which change between releases.

Canonical: `<modality>.stem.*`, `<modality>.blocks.<i>.*`, `<modality>.norm.*`; the rest is the library's name.
"""

from __future__ import annotations

from lwfed.models.protocol import Prefixes


def to_library(name: str, *, prefixes: Prefixes) -> str:
    """Converts an encoder's canonical name, without the modality, to the library's.

    Args:
        name: A name such as `blocks.3.attn.qkv.weight`.
        prefixes: Prefixes of the encoder's family.

    Raises:
        ValueError: No tensor of the encoder has that name.
    """
    part, _, rest = name.partition(".")
    prefix = prefixes._asdict().get(part)
    if prefix is None:
        raise ValueError(f"this encoder has no tensor `{name}`")
    return f"{prefix}{rest}"


def to_canonical(name: str, *, prefixes: Prefixes) -> str:
    """Converts a library's name to the canonical one, without the modality; the inverse of `to_library`."""
    for part in ("blocks", "norm", "stem"):  # the stem last: its prefix may be empty
        prefix = getattr(prefixes, part)
        if prefix is not None and name.startswith(prefix):
            return f"{part}.{name.removeprefix(prefix)}"
    raise ValueError(f"the library's model has no tensor `{name}`")
