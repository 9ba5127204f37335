"""Clients one after another in this process: one client's state in memory at a time, weights and data kept at hand."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lwfed.environment import debug
from lwfed.steps.aggregate_round import aggregate_round, evaluate_round
from lwfed.steps.evaluate_client import evaluate_client
from lwfed.steps.launcher import Emit, Outcome
from lwfed.steps.tasks import ClientTask, RoundTask
from lwfed.steps.train_client import train_client
from lwfed.steps.workbench import Workbench
from lwfed.types.errors import SHARED_CODES, LwfedError

SERVER_STEPS: dict[str, Callable[..., object]] = {
    "aggregate-round": aggregate_round,
    "evaluate-round": evaluate_round,
}


class InProcess:
    """The launcher that needs nothing but this process."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    def clients(self, step: str, tasks: Sequence[ClientTask], *, deadline_s: float, emit: Emit) -> Iterator[Outcome]:
        """Runs tasks in order; see `Launcher.clients`."""
        started = time.monotonic()
        for task in tasks:
            if time.monotonic() - started > deadline_s:
                yield Outcome(task.client, 1, f"not started before the deadline of {deadline_s:g} s")
                continue
            emit("client_started", {"client": task.client, "step": step})
            yield self._run(step, task, emit)

    def server(self, step: str, task: RoundTask) -> None:
        """Runs the server's step here."""
        SERVER_STEPS[step](task, bench=self._bench)

    def _run(self, step: str, task: ClientTask, emit: Emit) -> Outcome:
        try:
            if step == "train-client":
                train_client(task, bench=self._bench, on_step=step_teller(task.client, emit))
            else:
                evaluate_client(task, bench=self._bench)
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
