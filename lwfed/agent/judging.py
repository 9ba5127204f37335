"""Decides on each task of an agent: by its owner's policy, or, in a pod of the run's own cluster, as its pool says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from lwfed.agent.policy import Facts, Policy, refuse
from lwfed.round.workbench import Workbench
from lwfed.run import runs
from lwfed.run.agents import Wants
from lwfed.run.tasks import ClientTask, InspectTask, Place, RoundTask, RunTask
from lwfed.run.version import chosen_by, code_version
from lwfed.spec.load import build_spec
from lwfed.types.errors import PolicyError

Task = RunTask | RoundTask


class Judge(Protocol):
    """Decides what an agent does, and where on its machine."""

    def allow(self, wants: Wants, task: Task, *, bench: Workbench) -> Task:
        """Returns a task with this machine's place. Raises PolicyError if the task is forbidden."""
        ...

    def allow_time(self, seconds: float) -> None:
        """Raises PolicyError if a task may not take so long."""
        ...


@dataclass(frozen=True)
class PlaceJudge:
    """Allows everything, at one place.

    Attributes:
        place: The place.
    """

    place: Place

    def allow(self, wants: Wants, task: Task, *, bench: Workbench) -> Task:
        """Returns a task with this machine's place."""
        return task.model_copy(update={"place": self.place, "store": bench.store.uri})

    def allow_time(self, seconds: float) -> None:
        """Allows any time: the round's deadline is the coordinator's."""


@dataclass(frozen=True)
class PolicyJudge:
    """Allows what a policy allows to runs of the same code, for one client.

    Attributes:
        policy: The policy.
        client: The client.
    """

    policy: Policy
    client: str
    _agreed: set[str] = field(default_factory=set)

    def allow(self, wants: Wants, task: Task, *, bench: Workbench) -> Task:
        """Returns a task with this machine's place. Raises PolicyError."""
        if not isinstance(task, ClientTask | InspectTask) or task.client != self.client:
            raise PolicyError(f"an agent with a policy works for {self.client} alone", remedy="give others their own")
        if task.run_id != wants.run_id:
            raise PolicyError(f"the task is of another run than {wants.run_id}", remedy="use lwfed's coordinator")
        facts = self._facts(wants, task, bench=bench)
        refuse(self.policy, facts)
        place = self.policy.place(facts.source, run_id=wants.run_id)
        return task.model_copy(update={"place": place, "store": bench.store.uri})

    def allow_time(self, seconds: float) -> None:
        """Raises PolicyError if a task may not take so long."""
        limit = self.policy.round_s
        if limit is not None and seconds > limit:
            raise PolicyError(f"its policy's `round_s` allows {limit:g} s per round", remedy="ask its owner")

    def _facts(self, wants: Wants, task: ClientTask | InspectTask, *, bench: Workbench) -> Facts:
        if isinstance(task, InspectTask):
            spec = build_spec(task.spec)
            return Facts(experiment=spec.name, source=spec.data.source, objective=spec.model.objective.kind)
        run = runs.read_run(bench.store, wants.run_id)
        spec = runs.spec_of(run)
        self._refuse_other_code(run.run_id, run.code_version, lambda: code_version(chosen_by(spec)))
        plan = bench.stage(task.stage_key).plan
        cost: dict[str, Any] = next((cost for cost in run.predicted if cost["stage"] == plan.stage), {})
        return Facts(
            experiment=spec.name,
            source=plan.data.source,
            objective=plan.model.objective.kind,
            quorum=plan.cohort.min_fit_clients,
            peak_bytes=cost.get("peak_bytes"),
        )

    def _refuse_other_code(self, run_id: str, theirs: str, ours: Callable[[], str]) -> None:
        """Raises PolicyError if a run was prepared by other code, whose numbers may differ."""
        if run_id in self._agreed:
            return
        if theirs != ours():
            raise PolicyError(
                "its lwfed or a library differs from those that prepared the run", remedy="install the same versions"
            )
        self._agreed.add(run_id)
