"""Names: the one map between canonical tensor names and those of the libraries, which drift between releases.

Canonical: `<modality>.stem.*`, `<modality>.blocks.<i>.*`, `<modality>.norm.*`; what follows the unit is the library's.
"""

from __future__ import annotations

from lwfed.plan.units import FAMILIES_WITH_FINAL_NORM

BLOCKS = {"vit": "blocks.", "distilbert": "transformer.layer.", "ast": "layers."}
"""Family -> prefix of a block's number in the library's model."""

STEM = {"vit": "", "distilbert": "embeddings.", "ast": "embeddings."}
"""Family -> prefix of the stem's tensors in the library's model."""

NORM = {"vit": "norm.", "ast": "layernorm."}
"""Family -> prefix of the final norm in the library's model, where there is one."""


def to_library(name: str, *, family: str) -> str:
    """Turns an encoder's canonical name, without the modality, into the library's.

    Args:
        name: Such as `blocks.3.attn.qkv.weight`.
        family: `vit`, `distilbert` or `ast`.
    """
    part, _, rest = name.partition(".")
    prefixes = {"stem": STEM[family], "blocks": BLOCKS[family]}
    if family in FAMILIES_WITH_FINAL_NORM:
        prefixes["norm"] = NORM[family]
    if part not in prefixes:
        raise ValueError(f"`{name}` is no name of a {family} encoder")
    return prefixes[part] + rest


def to_canonical(name: str, *, family: str) -> str:
    """Turns a library's name into the canonical one, without the modality; the inverse of `to_library`."""
    if name.startswith(BLOCKS[family]):
        return "blocks." + name.removeprefix(BLOCKS[family])
    if family in FAMILIES_WITH_FINAL_NORM and name.startswith(NORM[family]):
        return "norm." + name.removeprefix(NORM[family])
    if not name.startswith(STEM[family]):
        raise ValueError(f"`{name}` is no name of a {family} model")
    return "stem." + name.removeprefix(STEM[family])
