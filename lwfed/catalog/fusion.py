"""What the rest of lwfed must know of a fusion before torch is loaded."""

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
        what: What becomes of the projections, in words that follow them.
        usage: Python that makes `fused` [B, F] of `projected`, a list of tensors [B, P] in the order of the modalities'
            names. It may use `load_file`, `here` (an export's folder, with the parameters in
            `heads/fusion.safetensors`) and `device`.
        unit: The tensors and costs of a fusion with parameters, from the names of the modalities and P; None for one
            without. With parameters the model has a unit `fusion`, which every stage trains and exchanges.
    """

    width: Callable[[int, int], int]
    what: str
    usage: str
    unit: Callable[[Sequence[str], int], Unit] | None = None


def fusion_kind(name: str) -> FusionDescription:
    """Returns the description of a fusion."""
    description: FusionDescription = describe("fusions", name).DESCRIPTION
    return description
