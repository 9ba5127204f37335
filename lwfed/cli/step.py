"""`lwfed step`: one step with its task from a file or a Job's list; what a subprocess and a pod run."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from lwfed import environment
from lwfed.launch.dispatch import run_step
from lwfed.run.heartbeat import watch
from lwfed.run.tasks import ClientTask, InspectTask, PrepareTask, RoundTask, RunTask, StageTask
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.types.errors import CoordinatorGoneError, LwfedError, NotFoundError, SpecError

if TYPE_CHECKING:
    from lwfed.round.workbench import Workbench

Task = RunTask | RoundTask

STEPS: dict[str, type[Task]] = {
    "inspect-client": InspectTask,
    "train-client": ClientTask,
    "evaluate-client": ClientTask,
    "prepare": PrepareTask,
    "aggregate-round": RoundTask,
    "evaluate-round": RoundTask,
    "finish": RunTask,
    "train-stage": StageTask,
}
POLL_S = 1.0


def step(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(STEPS)}.")],
    task: Annotated[
        Path | None, typer.Option("--task", metavar="FILE", help="The task, as JSON; - reads standard input.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="URI", help="The store that holds the Job.")] = None,
    job: Annotated[
        str | None, typer.Option("--job", metavar="NAME", help="The Job; the pod's index picks the task of its list.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print progress as one JSON object a line.")] = False,
) -> None:
    """Run one step, as a client's process or a pod does."""
    if name not in STEPS:
        raise SpecError(f"there is no step `{name}`", remedy=f"name one of {', '.join(STEPS)}")
    with _telling_of_failure(as_json):
        if task is not None:
            values = read_task(task)
        elif store is not None and job is not None:
            values, beat = _task_of_job(store, job, index=environment.job_index())
            if beat is not None:
                _end_without_coordinator(store, beat, as_json=as_json)
        else:
            raise SpecError("a step needs its task", remedy="give --task FILE, or --store URI and --job NAME")
        result = _run(name, task_of(name, values), as_json=as_json)
    if result and not as_json:
        typer.echo(json.dumps(result))


def run_client(name: str, path: Path, *, bench: Workbench | None) -> None:
    """Runs a client's step as `lwfed step NAME --task PATH --json` does, in a process that was forked for it.

    Args:
        name: Which.
        path: Its task, as JSON.
        bench: What this process inherited, but for the store, whose connections are a process's own; None: nothing.

    Raises:
        LwfedError: What the step raises; told already.
    """
    with _telling_of_failure(True):
        task = task_of(name, read_task(path))
        if bench is not None:
            bench.store = open_store(task.store)
        _run(name, task, as_json=True, bench=bench)


@contextmanager
def _telling_of_failure(as_json: bool) -> Iterator[None]:
    signal.signal(signal.SIGTERM, _terminated)  # a container's first process ignores what it does not handle
    try:
        yield
    except LwfedError as error:
        if as_json:
            _tell("failed", {"exit_code": error.exit_code, "message": str(error)})
        raise


def _run(name: str, task: Task, *, as_json: bool, bench: Workbench | None = None) -> dict[str, Any]:
    with environment.ranks(use_gpu=task.place.device != "cpu"):
        return _run_on(name, task, as_json=as_json, bench=bench)


def _run_on(name: str, task: Task, *, as_json: bool, bench: Workbench | None) -> dict[str, Any]:
    def emit(kind: str, told: dict[str, Any]) -> None:
        if as_json and environment.rank() == 0:
            _tell(kind, told)

    if isinstance(task, ClientTask | InspectTask) and task.parent_pid is not None:
        _end_with(task.parent_pid)
    if not isinstance(task, StageTask):
        return run_step(name, task, emit=emit, bench=bench)
    from lwfed.launch.launchers import make_launcher
    from lwfed.round.train_stage import train_stage
    from lwfed.run import runs

    store = open_store(task.store)
    launcher = make_launcher(runs.spec_of(runs.read_run(store, task.run_id)), store=store, run_id=task.run_id)
    try:
        record = train_stage(task, launcher=launcher, store=store, emit=emit)
    finally:
        launcher.close()
    return {"digest": record["digest"]}


def task_of(name: str, values: dict[str, Any]) -> Task:
    """Gives a step's task from plain values. Raises SpecError where they are none."""
    try:
        return STEPS[name].model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}" for item in error.errors())
        raise SpecError(f"the task of {name} is wrong: {wrong}", remedy="see lwfed/run/tasks.py for its keys") from None


def _task_of_job(uri: str, job: str, *, index: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Gives a pod's task, and the heartbeat it is to watch."""
    listed = open_store(uri).read_ref(paths.job(job))
    if listed is None:
        raise NotFoundError(f"the store {uri} has no Job {job}", remedy="the coordinator writes it before it makes it")
    tasks = listed["tasks"]
    if index >= len(tasks):
        raise SpecError(f"the Job {job} has {len(tasks)} task(s), and no number {index}", remedy="delete that Job")
    return tasks[index], listed.get("heartbeat")


def _tell(kind: str, values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"event": kind, "values": values}) + "\n")
    sys.stdout.flush()


def read_task(path: Path) -> dict[str, Any]:
    """Reads a task's values from a file, or from standard input where it is `-`. Raises SpecError."""
    try:
        content = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        values = json.loads(content)
    except OSError as error:
        raise SpecError(f"the task {path} cannot be read: {error.strerror}", remedy="name a JSON file") from None
    except ValueError as error:
        raise SpecError(f"the task {path} is not JSON: {error}", remedy="name a JSON file") from None
    if not isinstance(values, dict):
        raise SpecError(f"the task {path} holds no JSON object", remedy="see lwfed/run/tasks.py for its keys")
    return values


def _terminated(number: int, _frame: FrameType | None) -> None:
    """Ends at once: what is not committed is trained again, and nothing half-written counts."""
    os._exit(128 + number)


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that asked for its work is gone, however that ended."""

    def look() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(POLL_S)

    threading.Thread(target=look, daemon=True).start()


def _end_without_coordinator(uri: str, beat: dict[str, Any], *, as_json: bool) -> None:
    """Ends this process when the coordinator shows no sign of life."""
    error = CoordinatorGoneError(
        f"no sign of life from the coordinator of {beat['run_id']} for {beat['timeout_s']:g} s",
        remedy=environment.go_on(),
    )

    def gone() -> None:
        if as_json:
            _tell("failed", {"exit_code": error.exit_code, "message": str(error)})
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)

    def look() -> None:
        watch(
            open_store(uri), beat["run_id"], every_s=beat["every_s"], timeout_s=beat["timeout_s"], on_gone=gone
        )  # fmt: skip

    threading.Thread(target=look, daemon=True, name="heartbeat").start()
