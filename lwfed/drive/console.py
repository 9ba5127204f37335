"""Output: consoles as wide as the terminal, or wide enough for tables elsewhere; JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 132


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def make_table(title: str | None = None) -> Table:
    """Returns a table in lwfed's style."""
    return Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)


def print_json(value: Any) -> None:
    """Prints one JSON object as one line on standard output; escapes what the terminal cannot show."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
