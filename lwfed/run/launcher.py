"""What a coordinator needs of the place where a round's work runs; `lwfed.launch` has the places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lwfed.run.events import Emit
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
    """A place where tasks run.

    Attributes:
        remote: Whether it is another machine: what this process sees of the data says nothing about it.
    """

    remote: bool

    def clients(self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit) -> Iterator[Outcome]:
        """Runs `train-client`, `evaluate-client` or `inspect-client` for many clients.

        Args:
            step: Which.
            tasks: One per client.
            deadline_s: Seconds from now after which what is not done is given up.
            emit: Receives progress: `ClientStarted`, `ClientStep`, `ClientLog`, `ClientWaiting`.

        Yields:
            An outcome per task, as they end.

        Raises:
            LwfedError: What would end every other client too, such as a full disk or a corrupted checkpoint
                (`lwfed.types.errors.SHARED_CODES`).
        """
        ...

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs `prepare`, `aggregate-round`, `evaluate-round` or `finish`; raises what it raises."""
        ...

    def close(self) -> None:
        """Closes threads and connections; what runs goes on."""
        ...
