"""The launcher interface: how a coordinator runs a round's tasks; `lwfed.launch` has the implementations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lwfed.run.events import Emit
from lwfed.run.held import HeldUpdates
from lwfed.run.tasks import PoolTask, ServerTask


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a client's task ended.

    Attributes:
        client: Its id.
        exit_code: 0, or why it failed (`lwfed.types.errors.EXIT_CODES`).
        reason: One line; empty on success.
    """

    client: str
    exit_code: int = 0
    reason: str = ""


class Launcher(Protocol):
    """Runs tasks.

    Attributes:
        remote: Whether tasks run on other machines, which may see other data than this process does.
    """

    remote: bool

    @property
    def held(self) -> HeldUpdates | None:
        """Where a round's updates are, instead of in the store; None: they are in the store."""
        ...

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        """Runs `train-client`, `evaluate-client` or `inspect-client` for many clients.

        Args:
            step: The step's name.
            tasks: One task per client.
            deadline_s: Seconds from now after which unfinished tasks are abandoned.
            emit: Receives progress: `ClientStarted`, `ClientStep`, `ClientLog`, `ClientWaiting`.
            need: Number of successes after which the other tasks are stopped or not started; None: all are wanted.

        Yields:
            One outcome per task, as the tasks end; none for a task that is not needed any more.

        Raises:
            LwfedError: A failure that would affect every other client too, such as a full disk or a corrupted
                checkpoint (`lwfed.types.errors.SHARED_CODES`).
        """
        ...

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs `prepare`, `aggregate-round`, `evaluate-round` or `finish`, and raises the step's errors."""
        ...

    def close(self) -> None:
        """Closes threads and connections; running tasks continue."""
        ...
