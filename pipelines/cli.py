"""The plugins of `lwfed`: the commands for Kubeflow Pipelines, and the rerun on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.commands.cancel import cancel
from pipelines.commands.compile import compile_command
from pipelines.commands.logs import logs
from pipelines.commands.rerun import resubmit
from pipelines.commands.retry import retry
from pipelines.commands.schedules import schedules
from pipelines.commands.submit import submit
from pipelines.options import with_options

__all__ = ["COMMANDS", "resubmit"]

COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.removesuffix("_command"): with_options(command)
    for command in (compile_command, submit, retry, cancel, logs, schedules)
}
"""Name -> command."""
