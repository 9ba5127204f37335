"""Instance discrimination: symmetric InfoNCE over pairs of modalities, with negatives from all ranks of a client."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lwfed import ranks


def info_nce(a: Float[Tensor, "B P"], b: Float[Tensor, "B P"], *, temperature: float | Tensor) -> Float[Tensor, ""]:
    """Returns the symmetric InfoNCE loss of two modalities.

    Van den Oord et al. 2018, arXiv 1807.03748; CLIP, arXiv 2103.00020, Fig. 3. Row i of `a` matches row i of `b`; all
    other rows, of every rank, are its negatives.

    Args:
        a: Projections of one modality; normalised here, in fp32.
        b: Projections of the other modality.
        temperature: T, by which cosine similarities are divided; a scalar tensor if it is learnt.

    Returns:
        This rank's share of the mean loss. The mean loss is the sum of the shares over ranks, and its gradient the sum
        of the gradients over ranks; with one rank the share is the whole mean.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
        all_a, first = ranks.gather(a)
        all_b, _ = ranks.gather(b)
        own = torch.arange(first, first + a.shape[0], device=a.device)
        loss = F.cross_entropy(a @ all_b.T / temperature, own, reduction="sum")
        loss = loss + F.cross_entropy(b @ all_a.T / temperature, own, reduction="sum")
        return loss / (2 * all_a.shape[0])


def contrastive_loss(
    projections: Mapping[str, Float[Tensor, "B P"]], *, temperature: float | Tensor
) -> Float[Tensor, ""]:
    """Returns the mean of `info_nce` over all pairs of modalities.

    Args:
        projections: Modality -> projections of the same examples.
        temperature: T.

    Returns:
        This rank's share, as in `info_nce`.
    """
    pairs = list(combinations(sorted(projections), 2))
    losses = [info_nce(projections[m], projections[k], temperature=temperature) for m, k in pairs]
    return torch.stack(losses).mean()
