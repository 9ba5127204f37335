"""Clients' measurements, summarised as the costs of a client that takes part in every round.

A client fetches frozen blocks, and fills its cache of their outputs, when it first takes part; a client that joins late
does so in a later round, and no client does so in every round. So the costs of a later round are those of clients that
took part before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

from lwfed.plan.stages import StagePlan
from lwfed.run import runs
from lwfed.store.protocol import Store
from lwfed.types.records import RunRecord
from lwfed.types.round_records import ClientRecord, RoundRecord, client_values


def in_every_round(
    rounds: Sequence[RoundRecord], value: Callable[[ClientRecord], float], *, earlier: Collection[str] = ()
) -> list[float]:
    """Estimates the cost per round of a client that takes part in every round of a stage, from all clients' costs.

    Args:
        rounds: The stage's RoundRecords, in order.
        value: Returns a client's cost in a round from its metrics.
        earlier: Clients that took part in the previous stage. Others may have to catch up on more than one stage; they
            count only if there are no such clients.

    Returns:
        For the first round, the mean over clients of the cost of each one's first round, whichever round that was; for
        each later round, the mean over all rounds of clients that took part before, or 0 if no client came twice.
    """
    firsts: dict[str, float] = {}
    later: list[float] = []
    for record in rounds:
        for client, metrics in record.clients.items():
            if client in firsts:
                later.append(value(metrics))
            else:
                firsts[client] = value(metrics)
    known = [spent for client, spent in firsts.items() if client in earlier] or list(firsts.values())
    return [statistics.fmean(known if n == 0 else later or [0.0]) for n in range(len(rounds))]


def frozen_bytes(metrics: ClientRecord) -> float:
    """Returns the bytes of frozen blocks that a client received in a round."""
    return float(metrics.bytes_down_frozen)


def clients_in(rounds: Sequence[RoundRecord]) -> set[str]:
    """Returns the clients that took part in any of the rounds."""
    return {client for record in rounds for client in record.clients}


def clients_before(run: RunRecord, stage: int, *, store: Store) -> set[str]:
    """Returns the clients of the last trained stage before `stage`; empty if there is none."""
    for item in reversed(run.stages):
        rounds = runs.rounds_of(store, item.key) if item.stage < stage else []
        if rounds:
            return clients_in(rounds)
    return set()


def measured_ledger(rounds: Sequence[RoundRecord], *, earlier: Collection[str] = ()) -> dict[str, float]:
    """Summarises clients' measurements over a stage's rounds.

    Args:
        rounds: The stage's RoundRecords, in order.
        earlier: Clients that took part in the previous stage.

    Returns:
        Mean bytes per client per round in each direction, with frozen blocks as for a client that takes part in every
        round; FLOPs per sample; and the largest peak of a measured step.
    """
    clients = {(n, client): metrics for n, record in enumerate(rounds) for client, metrics in record.clients.items()}
    ledger: dict[str, float] = {}
    if clients:
        ledger["bytes_up"] = statistics.fmean(metrics.bytes_up for metrics in clients.values())
        ledger["bytes_down"] = statistics.fmean(metrics.bytes_down for metrics in clients.values())
        ledger["bytes_down_frozen"] = statistics.fmean(in_every_round(rounds, frozen_bytes, earlier=earlier))
    lost = sum(len(record.lost_residuals) for record in rounds)
    if lost:
        ledger["lost_residuals"] = lost
    flops = client_values(clients, "step_flops")
    if flops:
        ledger["forward_flops"] = statistics.fmean(step.forward / step.batch for step in flops)
        ledger["backward_flops"] = statistics.fmean(step.backward / step.batch for step in flops)
    for name in ("peak_tensor_bytes", "activations_bytes", "device_peak_bytes"):
        values = client_values(clients, name)
        if values:
            ledger[name] = max(values)
    return ledger


def measured_by_kind(
    plan: StagePlan, rounds: Sequence[RoundRecord], *, earlier: Collection[str] = ()
) -> dict[str, dict[str, float]]:
    """Summarises a stage's measurements for each kind of client; empty if all are alike. See `measured_ledger`."""
    if not plan.kinds():
        return {}
    kinds: dict[str, set[str]] = {}
    for client in sorted(clients_in(rounds)):
        kinds.setdefault(plan.work_of(client).kind, set()).add(client)
    return {
        kind: measured_ledger([_only(record, clients) for record in rounds], earlier=earlier)
        for kind, clients in kinds.items()
    }


def _only(record: RoundRecord, clients: Collection[str]) -> RoundRecord:
    """Returns a round's record with some clients only."""
    return record.changed(clients={client: one for client, one in record.clients.items() if client in clients})


def pooled(parts: Mapping[str, tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Averages clients' metrics, weighted by their examples. An average of recalls is not the pooled data's recall.

    Args:
        parts: Client -> (number of examples, metrics).

    Returns:
        The weighted mean of each metric over the clients that have it: where no example of a client has two
        modalities, it has no metric of that pair.
    """
    having: dict[str, list[tuple[int, float]]] = {}
    for _, (count, metrics) in sorted(parts.items()):
        for name, value in metrics.items():
            having.setdefault(name, []).append((count, value))
    return {
        name: sum(count * value for count, value in found) / sum(count for count, _ in found)
        for name, found in sorted(having.items())
    }


def recomputed_in(clients: Mapping[str, ClientRecord]) -> dict[str, str]:
    """Returns the clients whose frozen blocks' outputs could not be cached, and why."""
    found = {}
    for client, metrics in clients.items():
        why = [state for state in metrics.prefix.values() if state.startswith("recomputed")]
        if why:
            found[client] = why[0]
    return found


def lost_in(clients: Mapping[str, ClientRecord]) -> list[str]:
    """Returns the clients that lost a residual."""
    return [client for client, metrics in sorted(clients.items()) if metrics.residual == "lost"]


def unkept_in(clients: Mapping[str, ClientRecord]) -> dict[str, str]:
    """Returns the clients that keep nothing between rounds though they have a folder, and why."""
    return {client: metrics.unkept for client, metrics in clients.items() if metrics.unkept}
