"""Clients one after another in this process, with weights and data kept at hand.

One client trains at a time. While it does, the update of the one before is hashed, written and added to the round's
sum. So besides a client in training there are the global model, what another client has trained, and sums of up to
`running_sum.MAX_BYTES`; on a GPU, of these the global model alone.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any

from lwfed.catalog.launchers.in_process import DESCRIPTION
from lwfed.environment import debug
from lwfed.launch.dispatch import run_step, step_teller
from lwfed.models.build import tensor_specs
from lwfed.round.running_sum import RunningSum, begin_sum
from lwfed.round.runtime import naming_memory
from lwfed.round.train_client import Trained, commit, train_locally
from lwfed.round.workbench import Workbench
from lwfed.run.launcher import Emit, Outcome
from lwfed.run.tasks import ClientTask, PoolTask, ServerTask
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import SHARED_CODES, LwfedError
from lwfed.types.tensors import unit_of

PATIENCE = 0.02
"""Part of a client's time that the next one waits for its commit, so that what is soon over is told at once."""


def make(spec: RunSpec, *, store: Store, run_id: str) -> InProcess:
    """Makes the launcher; see `launchers.make_launcher`."""
    return InProcess(Workbench(store))


class InProcess:
    """The launcher that needs nothing but this process."""

    remote = DESCRIPTION.remote
    holds_model = True

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    def clients(self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit) -> Iterator[Outcome]:
        """Runs tasks in order; see `Launcher.clients`."""
        work: Callable[[PoolTask], Any] = partial(run_step, step, bench=self._bench, emit=emit)
        ends_at = time.monotonic() + deadline_s
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit") as pool:
            committing: tuple[str, Future[Any]] | None = None
            if step == "train-client":
                self._bench.holds_model = self.holds_model
                work = partial(self._train, pool=pool, emit=emit)
                self._bench.running_sum = self._sum([task for task in tasks if isinstance(task, ClientTask)])
            for task in tasks:
                outcome = Outcome(task.client, 1, f"not started before the deadline of {deadline_s:g} s")
                begun: Any = None
                if time.monotonic() <= ends_at:
                    emit("client_started", {"client": task.client, "step": step})
                    outcome, begun = self._outcome(task.client, partial(work, task), emit)
                if committing is not None:
                    yield self._outcome(committing[0], committing[1].result, emit)[0]
                    committing = None
                if not isinstance(begun, Future):
                    yield outcome
                elif begun.done():
                    yield self._outcome(task.client, begun.result, emit)[0]
                else:
                    committing = task.client, begun
            if committing is not None:
                yield self._outcome(committing[0], committing[1].result, emit)[0]

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs the server's step here."""
        run_step(step, task, bench=self._bench, emit=emit)

    def close(self) -> None:
        """Lets go of the model."""
        self._bench.let_go()

    def _sum(self, tasks: Sequence[ClientTask]) -> RunningSum | None:
        """Begins the sum of a round whose clients' weights are known from an earlier one."""
        if not tasks:
            return None
        stage = self._bench.stage(tasks[0].stage_key)
        known = {client: n for (key, client), n in self._bench.num_examples.items() if key == stage.key}
        specs = tensor_specs(self._bench.skeleton(stage.key))
        trained = {name: spec for name, spec in specs.items() if unit_of(name) in stage.plan.trained}
        return begin_sum(
            stage.key,
            tasks[0].server_round,
            clients=[task.client for task in tasks],
            known=known,
            specs=trained,
            codec=stage.plan.exchange.upload,
        )

    def _train(self, task: PoolTask, *, pool: ThreadPoolExecutor, emit: Emit) -> Future[Any] | None:
        """Trains a client; gives its update's commit, which is under way, unless that was soon over."""
        assert isinstance(task, ClientTask)
        started = time.monotonic()
        trained = train_locally(task, bench=self._bench, on_step=step_teller(task.client, emit))
        if trained is None:
            return None
        here = replace(trained, tensors={name: tensor.cpu() for name, tensor in trained.tensors.items()})
        del trained  # of a GPU's memory the next client has all
        committing = pool.submit(_commit, here, bench=self._bench)
        wait([committing], timeout=PATIENCE * (time.monotonic() - started))
        return committing

    def _outcome(self, client: str, work: Callable[[], Any], emit: Emit) -> tuple[Outcome, Any]:
        """Does a client's work; gives how it ended, and what it gave."""
        try:
            return Outcome(client), work()
        except LwfedError as error:
            if error.exit_code in SHARED_CODES:
                raise
            return Outcome(client, error.exit_code, str(error)), None
        except Exception as error:  # a fault in one client must not end the others
            if debug():
                emit("client_log", {"client": client, "line": traceback.format_exc()})
            return Outcome(client, 1, f"{type(error).__name__}: {error}"), None


def _commit(trained: Trained, *, bench: Workbench) -> dict[str, Any]:
    with naming_memory():
        return commit(trained, bench=bench)
