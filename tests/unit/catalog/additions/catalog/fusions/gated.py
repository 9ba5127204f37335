"""A weighted sum of the projections, whose weights a layer draws from all of them."""

from __future__ import annotations

from collections.abc import Sequence

from lwfed.catalog.blocks import linear
from lwfed.catalog.costs import Count, Unit, UnitCost
from lwfed.catalog.fusion import FusionDescription


def unit(modalities: Sequence[str], width: int) -> Unit:
    """Keeps the projections side by side for the gate's weights, and stacked for the gate's gradient; the softmax."""
    count = len(modalities)
    products = count * width * count
    return Unit(
        tensors=linear("gate", count * width, count),
        cost=UnitCost(
            forward=Count(2 * products),
            backward=Count(4 * products),
            saved=Count(2 * count * width + count),
            weight_copies=products,
        ),
    )


DESCRIPTION = FusionDescription(
    width=lambda count, width: width,
    what="are added with weights from a layer over all of them",
    usage="""\
gate = load_file(here / "heads/fusion.safetensors", device=device)
weights = nn.functional.linear(torch.cat(projected, dim=1), gate["gate.weight"], gate["gate.bias"]).softmax(1)
fused = sum(weights[:, [i]] * part for i, part in enumerate(projected))
""",
    unit=unit,
)
