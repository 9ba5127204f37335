"""Output: consoles as wide as the terminal, or wide enough for tables elsewhere; JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, OverflowMethod
from rich.table import Table

WIDTH = 132


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console that prints lines as they are: unbroken, and without colours of its own."""
    width = None if Console(stderr=stderr).is_terminal else WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=True)


def make_table(
    title: str | None = None,
    *,
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    overflow: OverflowMethod = "ellipsis",
    no_wrap: bool = False,
) -> Table:
    """Returns a table in lwfed's style.

    Args:
        title: Its title.
        left: Heads of the left-aligned columns, which come first.
        right: Heads of the right-aligned ones.
        overflow: What becomes of text that is too long for its column.
        no_wrap: Whether each row stays on one line.
    """
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for head in left:
        table.add_column(head, overflow=overflow, no_wrap=no_wrap)
    for head in right:
        table.add_column(head, justify="right", overflow=overflow, no_wrap=no_wrap)
    return table


def print_json(value: Any) -> None:
    """Prints one JSON object as one line on standard output; escapes what the terminal cannot show."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
