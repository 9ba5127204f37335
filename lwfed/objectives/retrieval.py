"""Retrieval metrics: Recall@k between modalities, zero-shot accuracy, and the best matches of a query.

Scores are cosine similarities, computed for a few queries at a time so that memory does not grow with queries x items.
A tie counts against the model, so a model that maps everything to one point has a recall of 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

KS = (1, 5, 10, 50)
SCORES_AT_A_TIME = 4_000_000
TIE = 1e-6
"""Scores that differ by at most this are a tie: the scores of equal vectors vary with their position in a matrix."""


def relevance(query_groups: Sequence[Collection[int]], item_groups: Sequence[Collection[int]]) -> Int64[Tensor, "Q R"]:
    """Returns the relevant items of each query: those with a group in common.

    Image to text, COCO protocol: the group of a caption is its image, so an image has up to five relevant captions;
    for text to image, each caption has one relevant image.

    Args:
        query_groups: Groups of each query.
        item_groups: Groups of each item; several if it is that of several examples.

    Returns:
        Indices of the relevant items in increasing order, padded with -1.
    """
    members: dict[int, list[int]] = {}
    for item, groups in enumerate(item_groups):
        for group in groups:
            members.setdefault(group, []).append(item)
    found = [sorted({item for group in groups for item in members.get(group, ())}) for groups in query_groups]
    most = max(map(len, found), default=0)
    return torch.tensor([[*items, *[-1] * (most - len(items))] for items in found], dtype=torch.int64)


def recall_at(
    query_embeddings: Float[Tensor, "Q P"],
    item_embeddings: Float[Tensor, "I P"],
    *,
    relevant: Int64[Tensor, "Q R"],
    ks: Sequence[int] = KS,
) -> dict[int, float]:
    """Returns Recall@k: the fraction of queries with a relevant item among the k best.

    Args:
        query_embeddings: The queries' embeddings; normalised here.
        item_embeddings: The items' embeddings; normalised here.
        relevant: Indices of each query's relevant items, padded with -1; at least one per query.
        ks: The values of k.

    Returns:
        k -> recall in [0, 1].
    """
    places = best_ranks(query_embeddings, item_embeddings, relevant=relevant)
    return {k: float((places < k).double().mean()) for k in ks}


def best_ranks(
    query_embeddings: Float[Tensor, "Q P"], item_embeddings: Float[Tensor, "I P"], *, relevant: Int64[Tensor, "Q R"]
) -> Int64[Tensor, " Q"]:
    """Returns the rank, from 0, of each query's best relevant item: the number of other items not scored below it.

    Args:
        query_embeddings: The queries' embeddings; normalised here.
        item_embeddings: The items' embeddings; normalised here.
        relevant: Indices of each query's relevant items, padded with -1; at least one per query.
    """
    places = []
    for rows, scores in _scores(query_embeddings, item_embeddings):
        right = relevant[rows]
        known = right >= 0
        own = scores.gather(1, right.clamp(min=0)).masked_fill(~known, -torch.inf)
        limit = own.amax(1, keepdim=True) - TIE
        below = (scores < limit).sum(1)  # NaN is never below, so it counts as ahead
        right_not_below = (known & ~(own < limit)).sum(1)
        places.append(scores.shape[1] - below - right_not_below)
    return torch.cat(places)


def top_k(
    query_embeddings: Float[Tensor, "Q P"], item_embeddings: Float[Tensor, "I P"], *, k: int
) -> tuple[Float[Tensor, "Q K"], Int64[Tensor, "Q K"]]:
    """Returns the k best items of each query: cosine similarities and indices, best first."""
    best = []
    for _, scores in _scores(query_embeddings, item_embeddings):
        best.append(scores.topk(min(k, scores.shape[1]), dim=1))
    return torch.cat([values for values, _ in best]), torch.cat([indices for _, indices in best])


def zero_shot_accuracy(
    image_embeddings: Float[Tensor, "N P"],
    class_embeddings: Float[Tensor, "C K P"],
    labels: Int64[Tensor, " N"],
) -> float:
    """Returns the fraction of images nearest to their own class's prompts (CLIP, arXiv 2103.00020, section 3.1).

    Args:
        image_embeddings: The images' embeddings; normalised here.
        class_embeddings: Embeddings of K prompts per class; normalised here, averaged and normalised again.
        labels: True classes.

    Returns:
        Accuracy in [0, 1].
    """
    classes = F.normalize(class_embeddings.float(), dim=-1).mean(1)
    return recall_at(image_embeddings, classes, relevant=labels[:, None], ks=(1,))[1]


def _scores(queries: Float[Tensor, "Q P"], items: Float[Tensor, "I P"]) -> Iterator[tuple[slice, Float[Tensor, "q I"]]]:
    """Yields ranges of queries and their scores against all items."""
    queries, items = F.normalize(queries.float(), dim=-1), F.normalize(items.float(), dim=-1)
    step = max(1, SCORES_AT_A_TIME // max(1, items.shape[0]))
    for start in range(0, queries.shape[0], step):
        rows = slice(start, start + step)
        yield rows, queries[rows] @ items.T
