"""What clients measured, summed up for one that takes part in every round.

A client fetches a frozen block, and fills what it keeps of it, when it first takes part; one that joins late does so in
a later round than others, and no client does so in each. What a round costs is shown by those who were there before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

from lwfed.run import runs
from lwfed.store.protocol import Store
from lwfed.types.records import ClientRecord, RoundRecord, RunRecord, client_values


def in_every_round(
    rounds: Sequence[RoundRecord], value: Callable[[ClientRecord], float], *, earlier: Collection[str] = ()
) -> list[float]:
    """Returns what a client that takes part in every round of a stage spends in each, from what all clients spent.

    Args:
        rounds: The stage's RoundRecords, in order.
        value: A client's metrics -> what it spent in that round.
        earlier: Clients that took part in the stage before. Others may have to make up for more than one stage; they
            count only where there is nobody else.

    Returns:
        For the first round the mean over clients of what the first round of each cost it, whenever that was; for a
        later one that of all rounds of clients that took part before, or 0 where none came twice.
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
    """Names the clients that took part in some rounds."""
    return {client for record in rounds for client in record.clients}


def clients_before(run: RunRecord, stage: int, *, store: Store) -> set[str]:
    """Names the clients that took part in the last trained stage before one; none before the first."""
    for item in reversed(run.stages):
        rounds = runs.rounds_of(store, item.key) if item.stage < stage else []
        if rounds:
            return clients_in(rounds)
    return set()


def measured_ledger(rounds: Sequence[RoundRecord], *, earlier: Collection[str] = ()) -> dict[str, float]:
    """Sums up what clients measured over a stage's rounds.

    Args:
        rounds: Its RoundRecords, in order.
        earlier: Clients that took part in the stage before.

    Returns:
        Mean bytes per client per round each way, frozen blocks being those of a client that takes part in every round;
        FLOPs per sample and the largest peak of a measured step.
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


def pooled(parts: Mapping[str, tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Averages clients' metrics, weighted by their examples. An average of recalls is not the recall of the pool.

    Args:
        parts: Client -> (number of examples, metrics).

    Returns:
        The weighted mean of each metric that every client has.
    """
    if not parts:
        return {}
    total = sum(count for count, _ in parts.values())
    shared = set.intersection(*(set(metrics) for _, metrics in parts.values()))
    return {
        name: sum(count * metrics[name] for _, (count, metrics) in sorted(parts.items())) / total
        for name in sorted(shared)
    }


def recomputed_in(clients: Mapping[str, ClientRecord]) -> dict[str, str]:
    """Returns the clients whose frozen blocks' outputs could not be kept, and why."""
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
