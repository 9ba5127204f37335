"""A round's updates in sorted client order: read from the store, or folded as they arrive.

Either way the aggregator receives the same tensors in the same order, so the results are bit-equal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lwfed.federated.aggregator import Aggregator, GlobalModel, Update, fold
from lwfed.federated.exchange import check_update, received
from lwfed.params import by_unit
from lwfed.round.context import RoundContext
from lwfed.round.senders import Counted, Weights, weights_of
from lwfed.store import paths
from lwfed.store.ahead import parallel_map
from lwfed.store.blocks import read_block, read_tensor
from lwfed.store.manifest import Block
from lwfed.store.refs import TOGETHER, damaged, read_object
from lwfed.types.encoded import encoded
from lwfed.types.errors import CheckpointError
from lwfed.types.round_records import AcceptedUpdate
from lwfed.types.tensors import unit_of

MAX_BYTES = 1 << 30
"""Largest size of the float64 sums held while clients train; larger models are summed from the store."""
SMALL_BYTES = 8 << 20
"""Largest size of a unit's float64 sums for which its file is read whole: in one request instead of one per tensor."""


def read_updates(
    ctx: RoundContext, accepted: Mapping[str, AcceptedUpdate], *, model: GlobalModel
) -> tuple[Update, ...]:
    """Returns the accepted updates in sorted client order; each tensor is read from the store on demand.

    Args:
        ctx: The round.
        accepted: Client -> its accepted update.
        model: The model that the clients started from.

    Raises:
        CheckpointError: An update is missing, is not the accepted one, or does not hold the plan's tensors.
    """
    weights = weights_of(ctx.plan, {client: Counted.of(item) for client, item in accepted.items()})
    members = by_unit(model.specs)
    whole, last = small_units(model), _Last()
    clients = sorted(accepted)
    refs = [paths.update(ctx.key, ctx.server_round, client) for client in clients]
    found = parallel_map(lambda ref: read_object(ctx.store, ref, digest=str, blocks=dict), refs, threads=TOGETHER)
    updates = []
    for client, ref, update in zip(clients, refs, found, strict=True):
        if update is None or update["digest"] != accepted[client].digest:
            raise CheckpointError(
                f"the accepted update of {client} is missing or changed",
                remedy="remove the round's folder and run again",
            )
        try:
            blocks = {unit: Block.from_values(values) for unit, values in update["blocks"].items()}
        except CheckpointError as error:
            raise damaged(ref, error.problem) from None
        expected = ctx.plan.work_of(client).trained
        if missing := set(expected) - blocks.keys():
            raise damaged(ref, f"it lacks {min(missing)}")
        if surplus := blocks.keys() - set(expected):
            raise damaged(ref, f"it has {min(surplus)}, which {client} does not train")
        for unit in expected:
            check_update(client, found=blocks[unit].specs, specs=members[unit], codec=model.codec)
        own, reader = weights[client], _reader(ctx, client, blocks, model=model, whole=whole, last=last)
        updates.append(Update(client, own.weight, reader, by_unit=own.by_unit))
    return tuple(updates)


def small_units(model: GlobalModel) -> frozenset[str]:
    """Returns the units read and summed whole: tensor by tensor, they cost more in requests than in bytes.

    Args:
        model: The model that the clients started from.
    """
    units = by_unit(model.specs)
    return frozenset(
        unit for unit, specs in units.items() if sum(8 * one.numel for one in specs.values()) <= SMALL_BYTES
    )


class _Last(threading.local):
    """The block that a thread has read last: a unit's tensors are asked for one after another."""

    key = ""
    tensors: Mapping[str, Tensor] = MappingProxyType({})


def _reader(
    ctx: RoundContext,
    client: str,
    blocks: Mapping[str, Block],
    *,
    model: GlobalModel,
    whole: Collection[str],
    last: _Last,
) -> Callable[[str], Tensor]:
    folder = paths.updates(ctx.key, ctx.server_round, client)

    def read(name: str) -> Tensor:
        block, spec = blocks[unit_of(name)], model.specs[name]
        key = f"{folder}/{block.digest}.safetensors"
        names = encoded(name, spec, model.codec)
        if unit_of(name) in whole:
            if last.key != key:
                last.tensors, last.key = read_block(ctx.store, key, block), key
            parts = {part: last.tensors[part] for part in names}
        else:
            parts = {part: read_tensor(ctx.store, key, block, part) for part in names}
        return received(name, parts, spec=spec, codec=model.codec)

    return read


class RunningFold:
    """A round's updates, folded while other clients still train.

    For a process that trains the clients itself: it already has every update in memory and need not read it again. The
    result counts only if exactly the expected clients were accepted; otherwise the updates are read from the store.

    Args:
        stage_key: The stage.
        server_round: The round.
        aggregator: An aggregator that does not need all updates first.
        model: The model that the clients started from.
        weights: The expected clients, with their weights.
    """

    def __init__(
        self,
        stage_key: str,
        server_round: int,
        *,
        aggregator: Aggregator,
        model: GlobalModel,
        weights: Mapping[str, Weights],
    ) -> None:
        self._round = (stage_key, server_round)
        self._aggregator, self._model = aggregator, model
        self._weights = weights
        self._expected = sorted(weights)
        self._digests: dict[str, str] = {}
        self._states: dict[str, Any] | None = None

    def add(self, client: str, sent: Mapping[str, Tensor], *, digest: str) -> None:
        """Adds a client's update. A client that is not the next in order ends the folding.

        Args:
            client: Its id.
            sent: The tensors of its update, on the CPU.
            digest: The update's digest.
        """
        if self._expected[len(self._digests) :][:1] != [client]:
            self._expected, self._states = [], None
            return
        model = self._model

        def tensor(name: str) -> Tensor:
            return received(name, sent, spec=model.specs[name], codec=model.codec)

        own = self._weights[client]
        update = Update(client, own.weight, tensor, by_unit=own.by_unit)
        self._states = fold(self._aggregator, [update], names=model.specs, states=self._states)
        self._digests[client] = digest

    def take(
        self, stage_key: str, server_round: int, *, accepted: Mapping[str, str], weights: Mapping[str, Weights]
    ) -> dict[str, Any] | None:
        """Returns the states of a round's tensors if exactly the expected updates were accepted, else None; only once.

        The weights were normalised over all expected clients, so a sum over fewer of them would be wrong.

        Args:
            stage_key: The stage.
            server_round: The round.
            accepted: Client -> digest of its accepted update.
            weights: Client -> the weights of that update.
        """
        states, self._states = self._states, None
        whole = list(self._digests) == self._expected and self._digests == accepted and self._weights == weights
        return states if whole and self._round == (stage_key, server_round) else None


def begin_fold(
    ctx: RoundContext,
    *,
    clients: Sequence[str],
    known: Mapping[str, Counted],
    aggregator: Aggregator,
    model: GlobalModel,
) -> RunningFold | None:
    """Starts folding a round; None unless all weights are known, the aggregator can start, and its sums are small.

    Args:
        ctx: The round.
        clients: Its clients.
        known: Client -> how much its update counts, for clients of which that is known.
        aggregator: Combines the updates into one.
        model: The model that the clients started from.
    """
    if not clients or aggregator.needs_all or any(client not in known for client in clients):
        return None
    if sum(8 * spec.numel for spec in model.specs.values()) > MAX_BYTES:
        return None
    weights = weights_of(ctx.plan, {client: known[client] for client in clients})
    return RunningFold(ctx.key, ctx.server_round, aggregator=aggregator, model=model, weights=weights)
