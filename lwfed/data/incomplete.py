"""Examples that lack a modality: which of them can be used, for what, and how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations

from lwfed.data.left_out import INCOMPLETE, too_few
from lwfed.data.protocol import Example
from lwfed.spec.model import ModelSpec


def lacked_by(example: Example, modalities: Collection[str]) -> tuple[str, ...]:
    """Returns the modalities, of those given, that an example lacks."""
    return tuple(modality for modality in modalities if modality in example.lacks)


def examples_with(examples: Sequence[Example], modalities: Iterable[str]) -> dict[str, int]:
    """Returns modality -> number of examples that have it, for the modalities that some lack; empty if none lacks any.

    Args:
        examples: The examples.
        modalities: The model's modalities.
    """
    counts = {modality: sum(example.has(modality) for example in examples) for modality in modalities}
    return {modality: count for modality, count in counts.items() if count < len(examples)}


def usable_of(examples: Iterable[Example], *, model: ModelSpec, incomplete: str) -> tuple[list[Example], Counter[str]]:
    """Selects the examples that a model can use.

    Args:
        examples: The examples.
        model: The model; its objective decides the fewest modalities that an example needs.
        incomplete: `data.incomplete`: with `skip`, an example needs all of the model's modalities.

    Returns:
        The examples, in their order, and why others are left out -> how many.
    """
    kept, left_out = list[Example](), Counter[str]()
    for example in examples:
        lacked = lacked_by(example, model.modalities)
        if lacked and incomplete == "skip":
            left_out[INCOMPLETE] += 1
        elif len(model.modalities) - len(lacked) < model.fewest_modalities:
            left_out[too_few(model.fewest_modalities)] += 1
        else:
            kept.append(example)
    return kept, left_out


def shared_by(examples: Sequence[Example], modalities: Collection[str], *, fewest: int) -> dict[tuple[str, ...], int]:
    """Returns each group of `fewest` modalities, a pair or a single one -> number of examples that have all of it."""
    groups = combinations(sorted(modalities), fewest)
    return {group: sum(not lacked_by(example, group) for example in examples) for group in groups}
