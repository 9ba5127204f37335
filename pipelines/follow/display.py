"""Shows a run in the cluster: one line per task, live on a terminal and as plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

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


class TaskDisplay(Live):
    """Shows tasks; prints a plain line for each change of state.

    Args:
        console: The console; on a terminal it is live, and only the lines of ended tasks stay.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, refresh_per_second=4, transient=True)
        self._states: dict[str, str] = {}
        self._state = ""

    def tasks(self, state: str, states: Sequence[TaskState]) -> None:
        """Receives the current states of the tasks."""
        for task in states:
            if self._states.get(task.task.name) != task.state:
                self._states[task.task.name] = task.state
                if not self.console.is_terminal or task.state in ENDED:
                    self.say(_line(task), markup=True)
        if state != self._state:
            self._state = state
            self.say(f"the run is {state.lower()}")
        self.update(Text.from_markup("\n".join(_line(task) for task in states if task.state not in ENDED)))

    def say(self, line: str, *, markup: bool = False) -> None:
        """Prints a line for people."""
        self.console.print(line if markup else escape(line), highlight=False, soft_wrap=True)


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
