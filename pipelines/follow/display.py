"""What a person sees of a run in the cluster: one line per task; live on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from lwfed.formats import seconds_text
from pipelines.states.records import ENDED, TaskState

COLOURS = {
    "RUNNING": "cyan",
    "SUCCEEDED": "green",
    "CACHED": "green",
    "FAILED": "red",
    "SKIPPED": "dim",
    "PENDING": "yellow",
}


class TaskDisplay:
    """Shows tasks; plain lines appear once for each change of state.

    Args:
        console: Where to; live where it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._shown: dict[str, str] = {}
        self._state = ""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def tasks(self, state: str, states: Sequence[TaskState]) -> None:
        """Takes what the tasks do now."""
        for task in states:
            if self._shown.get(task.task.name) != task.state:
                self._shown[task.task.name] = task.state
                if self._live is None or task.state in ENDED:
                    self.say(_line(task), markup=True)
        if state != self._state:
            self._state = state
            self.say(f"the run is {state.lower()}")
        if self._live:
            going = [task for task in states if task.state not in ENDED]
            self._live.update(Text.from_markup("\n".join(_line(task) for task in going)))

    def say(self, line: str, *, markup: bool = False) -> None:
        """Takes a line for people."""
        self._console.print(line if markup else escape(line), highlight=False, soft_wrap=True)


def row_of(state: TaskState) -> dict[str, Any]:
    """Returns a task as plain values."""
    return {
        "task": state.task.name,
        "title": state.task.title,
        "stage": state.task.stage,
        "state": state.state,
        "seconds": round(state.seconds(datetime.now(UTC)), 1),
    }


def _line(state: TaskState) -> str:
    colour = COLOURS.get(state.state, "default")
    took = seconds_text(state.seconds(datetime.now(UTC))) if state.started else ""
    return f"{escape(state.task.title):<32} [{colour}]{state.state.lower():<10}[/] {took}".rstrip()
