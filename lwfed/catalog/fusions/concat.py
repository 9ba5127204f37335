"""Projections side by side; see `lwfed.models.fusions.concat`."""

from lwfed.catalog.fusion import FusionDescription

DESCRIPTION = FusionDescription(
    width=lambda count, width: count * width,
    what="are set side by side",
    usage="fused = torch.cat(projected, dim=1)\n",
)
