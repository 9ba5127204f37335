"""Descriptions of fusions: what the rest of lwfed must know about a fusion without loading torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lwfed.catalog import describe
from lwfed.catalog.costs import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionDescription:
    """A way to join the projections of several modalities into one vector.

    Attributes:
        width: Number of modalities M and width P of a projection -> width of the fused vector.
        what: What happens to the projections, as the rest of a sentence that starts with them.
        usage: Python that computes `fused` [B, F] from `projected`, a list of tensors [B, P] in the order of the
            modalities' names. It may use `load_file`, `here` (an export's folder, with the parameters in
            `heads/fusion.safetensors`) and `device`.
        unit: Returns the tensors and costs of a fusion with parameters, from the modalities' names and P; None for a
            fusion without. With parameters the model has a unit `fusion`, which every stage trains and exchanges.
        fewest: Smallest number of modalities for which it is defined.
    """

    width: Callable[[int, int], int]
    what: str
    usage: str
    unit: Callable[[Sequence[str], int], Unit] | None = None
    fewest: int = 1


def fusion_kind(name: str) -> FusionDescription:
    """Returns the description of a fusion."""
    description: FusionDescription = describe("fusions", name).DESCRIPTION
    return description
