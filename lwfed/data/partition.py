"""Partitions of training examples among clients: pure and seeded; a partition that leaves a client short is refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lwfed.data.protocol import Example
from lwfed.spec.data import PartitionSpec
from lwfed.types.clients import client_ids
from lwfed.types.errors import DataError
from lwfed.types.seeds import as_int, derive

NUM_TRIES = 1000
"""Number of times that a Dirichlet partition is drawn before giving up."""


def partition(examples: Sequence[Example], *, plan: PartitionSpec, num_clients: int, seed: str) -> dict[str, list[int]]:
    """Splits examples among clients.

    Args:
        examples: The training examples.
        plan: The kind of partition.
        num_clients: N.
        seed: Hex text.

    Returns:
        Client id -> increasing indices into `examples`; disjoint and complete, but for `local`, where each client has
        all examples of its own root, and `contiguous`, where the last len % N examples belong to no client.

    Raises:
        DataError: A client would have fewer than `plan.min_size` examples, labels or fields are missing, or the number
            of groups is not the number of clients.
    """
    match plan.kind:
        case "iid":
            shards = _iid(len(examples), num_clients=num_clients, seed=seed)
        case "contiguous":
            size = len(examples) // num_clients
            shards = [list(range(n * size, (n + 1) * size)) for n in range(num_clients)]
        case "dirichlet":
            shards = _dirichlet(examples, plan=plan, num_clients=num_clients, seed=seed)
        case "by_group":
            shards = _by_group(examples, plan=plan, num_clients=num_clients)
        case "local":
            shards = [list(range(len(examples)))] * num_clients
    shares = {client: sorted(shard) for client, shard in zip(client_ids(num_clients), shards, strict=True)}
    short = [client for client, shard in shares.items() if len(shard) < plan.min_size]
    if short:
        none = [client for client in short if not shares[client]]
        what = "no data" if none else f"fewer than {plan.min_size} examples"
        smallest = "federation.partition.min_size"
        keys = smallest if plan.kind == "by_group" else f"federation.num_clients or {smallest}"
        raise DataError(
            f"{len(none or short)} of {num_clients} clients have {what}: {_some(none or short)}",
            remedy=f"lower {keys}: there are {len(examples)} examples",
        )
    return shares


def split_validation(examples: Sequence[Example], *, fraction: float) -> tuple[list[Example], list[Example]]:
    """Sets a fraction of the training examples apart for validation, before they are partitioned.

    An example is chosen by a hash of its name, whatever the run's seed and the order of the examples; with labels, the
    fraction is taken of each class. A class of two or more keeps and gives at least one example.

    Args:
        examples: The training examples.
        fraction: Fraction to set apart, in [0, 1).

    Returns:
        Examples to train on, and examples for validation, both in their old order.
    """
    classes: dict[int | None, list[Example]] = {}
    for example in examples if fraction else ():
        classes.setdefault(example.label, []).append(example)
    chosen: set[str] = set()
    for members in classes.values():
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        chosen |= set(sorted((e.id for e in members), key=lambda name: derive("validation", name))[:count])
    return [e for e in examples if e.id not in chosen], [e for e in examples if e.id in chosen]


def holdout(indices: Sequence[int], *, fraction: float, seed: str) -> tuple[list[int], list[int]]:
    """Holds out a fraction of a client's examples, but always leaves at least two to train on.

    Args:
        indices: The client's examples.
        fraction: Fraction to hold out, in [0, 1).
        seed: Hex text; the client's own.

    Returns:
        Indices to train on and indices held out, both increasing.
    """
    wanted = max(round(fraction * len(indices)), 1) if fraction else 0
    count = max(min(wanted, len(indices) - 2), 0)
    order = np.random.default_rng(as_int(derive(seed, "holdout"))).permutation(len(indices))
    held_out = {indices[n] for n in order[:count]}
    return sorted(set(indices) - held_out), sorted(held_out)


def describe(
    examples: Sequence[Example], *, shares: Mapping[str, Sequence[int]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Describes a partition as plain data.

    Args:
        examples: The training examples.
        shares: Client id -> indices.
        classes: Names of the classes; empty if there are none.

    Returns:
        One row per client: `client`, `num_examples` and `labels` (class -> number of examples; empty without classes).
    """
    rows = []
    for client, indices in shares.items():
        counts = Counter(examples[n].label for n in indices)
        labels = {name: counts[label] for label, name in enumerate(classes)}
        rows.append({"client": client, "num_examples": len(indices), "labels": labels})
    return rows


def _iid(count: int, *, num_clients: int, seed: str) -> list[list[int]]:
    """Splits a seeded shuffle into contiguous shards whose sizes differ by at most one."""
    order = np.random.default_rng(as_int(derive(seed, "iid"))).permutation(count)
    return [shard.tolist() for shard in np.array_split(order, num_clients)]


def _dirichlet(examples: Sequence[Example], *, plan: PartitionSpec, num_clients: int, seed: str) -> list[list[int]]:
    """Splits each class by proportions from a Dirichlet(alpha) (Hsu et al. 2019), redrawn until all have `min_size`."""
    alpha = plan.alpha
    if alpha is None:
        raise DataError("a dirichlet partition needs alpha", remedy="set federation.partition.alpha, for example 0.5")
    unlabelled = next((example for example in examples if example.label is None), None)
    if unlabelled is not None:
        raise DataError(
            f"a dirichlet partition needs class labels, but {unlabelled.id} has none",
            remedy="use federation.partition.kind: iid or by_group",
        )
    if plan.min_size * num_clients > len(examples):
        raise DataError(
            f"{num_clients} clients cannot have {plan.min_size} of {len(examples)} examples each",
            remedy="lower federation.num_clients or federation.partition.min_size",
        )
    labels = np.array([example.label for example in examples])
    best = 0
    for attempt in range(NUM_TRIES):
        rng = np.random.default_rng(as_int(derive(seed, "dirichlet", attempt)))
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            edges = np.rint(np.cumsum(_proportions(alpha, num_clients, rng)) * len(members)).astype(np.int64)
            owner[members] = np.searchsorted(edges[:-1], np.arange(len(members)), side="right")
        smallest = int(np.bincount(owner, minlength=num_clients).min())
        if smallest >= plan.min_size:
            return [np.flatnonzero(owner == client).tolist() for client in range(num_clients)]
        best = max(best, smallest)
    raise DataError(
        f"no dirichlet partition with alpha {alpha} in {NUM_TRIES} tries gave each of {num_clients} clients "
        f"{plan.min_size} examples (the best gave the smallest {best})",
        remedy="raise federation.partition.alpha, or lower federation.num_clients or federation.partition.min_size",
    )


def _proportions(alpha: float, num_clients: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draws from a Dirichlet; if a tiny alpha underflows, one client gets everything, which is the limit."""
    shares = rng.dirichlet(np.full(num_clients, alpha))
    if np.isfinite(shares).all() and shares.sum() > 0:
        return shares
    return np.eye(num_clients)[rng.integers(num_clients)]


def group_members(examples: Sequence[Example], *, plan: PartitionSpec) -> dict[str, list[int]]:
    """Returns the groups of a by_group partition: name -> indices into the examples.

    Raises:
        DataError: An example has no group, or the pattern is not a regular expression.
    """
    groups: dict[str, list[int]] = {}
    for n, example in enumerate(examples):
        groups.setdefault(_group_of(example, plan=plan), []).append(n)
    return groups


def _by_group(examples: Sequence[Example], *, plan: PartitionSpec, num_clients: int) -> list[list[int]]:
    """Assigns one group to each client, in the groups' sorted order."""
    groups = group_members(examples, plan=plan)
    if len(groups) != num_clients:
        raise DataError(
            f"the data have {len(groups)} groups, but there are {num_clients} clients; groups: {_some(sorted(groups))}",
            remedy=f"set federation.num_clients to {len(groups)}",
        )
    return [groups[name] for name in sorted(groups)]


def _group_of(example: Example, *, plan: PartitionSpec) -> str:
    if plan.pattern is not None:
        stem = example.fields.get("stem", example.id)
        try:
            found = re.search(plan.pattern, stem)
        except re.error as error:
            raise DataError(
                f"the pattern {plan.pattern!r} is not a regular expression: {error}",
                remedy="fix federation.partition.pattern",
            ) from None
        if found is None or found["group"] is None:
            raise DataError(
                f"the pattern {plan.pattern!r} finds no group in {stem}", remedy="fix federation.partition.pattern"
            )
        return found["group"]
    known = {**example.fields, **({} if example.label is None else {"label": f"{example.label:06d}"})}
    if plan.field not in known:
        raise DataError(
            f"{example.id} has no field {plan.field}",
            remedy=f"set federation.partition.field to one of: {', '.join(sorted(known))}",
        )
    return known[plan.field]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
