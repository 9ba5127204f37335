"""A round's updates in sorted client order: read from the store, or folded while they still come in.

Either way an aggregator gets the same tensors in the same order, so both ways have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lwfed.federated.aggregator import Aggregator, GlobalModel, Update, fold
from lwfed.federated.aggregators.weighted_mean import normalise_weights
from lwfed.federated.exchange import check_update, received
from lwfed.params import by_unit
from lwfed.round.context import RoundContext
from lwfed.store import paths
from lwfed.store.blocks import read_tensor
from lwfed.store.manifest import Block
from lwfed.types.encoded import encoded
from lwfed.types.errors import CheckpointError
from lwfed.types.records import AcceptedUpdate
from lwfed.types.tensors import unit_of

MAX_BYTES = 1 << 30
"""Of the sums in float64 that are held while clients train; larger models are added up from the store."""


def read_updates(
    ctx: RoundContext, accepted: Mapping[str, AcceptedUpdate], *, model: GlobalModel
) -> tuple[Update, ...]:
    """Returns the accepted updates in sorted client order; a tensor is read from the store when it is asked for.

    Args:
        ctx: The round.
        accepted: Client -> its update that counts.
        model: What the clients started from.

    Raises:
        CheckpointError: An update is missing, is another than was accepted, or does not hold what the plan names.
    """
    weights = normalise_weights({client: item.num_examples for client, item in accepted.items()})
    members = by_unit(model.specs)
    updates = []
    for client in sorted(accepted):
        ref = paths.update(ctx.key, ctx.server_round, client)
        update = ctx.store.read_ref(ref)
        if update is None or update["digest"] != accepted[client].digest:
            raise CheckpointError(
                f"the accepted update of {client} is missing or changed",
                remedy="remove the round's folder and run again",
            )
        blocks = {unit: Block.from_values(values) for unit, values in update["blocks"].items()}
        for unit, specs in members.items():
            check_update(client, found=blocks[unit].specs, specs=specs, codec=model.codec)
        updates.append(Update(client, weights[client], _reader(ctx, client, blocks, model=model)))
    return tuple(updates)


def _reader(
    ctx: RoundContext, client: str, blocks: Mapping[str, Block], *, model: GlobalModel
) -> Callable[[str], Tensor]:
    folder = paths.updates(ctx.key, ctx.server_round, client)

    def read(name: str) -> Tensor:
        block, spec = blocks[unit_of(name)], model.specs[name]
        key = f"{folder}/{block.digest}.safetensors"
        parts = {part: read_tensor(ctx.store, key, block, part) for part in encoded(name, spec, model.codec)}
        return received(name, parts, spec=spec, codec=model.codec)

    return read


class RunningFold:
    """A round's updates, folded while clients still train.

    For a process that trains the clients itself: it has every update in memory once, and need not read it again.

    Args:
        stage_key: The stage.
        server_round: The round.
        aggregator: One that does not need all updates first.
        model: What the clients started from.
        num_examples: The clients that are expected, with their weights.
    """

    def __init__(
        self,
        stage_key: str,
        server_round: int,
        *,
        aggregator: Aggregator,
        model: GlobalModel,
        num_examples: Mapping[str, int],
    ) -> None:
        self._round = (stage_key, server_round)
        self._aggregator, self._model = aggregator, model
        self._weights = normalise_weights(num_examples)
        self._expected = sorted(num_examples)
        self._digests: dict[str, str] = {}
        self._states: dict[str, Any] | None = None

    def add(self, client: str, sent: Mapping[str, Tensor], *, digest: str) -> None:
        """Adds what a client sent; one that is not the next in order ends the folding.

        Args:
            client: Its id.
            sent: What its update holds, on the CPU.
            digest: The update's digest.
        """
        if self._expected[len(self._digests) :][:1] != [client]:
            self._expected, self._states = [], None
            return
        model = self._model

        def tensor(name: str) -> Tensor:
            return received(name, sent, spec=model.specs[name], codec=model.codec)

        update = Update(client, self._weights[client], tensor)
        self._states = fold(self._aggregator, [update], names=model.specs, states=self._states)
        self._digests[client] = digest

    def take(self, stage_key: str, server_round: int, *, accepted: Mapping[str, str]) -> dict[str, Any] | None:
        """Returns the states of a round's tensors, if all who were expected and nobody else is accepted; once.

        The weights were made for all of them: a sum over fewer is another's, whatever its digests.

        Args:
            stage_key: The stage.
            server_round: The round.
            accepted: Client -> digest of its update.
        """
        states, self._states = self._states, None
        whole = list(self._digests) == self._expected and self._digests == accepted
        return states if whole and self._round == (stage_key, server_round) else None


def begin_fold(
    stage_key: str,
    server_round: int,
    *,
    clients: Sequence[str],
    known: Mapping[str, int],
    aggregator: Aggregator,
    model: GlobalModel,
) -> RunningFold | None:
    """Begins to fold a round, if every client's weight is known, the aggregator can begin, and its sums are small.

    Args:
        stage_key: The stage.
        server_round: The round.
        clients: Who takes part.
        known: Client -> number of its examples, as far as it is known.
        aggregator: How updates become one.
        model: What the clients started from.
    """
    if not clients or aggregator.needs_all or any(client not in known for client in clients):
        return None
    if sum(8 * spec.numel for spec in model.specs.values()) > MAX_BYTES:
        return None
    num_examples = {client: known[client] for client in clients}
    return RunningFold(stage_key, server_round, aggregator=aggregator, model=model, num_examples=num_examples)
