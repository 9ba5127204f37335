"""Clients one after another in this process: one client's state in memory at a time, weights and data kept at hand."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lwfed.environment import cache_folder, debug
from lwfed.steps.aggregate_round import aggregate_round, evaluate_round
from lwfed.steps.evaluate_client import evaluate_client
from lwfed.steps.finish import finish
from lwfed.steps.inspect_client import inspect_client
from lwfed.steps.launcher import Emit, Outcome
from lwfed.steps.prepare_run import prepare_here
from lwfed.steps.tasks import ClientTask, InspectTask, PoolTask, PrepareTask, RoundTask, RunTask, ServerTask
from lwfed.steps.train_client import train_client
from lwfed.steps.workbench import Workbench
from lwfed.types.errors import SHARED_CODES, LwfedError


def run_server_step(step: str, task: ServerTask, *, bench: Workbench, emit: Emit) -> dict[str, Any]:
    """Runs a step of the server's pool in this process; gives its result as plain values."""
    match step, task:
        case "prepare", PrepareTask():
            run = prepare_here(task, bench=bench, emit=emit, cache=cache_folder())
            return {"run_id": run["run_id"]}
        case "aggregate-round", RoundTask():
            return {"digest": aggregate_round(task, bench=bench)}
        case "evaluate-round", RoundTask():
            return dict(evaluate_round(task, bench=bench))
        case "finish", RunTask():
            return {"report": finish(task, bench=bench)}
    raise ValueError(f"`{step}` is no step of the server with a {type(task).__name__}")


def run_client_step(step: str, task: PoolTask, *, bench: Workbench, emit: Emit) -> dict[str, Any]:
    """Runs a client's step in this process; gives its result as plain values."""
    match step, task:
        case "train-client", ClientTask():
            update = train_client(task, bench=bench, on_step=step_teller(task.client, emit))
            return {"digest": update.get("digest", "")}
        case "evaluate-client", ClientTask():
            return evaluate_client(task, bench=bench)
        case "inspect-client", InspectTask():
            return inspect_client(task, bench=bench, emit=emit)
    raise ValueError(f"`{step}` is no step of a client with a {type(task).__name__}")


class InProcess:
    """The launcher that needs nothing but this process."""

    remote = False

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    def clients(self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit) -> Iterator[Outcome]:
        """Runs tasks in order; see `Launcher.clients`."""
        started = time.monotonic()
        for task in tasks:
            if time.monotonic() - started > deadline_s:
                yield Outcome(task.client, 1, f"not started before the deadline of {deadline_s:g} s")
                continue
            emit("client_started", {"client": task.client, "step": step})
            yield self._run(step, task, emit)

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs the server's step here."""
        run_server_step(step, task, bench=self._bench, emit=emit)

    def close(self) -> None:
        """Has nothing to let go of."""

    def _run(self, step: str, task: PoolTask, emit: Emit) -> Outcome:
        try:
            run_client_step(step, task, bench=self._bench, emit=emit)
        except LwfedError as error:
            if error.exit_code in SHARED_CODES:
                raise
            return Outcome(task.client, error.exit_code, str(error))
        except Exception as error:  # a fault in one client must not end the others
            if debug():
                emit("client_log", {"client": task.client, "line": traceback.format_exc()})
            return Outcome(task.client, 1, f"{type(error).__name__}: {error}")
        return Outcome(task.client)


def step_teller(client: str, emit: Emit) -> Callable[[int, int, float], None]:
    """Gives a callback that tells of each training step of a client."""

    def tell(step: int, steps: int, loss: float) -> None:
        values: dict[str, Any] = {"client": client, "step": step, "steps": steps, "loss": loss}
        emit("client_step", values)

    return tell
