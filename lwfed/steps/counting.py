"""What clients train on, counted before the first round: examples, labels, and the modalities that examples lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lwfed.data.incomplete import usable_of
from lwfed.data.partition import split_validation
from lwfed.data.protocol import Example
from lwfed.plan.stages import StagePlan
from lwfed.round.shares import shares_at, shares_of, split_share
from lwfed.spec.model import ModelSpec
from lwfed.spec.run import RunSpec
from lwfed.steps.incomplete import lacking, refuse_untaught


class ClientCounts(NamedTuple):
    """Counts of all clients' examples.

    Attributes:
        sizes: Client -> number of examples it trains on.
        lacks: Client -> modality -> number of these that lack it, if any do.
        labels: Label, as text -> number of training examples.
        used: Number of examples of all shares, held-out ones included.
    """

    sizes: dict[str, int]
    lacks: dict[str, dict[str, int]]
    labels: Counter[str]
    used: int


def count_clients(spec: RunSpec, plan: StagePlan, examples: Mapping[str, Sequence[Example]]) -> ClientCounts:
    """Counts the examples of clients whose data are here.

    Args:
        spec: The experiment.
        plan: The first stage, which decides the shares.
        examples: Client -> the examples of which it gets a share.

    Raises:
        DataError: A client has too few, or they teach nothing.
        SpecError: A client has several devices, and examples that lack a modality.
    """
    sizes, lacks, used = dict[str, int](), dict[str, dict[str, int]](), 0
    labels = Counter[str]()
    shares: dict[str, list[int]] = {}
    cut: Sequence[Example] | None = None
    for client, mine in examples.items():
        if mine is not cut:
            shares, cut = shares_at(plan, mine), mine
        train, held_out = split_share(client, examples=mine, shares=shares, plan=plan)
        refuse_untaught(client, train, spec=spec)
        sizes[client] = len(train)
        if lacked := lacking(train, spec.model):
            lacks[client] = lacked
        used += len(train) + len(held_out)
        labels.update(str(example.label) for example in train)
    return ClientCounts(sizes, lacks, labels, used)


def lacking_shares(
    examples: Sequence[Example], shares: Mapping[str, Sequence[int]], *, model: ModelSpec
) -> dict[str, dict[str, int]]:
    """Returns client -> modality -> number of its share's examples that lack it, if any do."""
    counts = {client: lacking([examples[i] for i in share], model) for client, share in shares.items()}
    return {client: its for client, its in counts.items() if its}


def lacking_by_plan(spec: RunSpec, examples: Sequence[Example]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Returns what the shares of examples, not yet checked, will lack, and their sizes, held-out examples included.

    Args:
        spec: The experiment, with its number of clients; they share the examples.
        examples: All training examples.

    Raises:
        DataError: The examples cannot be divided.
    """
    kept, _ = usable_of(examples, model=spec.model, incomplete=spec.data.incomplete)
    if not lacking(kept, spec.model):
        return {}, {}
    shared, _ = split_validation(kept, fraction=spec.data.validation_fraction)
    shares = shares_of(
        shared, kind=spec.federation.partition, num_clients=spec.federation.clients, seed=str(spec.seed),
        validation_fraction=spec.data.validation_fraction,
    )  # fmt: skip
    taking_part = {client: shares[client] for client in spec.federation.eligible_ids}
    sizes = {client: len(share) for client, share in taking_part.items()}
    return lacking_shares(shared, taking_part, model=spec.model), sizes


def counts_of(found: Mapping[str, Any]) -> ClientCounts:
    """Returns the counts that clients report of data that only they see; see `inspect_client`."""
    return ClientCounts(
        sizes={client: its["num_train"] for client, its in sorted(found.items())},
        lacks={client: its["lacks"] for client, its in sorted(found.items()) if its.get("lacks")},
        labels=sum((Counter(its.get("class_counts", {})) for its in found.values()), Counter[str]()),
        used=sum(its["num_examples"] for its in found.values()),
    )
