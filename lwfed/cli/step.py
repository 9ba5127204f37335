"""`lwfed step`: runs one step, with its task from a file or from a Job's task list; the command of every pod."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lwfed import environment
from lwfed.launch.step_process import (
    STEPS,
    exit_with_parent,
    exit_without_coordinator,
    read_task,
    reporting_failure,
    run_task,
    task_of,
    task_of_job,
)
from lwfed.run.tasks import ClientTask, InspectTask
from lwfed.types.errors import SpecError


def step(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(STEPS)}.")],
    task: Annotated[
        Path | None, typer.Option("--task", metavar="FILE", help="The task, as JSON; - reads standard input.")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="The store with the Job's task list.")
    ] = None,
    job: Annotated[
        str | None, typer.Option("--job", metavar="NAME", help="The Job; the pod's index selects a task from its list.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print progress as one JSON object per line.")] = False,
) -> None:
    """Run one step, as a client's process or a pod does."""
    if name not in STEPS:
        raise SpecError(f"there is no step `{name}`", remedy=f"name one of {', '.join(STEPS)}")
    with reporting_failure(as_json):
        if task is not None:
            values = read_task(task)
        elif store is not None and job is not None:
            values, beat = task_of_job(store, job, index=environment.job_index())
            if beat is not None:
                exit_without_coordinator(store, beat, as_json=as_json)
        else:
            raise SpecError("a step needs a task", remedy="pass --task FILE, or --store URI and --job NAME")
        known = task_of(name, values)
        if isinstance(known, ClientTask | InspectTask) and known.parent_pid is not None:
            exit_with_parent(known.parent_pid)
        result = run_task(name, known, as_json=as_json)
    if result and not as_json:
        typer.echo(json.dumps(result))
