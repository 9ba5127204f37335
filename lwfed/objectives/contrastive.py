"""Instance discrimination: symmetric InfoNCE over pairs of modalities, with negatives from all ranks of a client."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from types import MappingProxyType

import torch
from jaxtyping import Float, Int64
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
    projections: Mapping[str, Float[Tensor, "_b P"]],
    *,
    temperature: float | Tensor,
    rows: Mapping[str, Int64[Tensor, " _b"]] = MappingProxyType({}),
) -> Float[Tensor, ""] | None:
    """Returns the mean of `info_nce` over the pairs of modalities, each over the examples that have both.

    Args:
        projections: Modality -> projections.
        temperature: T.
        rows: Modality -> the examples that have it, increasing and on the CPU, if not all do.

    Returns:
        This rank's share, as in `info_nce`; None if no pair has two examples, which alone have negatives.
    """
    pairs = (
        (_of(projections[m], own), _of(projections[k], other))
        for m, k in combinations(sorted(projections), 2)
        for own, other in [common_rows(rows.get(m), rows.get(k))]
    )
    losses = [info_nce(a, b, temperature=temperature) for a, b in pairs if len(a) > 1]
    return torch.stack(losses).mean() if losses else None


def common_rows(
    a: Int64[Tensor, " a"] | None, b: Int64[Tensor, " b"] | None
) -> tuple[Int64[Tensor, " c"] | None, Int64[Tensor, " c"] | None]:
    """Returns where each of two modalities has the projections of the examples that have both; None: all, in order.

    Args:
        a: The examples that have the first modality, increasing; None: all examples.
        b: Those that have the second.
    """
    if a is None or b is None:
        return b, a
    return torch.isin(a, b).nonzero().flatten(), torch.isin(b, a).nonzero().flatten()


def _of(projections: Tensor, rows: Tensor | None) -> Tensor:
    return projections if rows is None else projections.index_select(0, rows.to(projections.device))
