"""Names: the one map between canonical tensor names and those of the libraries, which drift between releases.

Canonical: `<modality>.stem.*`, `<modality>.blocks.<i>.*`, `<modality>.norm.*`; what follows the unit is the library's.
"""

from __future__ import annotations

from lwfed.models.protocol import Prefixes


def to_library(name: str, *, prefixes: Prefixes) -> str:
    """Turns an encoder's canonical name, without the modality, into the library's.

    Args:
        name: Such as `blocks.3.attn.qkv.weight`.
        prefixes: Those of the encoder's family.

    Raises:
        ValueError: No tensor of an encoder has that name.
    """
    part, _, rest = name.partition(".")
    prefix = prefixes._asdict().get(part)
    if prefix is None:
        raise ValueError(f"`{name}` is no name of this encoder")
    return f"{prefix}{rest}"


def to_canonical(name: str, *, prefixes: Prefixes) -> str:
    """Turns a library's name into the canonical one, without the modality; the inverse of `to_library`."""
    for part in ("blocks", "norm", "stem"):  # the stem last: its prefix may be empty
        prefix = getattr(prefixes, part)
        if prefix is not None and name.startswith(prefix):
            return f"{part}.{name.removeprefix(prefix)}"
    raise ValueError(f"`{name}` is no name of the library's model")
