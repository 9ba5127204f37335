"""Runs clients one after another in this process, and keeps weights and data in memory between them.

One client trains at a time. Meanwhile the previous client's update is hashed, written and added to the round's sums.
So besides the training client, memory holds the global model, another client's trained tensors, and sums of up to
`updates.MAX_BYTES`; a GPU's memory holds only the global model of these.
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
from lwfed.federated.aggregator import make_aggregator
from lwfed.launch.dispatch import run_step, step_reporter
from lwfed.round.aggregate_round import aggregate_round, global_model
from lwfed.round.runtime import memory_errors
from lwfed.round.senders import Counted
from lwfed.round.train_client import Trained, commit, train_locally
from lwfed.round.updates import RunningFold, begin_fold
from lwfed.round.workbench import Workbench
from lwfed.run.events import ClientLog, ClientStarted, Emit
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import ClientTask, PoolTask, RoundTask, ServerTask
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import SHARED_CODES, LwfedError

PATIENCE = 0.02
"""Share of a client's training time to wait for its commit, so that a quick commit is reported at once."""


def make(spec: RunSpec, *, store: Store, run_id: str) -> InProcess:
    """Makes the launcher; see `launchers.make_launcher`."""
    return InProcess(store)


class InProcess:
    """The launcher that runs everything in this process.

    Args:
        store: The run's store.
    """

    remote = DESCRIPTION.remote
    holds_model = True

    def __init__(self, store: Store) -> None:
        self.bench = Workbench(store, holds_model=self.holds_model)
        self._running: RunningFold | None = None
        self._counted: dict[tuple[str, str], Counted] = {}

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        """Runs tasks in order; see `Launcher.clients`."""
        work: Callable[[PoolTask], Any] = partial(run_step, step, bench=self.bench, emit=emit)
        ends_at = time.monotonic() + deadline_s
        missing = len(tasks) if need is None else need
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit") as pool:
            committing: tuple[str, Future[Any]] | None = None
            if step == "train-client":
                work = partial(self._train, pool=pool, emit=emit)
                self._running = self._begin_fold([task for task in tasks if isinstance(task, ClientTask)])
            for task in tasks:
                if committing is not None and missing == 1:  # it may be the last one needed
                    settled = self._outcome(committing[0], committing[1].result, emit)[0]
                    committing, missing = None, missing - (settled.exit_code == 0)
                    yield settled
                if missing <= 0:
                    break
                outcome = Outcome(task.client, 1, f"not started before the deadline of {deadline_s:g} s")
                begun: Any = None
                if time.monotonic() <= ends_at:
                    emit(ClientStarted(client=task.client, step=step))
                    outcome, begun = self._outcome(task.client, partial(work, task), emit)
                if committing is not None:
                    settled = self._outcome(committing[0], committing[1].result, emit)[0]
                    committing, missing = None, missing - (settled.exit_code == 0)
                    yield settled
                if isinstance(begun, Future) and not begun.done():
                    committing = task.client, begun
                    continue
                if isinstance(begun, Future):
                    outcome = self._outcome(task.client, begun.result, emit)[0]
                missing -= outcome.exit_code == 0
                yield outcome
            if committing is not None:
                yield self._outcome(committing[0], committing[1].result, emit)[0]

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs the server's step here; a round is aggregated from the sums folded while its clients trained."""
        if step == "aggregate-round" and isinstance(task, RoundTask):
            running, self._running = self._running, None
            aggregate_round(task, bench=self.bench, running=running)
        else:
            run_step(step, task, bench=self.bench, emit=emit)

    def close(self) -> None:
        """Forgets the model."""
        self._running = None
        self.bench.forget_model()

    def _begin_fold(self, tasks: Sequence[ClientTask]) -> RunningFold | None:
        """Starts to fold a round's updates if the clients' weights are known from an earlier round."""
        if not tasks:
            return None
        ctx = self.bench.round(tasks[0])
        if not ctx.plan.settled:
            return None
        model = global_model(ctx, bench=self.bench)
        return begin_fold(
            ctx,
            clients=[task.client for task in tasks],
            known={client: count for (key, client), count in self._counted.items() if key == ctx.key},
            aggregator=make_aggregator(ctx.plan.aggregators, model=model),
            model=model,
        )

    def _train(self, task: PoolTask, *, pool: ThreadPoolExecutor, emit: Emit) -> Future[Any] | None:
        """Trains a client; returns the commit of its update, which may still be running."""
        assert isinstance(task, ClientTask)
        started = time.monotonic()
        trained = train_locally(task, bench=self.bench, on_step=step_reporter(task.client, emit))
        if trained is None:
            return None
        here = replace(trained, tensors={name: tensor.cpu() for name, tensor in trained.tensors.items()})
        del trained  # leaves all of a GPU's memory to the next client
        committing = pool.submit(self._commit, here)
        wait([committing], timeout=PATIENCE * (time.monotonic() - started))
        return committing

    def _commit(self, trained: Trained) -> None:
        ctx, running = trained.ctx, self._running
        with memory_errors():
            committed = commit(trained, keep=running is not None)
            self._counted[ctx.key, ctx.client] = Counted(trained.num_examples, trained.metrics.get("examples", {}))
            if running is not None and committed.sent is not None:
                running.add(ctx.client, committed.sent, digest=committed.update["digest"])

    def _outcome(self, client: str, work: Callable[[], Any], emit: Emit) -> tuple[Outcome, Any]:
        """Does a client's work; returns its outcome and its result."""
        try:
            return Outcome(client), work()
        except LwfedError as error:
            if error.exit_code in SHARED_CODES:
                raise
            return Outcome(client, error.exit_code, str(error)), None
        except Exception as error:  # a fault in one client must not end the others
            if debug():
                emit(ClientLog(client=client, line=traceback.format_exc()))
            return Outcome(client, 1, f"{type(error).__name__}: {error}"), None
