"""Runs a step by its name. Its modules are imported only then, since imports are most of a pod's start-up time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lwfed.environment import cache_folder
from lwfed.run.events import ClientStep, Emit
from lwfed.run.tasks import ClientTask, InspectTask, PoolTask, PrepareTask, RoundTask, RunTask, ServerTask
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store

if TYPE_CHECKING:
    from lwfed.round.workbench import Workbench


def run_step(step: str, task: PoolTask | ServerTask, *, emit: Emit, bench: Workbench | None = None) -> dict[str, Any]:
    """Runs a client's or the server's step in this process.

    Args:
        step: The step's name.
        task: Its task.
        emit: Receives progress events.
        bench: The process's workbench; None: there is none yet, and a step that computes with tensors makes one.

    Returns:
        The step's result as plain values.
    """
    store = open_store(task.store) if bench is None else bench.store
    match step, task:
        case "prepare", PrepareTask():
            from lwfed.steps.prepare_run import prepare_run

            run = prepare_run(task, store=store, emit=emit, cache=cache_folder())
            return {"run_id": run.run_id}
        case "inspect-client", InspectTask():
            from lwfed.steps.inspect_client import inspect_client

            return inspect_client(task, store=store, emit=emit, cache=cache_folder())
        case "train-client", ClientTask():
            from lwfed.round.train_client import train_client

            update = train_client(task, bench=_bench(bench, store, emit), on_step=step_reporter(task.client, emit))
            return {"digest": update.get("digest", "")}
        case "evaluate-client", ClientTask():
            from lwfed.round.evaluate_client import evaluate_client

            return evaluate_client(task, bench=_bench(bench, store, emit))
        case "aggregate-round", RoundTask():
            from lwfed.round.aggregate_round import aggregate_round

            return {"digest": aggregate_round(task, bench=_bench(bench, store, emit))}
        case "evaluate-round", RoundTask():
            from lwfed.round.evaluate_round import evaluate_round

            return dict(evaluate_round(task, bench=_bench(bench, store, emit)))
        case "finish", RunTask():
            from lwfed.steps.finish import finish

            return {"report": finish(task, bench=_bench(bench, store, emit))}
    raise ValueError(f"`{step}` is no step with a {type(task).__name__}")


def step_reporter(client: str, emit: Emit) -> Callable[[int, int, float], None]:
    """Returns a callback that emits an event for each training step of a client."""

    def report(step: int, steps: int, loss: float) -> None:
        emit(ClientStep(client=client, step=step, steps=steps, loss=loss))

    return report


def _bench(bench: Workbench | None, store: Store, emit: Emit) -> Workbench:
    if bench is not None:
        return bench
    from lwfed.round.workbench import Workbench

    return Workbench(store, emit=emit)
