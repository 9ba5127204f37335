"""Who took part in a run: what each client trained, sent and kept, from the run's plan and records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lwfed.formats import bytes_text, count_text
from lwfed.plan.groups import count_kinds, trained_text
from lwfed.plan.stages import StagePlan
from lwfed.types.records import RunRecord, StageRecord
from lwfed.types.round_records import ClientRecord, RoundRecord


@dataclass(frozen=True, slots=True)
class ClientRow:
    """A client of a run.

    Attributes:
        client: Its id.
        kind: Its group, and what its data lack; `clients` if all are alike.
        num_examples: Number of examples it trains on.
        examples: Modality -> number of these that have it, for the modalities that some lack.
        asked: Number of rounds that asked it.
        counted: Number of rounds in which its update counted.
        bytes_up: Bytes that it sent in these.
        trains: What it trained in the last stage that it took part in; empty if it never did.
        keeps: What it keeps between rounds.
    """

    client: str
    kind: str
    num_examples: int
    asked: int
    counted: int
    bytes_up: int
    trains: str
    keeps: str
    examples: Mapping[str, int] = field(default_factory=dict)

    @property
    def examples_text(self) -> str:
        """Its examples in words: `120, 30 with audio`."""
        parts = [f"{count_text(count)} with {modality}" for modality, count in self.examples.items()]
        return ", ".join([count_text(self.num_examples), *parts])


def client_rows(run: RunRecord, plans: Sequence[StagePlan], rounds: Sequence[RoundRecord]) -> list[ClientRow]:
    """Returns a row per client of a run, in the order of their ids; those that never took part are among them.

    Args:
        run: The RunRecord.
        plans: The stages' plans.
        rounds: RoundRecords of the committed rounds, in order.
    """
    by_stage = {plan.stage: plan for plan in plans}
    last = dict[str, tuple[StagePlan, ClientRecord]]()
    asked, counted, sent = dict[str, int](), dict[str, int](), dict[str, int]()
    for record in rounds:
        for client in record.cohort or record.clients:
            asked[client] = asked.get(client, 0) + 1
        for client, metrics in record.clients.items():
            counted[client] = counted.get(client, 0) + 1
            sent[client] = sent.get(client, 0) + metrics.bytes_up
            last[client] = by_stage[record.stage], metrics
    planned = {client: plan for plan in plans if plan.rounds for client in plan.cohort.clients}
    rows = []
    for client, size in run.data.clients.items():
        found = last.get(client)
        plan = found[0] if found else planned.get(client)
        work = None if plan is None else plan.work_of(client)
        lacked = run.data.lacks.get(client, {})
        rows.append(
            ClientRow(
                client=client,
                kind="left out" if work is None else work.kind,
                num_examples=size,
                examples={modality: size - count for modality, count in lacked.items()},
                asked=asked.get(client, 0),
                counted=counted.get(client, 0),
                bytes_up=sent.get(client, 0),
                trains=trained_text(work) if found and work else "",
                keeps=_kept(found[1]) if found else "",
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class KindRow:
    """A kind of client in a stage, where clients are not alike.

    Attributes:
        stage: s.
        kind: Its name.
        clients: Number of its clients.
        trains: What they train and send, in words.
        predicted: Their costs, as `lwfed.cost` derives them.
        measured: Their costs, measured; empty if none has trained.
    """

    stage: int
    kind: str
    clients: int
    trains: str
    predicted: Mapping[str, Any]
    measured: Mapping[str, float]


def kind_rows(run: RunRecord, plans: Sequence[StagePlan], stages: Sequence[StageRecord]) -> list[KindRow]:
    """Returns a row per stage and kind of client; none if all clients are alike.

    Args:
        run: The RunRecord.
        plans: The stages' plans.
        stages: StageRecords of the finished stages.
    """
    costs = {cost["stage"]: cost.get("kinds", {}) for cost in run.predicted}
    measured = {record.stage: record.ledger.kinds for record in stages}
    rows = []
    for plan in plans:
        works = plan.kinds() if plan.rounds else {}
        number = count_kinds(plan) if works else {}
        rows += [
            KindRow(
                stage=plan.stage,
                kind=kind,
                clients=number[kind],
                trains=trained_text(work),
                predicted=costs.get(plan.stage, {}).get(kind, {}),
                measured=measured.get(plan.stage, {}).get(kind, {}),
            )
            for kind, work in works.items()
        ]
    return rows


def _kept(metrics: ClientRecord) -> str:
    """Describes what a client keeps on its own disk between rounds, by its last update."""
    if metrics.unkept:
        return f"nothing: {metrics.unkept}"
    parts = []
    if metrics.prefix_cache_bytes:
        parts.append(f"{bytes_text(metrics.prefix_cache_bytes)} of outputs")
    if metrics.residual_kept:
        parts.append("its rounding error")
    return " and ".join(parts) or "\N{EN DASH}"
