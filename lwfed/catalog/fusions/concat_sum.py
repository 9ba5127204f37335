"""Concatenation of the projections and their sum; see `lwfed.models.fusions.concat_sum`."""

from lwfed.catalog.fusion import FusionDescription

DESCRIPTION = FusionDescription(
    width=lambda count, width: (count + 1) * width,
    what="and their sum are concatenated",
    usage="fused = torch.cat([*projected, sum(projected)], dim=1)\n",
    fewest=2,
)
