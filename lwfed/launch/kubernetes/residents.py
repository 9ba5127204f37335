"""Pods that stay for a stage: an Indexed Job of agents per pool, and another for places whose pods have ended.

A pod that has been idle for too long ends and frees its GPU. Its index is completed, and Kubernetes never starts a
completed index again: when its place is needed, a new Job is created for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from lwfed.launch.kubernetes.collect import Collector
from lwfed.launch.kubernetes.jobs import Jobs
from lwfed.launch.kubernetes.manifests import STAYS, Call
from lwfed.launch.kubernetes.names import call_labels
from lwfed.run.events import ClientStarted, ClientStep, Emit, Event
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import AgentTask
from lwfed.spec.kubernetes import PoolSpec


class Residents:
    """The agents of one stage that are pods of the cluster.

    Args:
        jobs: Creates and deletes Jobs; its settings say how often a pod is restarted.
        run_id: The run.
        stage_key: The stage.
        emit: Receives what pods and Jobs do.
    """

    def __init__(self, jobs: Jobs, *, run_id: str, stage_key: str, emit: Emit) -> None:
        self.stage_key = stage_key
        self._jobs, self._run_id, self._emit = jobs, run_id, emit
        self._groups: list[tuple[Collector, set[str]]] = []
        self._open = ExitStack()

    def ensure(self, pool: PoolSpec, agents: Sequence[AgentTask]) -> None:
        """Creates a Job for agents that are not there, or takes over one that another coordinator created.

        Raises:
            SpecError: The cluster rejects the Job.
            UnreachableError: The cluster does not answer.
        """
        there = {name for collector, names in self._groups for name in names}
        missing = [agent for agent in agents if agent.client not in there]
        if not missing:
            return
        call = Call(step=STAYS, labels=call_labels(STAYS, missing[0], run_id=self._run_id))
        collector = Collector(call, [(pool, missing)], jobs=self._jobs, emit=self._show, predicted="")
        self._open.enter_context(collector.collecting())
        self._groups.append((collector, {agent.client for agent in missing}))

    def tick(self) -> Iterator[Outcome]:
        """Looks at the Jobs; yields one outcome per agent that has ended: idle, with exit code 0, or failed."""
        for collector, names in list(self._groups):
            for outcome in collector.tick(0.0):
                names.discard(outcome.client)
                yield outcome
            if not names:
                self._groups.remove((collector, names))

    def release(self) -> None:
        """Deletes the Jobs: the stage needs no agents any longer."""
        for collector, _ in self._groups:
            collector.end()
        self.leave()

    def leave(self) -> None:
        """Follows the Jobs no longer; without a coordinator their pods end by themselves."""
        self._groups = []
        self._open.close()

    def _show(self, event: Event) -> None:
        """Passes on what the agents' own beats do not say."""
        if not isinstance(event, ClientStarted | ClientStep):
            self._emit(event)
