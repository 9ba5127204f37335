"""Concatenation of the projections and their co-attended vectors; see `lwfed.models.fusions.concat_coattention`."""

from __future__ import annotations

from collections.abc import Sequence

from lwfed.catalog.blocks import linear
from lwfed.catalog.costs import Count, Unit, UnitCost
from lwfed.catalog.fusion import FusionDescription
from lwfed.types.tensors import TensorSpec


def unit(modalities: Sequence[str], width: int) -> Unit:
    """Returns the tensors and costs: it saves the joined projections, their keys, and two maps of P x P per pair."""
    count = len(modalities)
    keys: dict[str, TensorSpec] = {}
    for modality in modalities:
        keys |= linear(f"key.{modality}", width, width)
    maps = count * (count - 1) * width * width
    products = count * width * width
    return Unit(
        tensors=keys,
        cost=UnitCost(
            forward=Count(2 * (products + maps)),
            backward=Count(4 * (products + maps)),
            saved=Count(2 * count * width + maps),
            weight_copies=products,
        ),
    )


DESCRIPTION = FusionDescription(
    width=lambda count, width: 2 * count * width,
    what="and what each attends to in the others are concatenated",
    usage="""\
fusion = load_file(here / "heads/fusion.safetensors", device=device)
names = sorted(name.removesuffix(".weight") for name in fusion if name.endswith(".weight"))
layers = [(fusion[f"{name}.weight"], fusion[f"{name}.bias"]) for name in names]
keys = [nn.functional.linear(part, *layer).tanh() for part, layer in zip(projected, layers)]


def attended(m):  # what modality m attends to in the others
    others = [k for k in range(len(keys)) if k != m]
    maps = [(keys[m][:, :, None] * keys[k][:, None, :]).softmax(2) for k in others]
    return sum((a @ projected[k][:, :, None])[:, :, 0] for a, k in zip(maps, others)) / len(others)


fused = torch.cat([*projected, *map(attended, range(len(keys)))], dim=1)
""",
    unit=unit,
    fewest=2,
)
