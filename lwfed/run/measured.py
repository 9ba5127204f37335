"""What clients measured, summed up for one that takes part in every round.

A client fetches a frozen block, and fills what it keeps of it, when it first takes part; one that joins late does so in
a later round than others, and no client does so in each. What a round costs is shown by those who were there before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lwfed.run import runs
from lwfed.store.protocol import Store

Record = Mapping[str, Any]


def in_every_round(
    rounds: Sequence[Record], value: Callable[[Record], float], *, earlier: Collection[str] = ()
) -> list[float]:
    """Gives what a client that takes part in every round of a stage spends in each, from what all clients spent.

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
        for client, metrics in record["clients"].items():
            if client in firsts:
                later.append(value(metrics))
            else:
                firsts[client] = value(metrics)
    known = [spent for client, spent in firsts.items() if client in earlier] or list(firsts.values())
    return [statistics.fmean(known if n == 0 else later or [0.0]) for n in range(len(rounds))]


def frozen_bytes(metrics: Record) -> float:
    """Gives the bytes of frozen blocks that a client received in a round."""
    return float(metrics.get("bytes_down_frozen") or 0)


def clients_in(rounds: Sequence[Record]) -> set[str]:
    """Names the clients that took part in some rounds."""
    return {client for record in rounds for client in record["clients"]}


def clients_before(run: runs.Run, stage: int, *, store: Store) -> set[str]:
    """Names the clients that took part in the last trained stage before one; none before the first."""
    for item in reversed(run["stages"]):
        rounds = runs.rounds_of(store, item["key"]) if item["stage"] < stage else []
        if rounds:
            return clients_in(rounds)
    return set()


def measured_ledger(rounds: Sequence[Record], *, earlier: Collection[str] = ()) -> dict[str, Any]:
    """Sums up what clients measured over a stage's rounds.

    Args:
        rounds: Its RoundRecords, in order.
        earlier: Clients that took part in the stage before.

    Returns:
        Mean bytes a client and round each way, frozen blocks being those of a client that takes part in every round;
        FLOPs a sample and the largest peak of a measured step.
    """
    clients = [metrics for record in rounds for metrics in record["clients"].values()]
    ledger: dict[str, Any] = {}
    if clients:
        for name in ("bytes_up", "bytes_down"):
            ledger[name] = statistics.fmean(metrics[name] for metrics in clients)
        ledger["bytes_down_frozen"] = statistics.fmean(in_every_round(rounds, frozen_bytes, earlier=earlier))
    lost = sum(len(record.get("lost_residuals", ())) for record in rounds)
    if lost:
        ledger["lost_residuals"] = lost
    flops = [metrics["step_flops"] for metrics in clients if "step_flops" in metrics]
    for way in ("forward", "backward"):
        if flops:
            ledger[f"{way}_flops"] = statistics.fmean(item[way] / item["batch"] for item in flops)
    for name in ("peak_tensor_bytes", "activations_bytes", "device_peak_bytes"):
        values = [metrics[name] for metrics in clients if name in metrics]
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


def recomputed_in(clients: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the clients whose frozen blocks' outputs could not be kept, and why, from their updates' metrics."""
    found = {}
    for client, metrics in clients.items():
        why = [told for told in (metrics.get("prefix") or {}).values() if told.startswith("recomputed")]
        if why:
            found[client] = why[0]
    return found


def lost_in(clients: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names the clients whose metrics tell of a lost residual."""
    return [client for client, metrics in sorted(clients.items()) if metrics.get("residual") == "lost"]


def unkept_in(clients: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the clients that keep nothing between rounds though they have a folder, and why, from their metrics."""
    return {client: metrics["unkept"] for client, metrics in clients.items() if metrics.get("unkept")}
