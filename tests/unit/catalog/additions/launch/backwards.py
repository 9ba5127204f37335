"""Clients in this process, the last one first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lwfed.launch.in_process import InProcess
from lwfed.round.workbench import Workbench
from lwfed.run.launcher import Emit, Outcome
from lwfed.run.tasks import PoolTask
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store


class Backwards(InProcess):
    """The launcher of this process, in the other order."""

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        return super().clients(step, tasks[::-1], deadline_s=deadline_s, emit=emit, need=need)


def make(spec: RunSpec, *, store: Store, run_id: str) -> Backwards:
    return Backwards(Workbench(store))
