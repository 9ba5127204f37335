"""A command's output: lines for people, and with --json one JSON object for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from lwfed.drive.console import make_console, print_json
from lwfed.types.errors import LwfedError, exit_name


@dataclass(frozen=True, slots=True)
class Screen:
    """The output of a command.

    Attributes:
        console: Shows lines for people.
        as_json: Whether to print one JSON object as the last line of standard output.
    """

    console: Console
    as_json: bool = False

    def say(self, line: str) -> None:
        """Prints a line for people, without markup."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def result(self, values: Mapping[str, Any]) -> None:
        """Prints the JSON object for programs, with --json."""
        if self.as_json:
            print_json(values)


def make_screen(as_json: bool = False) -> Screen:
    """Returns a screen; with `as_json` its lines for people go to standard error."""
    return Screen(make_console(stderr=as_json), as_json)


def error_values(error: LwfedError | None) -> dict[str, Any] | None:
    """Returns an error as plain values."""
    if error is None:
        return None
    name = exit_name(error.exit_code)
    return {"exit_code": error.exit_code, "name": name, "problem": error.problem, "remedy": error.remedy}
