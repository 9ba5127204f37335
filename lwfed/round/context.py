"""The context that every part of a round shares: its stage and number, the store, and this machine's paths."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lwfed import environment
from lwfed.plan.groups import Work
from lwfed.plan.stages import StagePlan
from lwfed.run.stage import Stage
from lwfed.run.tasks import ClientTask, Place, RoundTask
from lwfed.store import paths
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.protocol import Store
from lwfed.store.refs import read_record
from lwfed.types.errors import CheckpointError
from lwfed.types.round_records import Accepted

if TYPE_CHECKING:
    import torch

    from lwfed.data.protocol import Example
    from lwfed.round.workbench import Workbench
    from lwfed.store.counting import CountingStore


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """A round of a stage.

    Attributes:
        stage: The stage, as recorded in the store.
        server_round: r, counted from 1 within the stage; 0 is the model it starts from.
        store: The store that holds the run.
        place: Paths and device on this machine.
        run_id: The run that the round belongs to, or None if unknown.
    """

    stage: Stage
    server_round: int
    store: Store
    place: Place = field(default_factory=Place)
    run_id: str | None = None

    @property
    def plan(self) -> StagePlan:
        """Everything that decides the stage's result."""
        return self.stage.plan

    @property
    def key(self) -> str:
        """The stage's address."""
        return self.stage.key

    @property
    def task(self) -> RoundTask:
        """The server's task for this round."""
        return RoundTask(
            store=self.store.uri,
            run_id=self.run_id,
            stage_key=self.key,
            server_round=self.server_round,
            place=self.place,
        )

    def client_tasks(self, clients: Sequence[str], *, measuring: Collection[str] = ()) -> list[ClientTask]:
        """Returns the given clients' tasks for this round; those in `measuring` measure their first step."""
        task = self.task.model_dump()
        return [ClientTask(**task, client=client, measure=client in measuring) for client in clients]

    def seed(self, *names: str | int) -> str:
        """Derives a seed for one use within this round."""
        return self.plan.round_seed(self.server_round, *names)

    def result(self) -> Checkpoint | None:
        """Reads the round's committed result, or None before the commit."""
        return read_checkpoint(self.store, paths.round_checkpoint(self.key, self.server_round))

    def accepted(self) -> Accepted | None:
        """Reads the round's accepted set, or None before it is committed.

        A set whose updates stayed in memory is written just before the round's result, and counts with it.
        """
        accepted = read_record(self.store, paths.accepted(self.key, self.server_round), Accepted)
        if accepted is None or not accepted.in_memory:
            return accepted
        return accepted if self.store.has(paths.round_checkpoint(self.key, self.server_round)) else None

    def start(self) -> Checkpoint:
        """Reads the model that the round starts from.

        Raises:
            CheckpointError: The previous round is not committed, or its model belongs to another plan.
        """
        return self.committed(self.server_round - 1)

    def outcome(self) -> Checkpoint:
        """Reads the round's result. Raises CheckpointError if it is not committed or belongs to another plan."""
        return self.committed(self.server_round)

    def committed(self, server_round: int) -> Checkpoint:
        """Reads the result of a round of the stage. Raises CheckpointError as `outcome` does."""
        key = paths.round_checkpoint(self.key, server_round)
        checkpoint = read_checkpoint(self.store, key)
        if checkpoint is None:
            raise CheckpointError(f"{key} is not committed", remedy=environment.resume_hint())
        odd = sorted(set(checkpoint.blocks) ^ set(self.plan.present))
        if odd:
            raise CheckpointError(f"the checkpoint and the plan differ in {odd[0]}", remedy="train again with --fresh")
        return checkpoint


@dataclass(frozen=True, kw_only=True)
class ClientContext(RoundContext):
    """A client's part of a round.

    Attributes:
        client: Its id.
        bench: The process's workbench.
        counted: The store, wrapped to count the tensor bytes that the client reads and writes.
        device: The device it computes on.
    """

    client: str
    bench: Workbench
    counted: CountingStore
    device: torch.device

    def start(self) -> Checkpoint:
        """Reads the model that the round starts from, once per process; see `RoundContext.start`."""
        return self.bench.checkpoint(self, self.server_round - 1)

    @cached_property
    def work(self) -> Work:
        """What the client trains."""
        return self.plan.work_of(self.client)

    def examples(self) -> tuple[list[Example], list[Example]]:
        """Returns the examples that the client trains on, and those of them that have not changed since their check.

        Raises:
            DataError: It has too few, or some changed and the spec does not skip these.
        """
        share, _ = self.bench.share(self.stage, self.place, self.client)
        return share, self.bench.unchanged(self.stage, self.place, share, self.client)

    def folder(self, name: str) -> Path | None:
        """Returns a folder of the client's own that outlives its process, or None if the client has no cache."""
        return None if self.place.cache is None else Path(self.place.cache) / self.client / name
