"""Alignment: local projections stay near those that the heads would compute as the client received them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lwfed import ranks


def alignment_loss(
    projections: Mapping[str, Float[Tensor, "_b P"]], targets: Mapping[str, Float[Tensor, "_b P"]]
) -> Float[Tensor, ""]:
    """Returns the sum over modalities of 1 - the mean cosine of projections and targets, in [0, 2 M].

    The objective `train_sup_advance_pa` of the public code of arXiv 2407.15426.

    Args:
        projections: Modality -> projections H_m(f) of the features f.
        targets: Modality -> projections G_m(f) of the same features by the received heads, without gradients.

    Returns:
        This rank's share: over ranks, the shares sum to the loss and their gradients to its gradient.
    """
    shares = []
    for modality in sorted(projections):
        local, target = projections[modality], targets[modality]
        with torch.autocast(local.device.type, enabled=False):
            cosine = (F.normalize(local.float(), dim=-1) * F.normalize(target.float(), dim=-1)).sum(-1)
            shares.append((1 - cosine).sum() / sum(ranks.row_counts(cosine)))
    return torch.stack(shares).sum()
