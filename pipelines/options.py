"""Options that the commands for Kubeflow Pipelines share; those of the connection are the attributes of `Access`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

from pipelines.client.connection import Access

KfpRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The pipeline run's id or its first 8 characters, lwfed's id of it, its name, or `latest`."
    ),
]
Stages = Annotated[str | None, typer.Option("--stages", metavar="A-B", help="Train these stages alone: 3-6, 3- or 3.")]
StartFrom = Annotated[
    str | None, typer.Option("--from", metavar="RUN:STAGE", help="Take the stages before STAGE from that run.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow it to its end; the exit code is the run's own.")]
StartTimeout = Annotated[
    float,
    typer.Option(
        "--start-timeout", metavar="S", min=1, help="With --wait: give up after S seconds without a container at work."
    ),
]


def with_access(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command the options of `Access`, where it has the parameter `access`.

    Args:
        command: A function for typer, whose parameters have names alone.

    Returns:
        The function that typer takes: with one parameter per attribute of `Access` instead.
    """
    hints = get_type_hints(Access, include_extras=True)
    names = [field.name for field in fields(Access)]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name]) for name in names
    ]
    signature = inspect.signature(command, eval_str=True)
    own = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in signature.parameters.values()]
    at = [item.name for item in own].index("access")

    @functools.wraps(command)
    def taken(**given: Any) -> None:
        command(access=Access(**{name: given.pop(name) for name in names}), **given)

    parameters = [*own[:at], *options, *own[at + 1 :]]
    taken.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    taken.__annotations__ = {item.name: item.annotation for item in parameters}
    return taken
