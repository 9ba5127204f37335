"""The launcher whose clients are agents that others have started: it starts nothing, and asks them through the store.

Aggregation and evaluation run in the coordinator's process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from lwfed.catalog.launchers.agents import DESCRIPTION
from lwfed.launch.agents.asking import GONE_S, Asking
from lwfed.launch.in_process import InProcess
from lwfed.run.events import Emit, Warning
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import PoolTask, ServerTask
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store


class AgentsLauncher:
    """The launcher of clients whose agents others have started, each named after its client.

    Args:
        spec: The experiment.
        store: The run's store, which all agents reach.
        run_id: The run.
    """

    remote = DESCRIPTION.remote
    held = None

    def __init__(self, spec: RunSpec, *, store: Store, run_id: str) -> None:
        self._server = InProcess(store)
        self._emit: Emit | None = None
        self._asking = Asking(spec, store=store, run_id=run_id, warn=self._warn)

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        """Asks the clients' agents; see `Launcher.clients`."""
        self._emit = emit
        if not tasks:
            self._asking.rest()
            return
        ends_at = time.monotonic() + deadline_s
        missing = len(tasks) if need is None else need
        asking = self._asking
        asking.begin(
            step,
            {task.client: [task] for task in tasks},
            patience_s=GONE_S if deadline_s == float("inf") else None,
        )
        while missing > 0 and asking.open and (left_s := ends_at - time.monotonic()) > 0:
            time.sleep(min(asking.due_in_s, left_s))
            for fact in asking.look():
                if not isinstance(fact, Outcome):
                    emit(fact)
                    continue
                missing -= fact.exit_code == 0
                yield fact
        yield from asking.finish(wanted=missing > 0, deadline_s=deadline_s)

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs the server's step in this process; after the last one, tells the agents that the run is over."""
        self._emit = emit
        if step != "prepare":  # the run exists: what its last coordinator wanted is over
            self._asking.rest()
        self._server.server(step, task, emit=emit)
        if step == "finish":
            self._asking.end()

    def close(self) -> None:
        """Forgets the model; agents at work go on, and wait for the run's next coordinator."""
        self._server.close()

    def _warn(self, line: str) -> None:
        if self._emit is not None:
            self._emit(Warning(message=line))
