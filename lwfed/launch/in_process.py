"""Runs clients one after another in this process, and keeps weights and data in memory between them.

One client trains at a time. Meanwhile the previous client's update is hashed, written and added to the round's sums.
So besides the training client, memory holds the global model, another client's trained tensors, and sums of up to
`updates.MAX_BYTES`; a GPU's memory holds only the global model of these.

With `store.updates: memory` updates are only added to the sums, of any size, and not written.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from lwfed.catalog.launchers.in_process import DESCRIPTION
from lwfed.environment import debug
from lwfed.federated.aggregator import make_aggregator
from lwfed.launch.dispatch import run_step, step_reporter
from lwfed.round.aggregate_round import HeldRound, aggregate_round, global_model
from lwfed.round.held_fold import HeldFold
from lwfed.round.runtime import memory_errors
from lwfed.round.senders import Counted
from lwfed.round.train_client import Trained, commit, count_examples, hold, train_locally
from lwfed.round.updates import RunningFold, begin_fold
from lwfed.round.workbench import Workbench
from lwfed.run.events import ClientLog, ClientStarted, Emit
from lwfed.run.held import HeldUpdates
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import ClientTask, PoolTask, RoundTask, ServerTask
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import SHARED_CODES, DataError, LwfedError, SpecError

PATIENCE = 0.02
"""Share of a client's training time to wait for its commit, so that a quick commit is reported at once."""


class Deadline(NamedTuple):
    """A number of seconds, and when they are over by the monotonic clock."""

    seconds: float
    ends_at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Returns the deadline that many seconds from now."""
        return cls(seconds, time.monotonic() + seconds)


def make(spec: RunSpec, *, store: Store, run_id: str) -> InProcess:
    """Makes the launcher; see `launchers.make_launcher`."""
    return InProcess(store, in_memory=spec.store.updates == "memory")


class InProcess:
    """The launcher that runs everything in this process.

    Args:
        store: The run's store.
        in_memory: Whether updates stay in memory, instead of in the store.
    """

    remote = DESCRIPTION.remote
    holds_model = True

    def __init__(self, store: Store, *, in_memory: bool = False) -> None:
        self.bench = Workbench(store, holds_model=self.holds_model)
        self.held = HeldUpdates() if in_memory else None
        self._fold: HeldFold | None = None
        self._running: RunningFold | None = None
        self._counted: dict[tuple[str, str], Counted] = {}

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        """Runs tasks in order; see `Launcher.clients`."""
        training = [task for task in tasks if isinstance(task, ClientTask)] if step == "train-client" else []
        if self.held is not None and training:
            need = len(training) if need is None else need
            yield from self._train_in_memory(training, self.held, deadline_s=deadline_s, emit=emit, need=need)
            return
        if training:
            self._running = self._begin_fold(training)
        yield from self._in_order(step, tasks, deadline=Deadline.after(deadline_s), emit=emit, need=need)

    def _train_in_memory(
        self, tasks: Sequence[ClientTask], held: HeldUpdates, *, deadline_s: float, emit: Emit, need: int
    ) -> Iterator[Outcome]:
        """Trains clients and adds their updates to the round's sums.

        If a failure makes the sums void, those who have trained do it again, and end in the same updates.
        """
        deadline = Deadline.after(deadline_s)
        rest, done, void = list(tasks), set[str](), True
        while void:
            held.updates.clear()
            counted = self._counts(rest, held)
            able = [task for task in rest if task.client in counted]
            able = [*sorted(able[:need], key=lambda task: task.client), *able[need:]]
            rest = [*(task for task in rest if task.client not in counted), *able]  # who will fail, fails first
            sums = self._fold = self._begin_sums(tasks[0], [task.client for task in able], counted, need=need)
            void, failed = False, set[str]()
            with closing(
                self._in_order("train-client", rest, deadline=deadline, emit=emit, need=need, late=done)
            ) as ran:
                for outcome in ran:
                    if outcome.exit_code:
                        failed.add(outcome.client)
                    if outcome.exit_code or outcome.client not in done:
                        yield outcome
                    done |= {outcome.client} - failed
                    void = sums.is_void
                    if void and outcome.exit_code:
                        break
            rest = [task for task in rest if task.client not in failed]

    def _in_order(
        self,
        step: str,
        tasks: Sequence[PoolTask],
        *,
        deadline: Deadline,
        emit: Emit,
        need: int | None,
        late: Collection[str] = (),
    ) -> Generator[Outcome, None, None]:
        """Runs tasks in order; those of the clients in `late` start after the deadline, too."""
        work: Callable[[PoolTask], Any] = partial(run_step, step, bench=self.bench, emit=emit)
        missing = len(tasks) if need is None else need
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit") as pool:
            committing: tuple[str, Future[Any]] | None = None
            if step == "train-client":
                work = partial(self._train, pool=pool, emit=emit)
            for task in tasks:
                if committing is not None and missing == 1:  # it may be the last one needed
                    settled = self._outcome(committing[0], committing[1].result, emit)[0]
                    committing, missing = None, missing - (settled.exit_code == 0)
                    yield settled
                if missing <= 0:
                    break
                outcome = Outcome(task.client, 1, f"not started before the deadline of {deadline.seconds:g} s")
                begun: Any = None
                if time.monotonic() > deadline.ends_at and task.client not in late:
                    self._drop(task, pool)
                else:
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
            summed, self._fold = self._fold, None
            accepted = self.held and self.held.accepted_in(task.stage_key, task.server_round)
            held = HeldRound(accepted, summed) if accepted else None
            aggregate_round(task, bench=self.bench, running=running, held=held)
        else:
            run_step(step, task, bench=self.bench, emit=emit)

    def close(self) -> None:
        """Forgets the model."""
        self._running = self._fold = None
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

    def _begin_sums(
        self, task: RoundTask, order: Sequence[str], counted: Mapping[str, Counted], *, need: int
    ) -> HeldFold:
        """Begins the sums of a round whose updates stay in memory. Raises SpecError if an aggregator needs them all."""
        ctx = self.bench.round(task)
        model = global_model(ctx, bench=self.bench)
        aggregator = make_aggregator(ctx.plan.aggregators, model=model)
        if not aggregator.one_by_one:
            names = ", ".join(wrapper.kind for wrapper in ctx.plan.aggregators)  # type: ignore[attr-defined]  # they all have it
            raise SpecError(
                f"`federation.aggregators` ({names}) needs all updates of a round at once, and `store.updates: memory` "
                "keeps none of them",
                remedy="set store.updates=keep",
            )
        return HeldFold(ctx.plan, order=order, need=need, counted=counted, aggregator=aggregator, model=model)

    def _counts(self, tasks: Sequence[ClientTask], held: HeldUpdates) -> dict[str, Counted]:
        """Returns how much each client's update will count, on the round's terms; not of those that cannot train."""
        found = {}
        for task in tasks:
            place = task.stage_key, task.client
            with suppress(DataError):
                if place not in self._counted:
                    self._counted[place] = count_examples(task, bench=self.bench)
                if self._counted[place].num_examples:
                    found[task.client] = self._counted[place].on(held.terms[task.client])
        return found

    def _train(self, task: PoolTask, *, pool: ThreadPoolExecutor, emit: Emit) -> Future[Any] | None:
        """Trains a client; returns the commit of its update, which may still be running."""
        assert isinstance(task, ClientTask)
        started = time.monotonic()
        report, in_memory = step_reporter(task.client, emit), self.held is not None
        try:
            trained = train_locally(task, bench=self.bench, on_step=report, in_memory=in_memory)
        except Exception:
            self._drop(task, pool)
            raise
        if trained is None:
            return None
        here = replace(trained, tensors={name: tensor.cpu() for name, tensor in trained.tensors.items()})
        del trained  # leaves all of a GPU's memory to the next client
        committing = pool.submit(self._commit, here)
        wait([committing], timeout=PATIENCE * (time.monotonic() - started))
        return committing

    def _drop(self, task: PoolTask, pool: ThreadPoolExecutor) -> None:
        """Goes on with the round's sums, if there are any, without a client that failed."""
        if self._fold is not None:
            pool.submit(self._fold.drop, task.client).result()

    def _commit(self, trained: Trained) -> None:
        if self.held is not None and self._fold is not None:
            self._add(trained, self.held, self._fold)
            return
        ctx, running = trained.ctx, self._running
        with memory_errors():
            committed = commit(trained, keep=running is not None)
            self._counted[ctx.key, ctx.client] = Counted(trained.num_examples, trained.metrics.get("examples", {}))
            if running is not None and committed.sent is not None:
                running.add(ctx.client, committed.sent, digest=committed.update["digest"])

    def _add(self, trained: Trained, held: HeldUpdates, sums: HeldFold) -> None:
        """Adds an update to the round's sums."""
        client = trained.ctx.client
        counts = Counted(trained.num_examples, trained.metrics.get("examples", {}))
        self._counted[trained.ctx.key, client] = counts
        try:
            with memory_errors():
                update, sent = hold(trained)
                sums.add(client, sent, counts=counts.on(held.terms[client]))
        except Exception:
            sums.drop(client)
            raise
        held.updates[client] = update

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
