"""Options that the commands for Kubeflow Pipelines share, and records whose attributes are options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from pipelines.client.pace import USUAL

KfpRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The pipeline run's id or its first 8 characters, its id in lwfed, its name, or `latest`."
    ),
]
Stages = Annotated[str | None, typer.Option("--stages", metavar="A-B", help="Train only these stages: 3-6, 3- or 3.")]
StartFrom = Annotated[
    str | None, typer.Option("--from", metavar="RUN:STAGE", help="Take the stages before STAGE from RUN.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the run to its end, with its exit code.")]
StartTimeout = Annotated[
    float,
    typer.Option(
        "--start-timeout", metavar="S", min=1, help="With --wait: give up after S seconds without a running container."
    ),
]
START_TIMEOUT_S = USUAL.start_timeout_s


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Expands a command's parameters whose types are dataclasses: each attribute becomes an option.

    Args:
        command: A function for typer. Attributes of its records are annotated like its other parameters.

    Returns:
        The function for typer, whose parameters are plain values.
    """
    signature = inspect.signature(command, eval_str=True)
    own = signature.parameters.values()
    records: dict[str, Any] = {item.name: item.annotation for item in own if is_dataclass(item.annotation)}
    parameters: list[inspect.Parameter] = []
    for item in own:
        if item.name in records:
            hints = get_type_hints(item.annotation, include_extras=True)
            named = [(field.name, field.default, hints[field.name]) for field in fields(item.annotation)]
        else:
            named = [(item.name, item.default, item.annotation)]
        parameters += [inspect.Parameter(n, item.KEYWORD_ONLY, default=d, annotation=a) for n, d, a in named]

    @functools.wraps(command)
    def plain(**given: Any) -> None:
        for name, record in records.items():
            given[name] = record(**{field.name: given.pop(field.name) for field in fields(record)})
        command(**given)

    plain.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect reads it
    plain.__annotations__ = {item.name: item.annotation for item in parameters}
    return plain
