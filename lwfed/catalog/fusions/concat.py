"""Concatenation of the projections; see `lwfed.models.fusions.concat`."""

from lwfed.catalog.fusion import FusionDescription

DESCRIPTION = FusionDescription(
    width=lambda count, width: count * width,
    what="are concatenated",
    usage="fused = torch.cat(projected, dim=1)\n",
)
