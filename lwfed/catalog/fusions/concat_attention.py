"""Concatenation of the projections and their attention-weighted sum; see `lwfed.models.fusions.concat_attention`."""

from __future__ import annotations

from collections.abc import Sequence

from lwfed.catalog.blocks import linear
from lwfed.catalog.costs import Count, Unit, UnitCost
from lwfed.catalog.fusion import FusionDescription
from lwfed.types.tensors import TensorSpec


def unit(modalities: Sequence[str], width: int) -> Unit:
    """Returns the tensors and costs: it saves the joined projections, the values, and the modalities' weights."""
    count = len(modalities)
    values: dict[str, TensorSpec] = {}
    for modality in modalities:
        values |= linear(f"value.{modality}", width, width)
    products = count * width * count + count * width * width
    return Unit(
        tensors=linear("score", count * width, count) | values,
        cost=UnitCost(
            forward=Count(2 * products),
            backward=Count(4 * products),
            saved=Count(2 * count * width + count),
            weight_copies=products,
        ),
    )


DESCRIPTION = FusionDescription(
    width=lambda count, width: (count + 1) * width,
    what="and their sum, mapped and weighted by attention over the modalities, are concatenated",
    usage="""\
fusion = load_file(here / "heads/fusion.safetensors", device=device)


def layer(name, inputs):
    return nn.functional.linear(inputs, fusion[f"{name}.weight"], fusion[f"{name}.bias"])


joined = torch.cat(projected, dim=1)
weights = layer("score", joined).softmax(1)
names = sorted({name.rpartition(".")[0] for name in fusion} - {"score"})
values = [layer(name, part) for name, part in zip(names, projected)]
fused = torch.cat([joined, sum(weights[:, [i]] * value for i, value in enumerate(values))], dim=1)
""",
    unit=unit,
    fewest=2,
)
