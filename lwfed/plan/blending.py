"""Hierarchical gradient blending: weights of a client's losses, and of its update, from committed losses alone.

Gradient blending (Wang et al. 2020, arXiv 1905.12681) trains a head for each modality besides the fused one, and weighs
their losses by what each gained for how much it overfitted. L* is a head's loss on held-out examples and L^T that on
training examples; between two times, G is the decrease of L* and O the increase of L* - L^T; the weight is G / O^2 up
to a common factor. In the hierarchical federated form (Chen and Li 2022, Towards Optimal Multi-modal Federated Learning
on Non-IID Data with Hierarchical Gradient Blending) every client weighs its own losses so, and the server the clients'
updates.

The two times are the last two evaluations of the global model on the clients' examples, before the round. Until a stage
has two, and for a client that was not measured, losses are summed and updates weighed as without blending.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from lwfed.plan.stages import StagePlan
from lwfed.spec.model import BlendingSpec

FUSED = "fused"
"""The head that sees all modalities; the others are called as their modality."""
ONE = 1 << 16
"""The factor of a client whose ratio is the mean one; factors are integers, so that sums of weights are exact."""


class Losses(NamedTuple):
    """Mean losses of a head for one client: on a sample of its training examples, and on those that it holds out."""

    fitted: float
    held_out: float


Heads = Mapping[str, Losses]
"""Head -> its losses."""


def losses_of(metrics: Mapping[str, float], *, modalities: Sequence[str]) -> dict[str, Losses]:
    """Returns the losses that a client's evaluation reports, of the heads for which it has both."""
    names = {FUSED: "loss"} | {modality: f"{modality}/loss" for modality in modalities}
    pairs = {
        head: Losses(metrics.get(f"fitted/{name}", math.nan), metrics.get(f"federated/{name}", math.nan))
        for head, name in names.items()
    }
    return {head: pair for head, pair in pairs.items() if all(map(math.isfinite, pair))}


def rounds_compared(plan: StagePlan, server_round: int) -> tuple[int, int] | None:
    """Returns the last two evaluated rounds before a round; None if the stage has fewer, or blends no losses."""
    if plan.model.blending is None:
        return None
    every = plan.evaluation.federated_every
    last = (server_round - 1) // every * every
    return (last - every, last) if last >= 2 * every else None


def ratio(before: Losses, after: Losses, *, least: float) -> float:
    """Returns G / O^2, and 0 if nothing was gained.

    Args:
        before: The losses at the first time.
        after: The losses at the second time.
        least: A smaller |O| counts as this one.
    """
    gained = before.held_out - after.held_out
    overfitted = (after.held_out - after.fitted) - (before.held_out - before.fitted)
    return max(gained, 0.0) / max(abs(overfitted), least) ** 2


def relative(ratios: Mapping[str, float], *, least: float) -> dict[str, float]:
    """Returns ratios divided by their mean and none below b = `least`: b + (1 - b) r / mean; 1 if the mean is 0."""
    mean = sum(map(Fraction, ratios.values())) / max(len(ratios), 1)  # exactly, so that equal ratios give exactly 1
    return {
        name: least + (1 - least) * float(Fraction(found) / mean) if mean else 1.0 for name, found in ratios.items()
    }


def head_weights(before: Heads, after: Heads, *, settings: BlendingSpec) -> dict[str, float]:
    """Returns the weights of a client's heads, which sum to their number: equal ratios give the plain sum.

    If no head gained anything, each has weight 1.

    Args:
        before: Head -> losses at the first time.
        after: Head -> losses at the second time; heads that are not in both are left out.
        settings: Bounds of the weights.
    """
    least = settings.least_overfitting
    ratios = {head: ratio(before[head], after[head], least=least) for head in before if head in after}
    return relative(ratios, least=settings.least_weight)


def blended(heads: Heads, weights: Mapping[str, float]) -> Losses:
    """Returns the loss that a client minimises: the weighted sum of its heads' losses."""
    return Losses(
        fitted=math.fsum(weight * heads[head].fitted for head, weight in weights.items()),
        held_out=math.fsum(weight * heads[head].held_out for head, weight in weights.items()),
    )


def client_factors(
    clients: Sequence[str],
    weights: Mapping[str, Mapping[str, float]],
    *,
    before: Mapping[str, Heads],
    after: Mapping[str, Heads],
    settings: BlendingSpec,
) -> dict[str, int]:
    """Returns the factors of the clients' weights: the ratio of each client's blended loss, over the mean ratio.

    Equal ratios give FedAvg, bit for bit, and so does a round before which no client gained anything. A client without
    weights of its heads has the mean ratio, and no client's factor is 0: its update still counts.

    Args:
        clients: The round's clients.
        weights: Client -> its heads' weights in this round, for those that were measured twice.
        before: Client -> its heads' losses at the first time.
        after: Client -> its heads' losses at the second time.
        settings: Bounds of the factors.
    """
    least = settings.least_overfitting
    ratios = {
        client: ratio(blended(before[client], weights[client]), blended(after[client], weights[client]), least=least)
        for client in clients
        if weights.get(client)
    }
    found = relative(ratios, least=settings.least_weight)
    return {client: max(1, round(ONE * found.get(client, 1.0))) for client in clients}
