"""Variants of presets: `PRESET@VARIANT` is the preset with a few keys changed, as listed in variants.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from lwfed.spec.document import read_yaml
from lwfed.types.section import Section

MARK = "@"
"""Between a preset's name and the names of its variants."""


class Variants(Section):
    """Variants that differ in one respect, of which at most one is chosen.

    Attributes:
        about: What they change.
        of: The presets that have them.
        variants: Name -> dotted key of the spec -> value.
    """

    about: str
    of: tuple[str, ...]
    variants: dict[str, dict[str, Any]]


@cache
def all_variants() -> tuple[Variants, ...]:
    """Returns all variants, in the order of the file."""
    text = (resources.files("lwfed.spec") / "variants.yaml").read_text(encoding="utf-8")
    return tuple(Variants.model_validate(values) for values in read_yaml(text)["variants"])


def variants_of(preset: str) -> Iterator[tuple[str, Variants]]:
    """Yields the variants of a preset: their names, and the variants to which each belongs."""
    for group in all_variants():
        if preset in group.of:
            yield from ((name, group) for name in group.variants)


def variant_names() -> list[str]:
    """Returns the names of all presets with one variant, such as `coco-layerwise@90_lh10_lr`."""
    presets = sorted({preset for group in all_variants() for preset in group.of})
    return [f"{preset}{MARK}{name}" for preset in presets for name, _ in variants_of(preset)]
