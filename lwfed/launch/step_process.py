"""A step in its own process: reads its task, reports progress as JSON lines, and exits when its coordinator is gone."""

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
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lwfed import environment
from lwfed.launch.dispatch import run_step
from lwfed.run.events import Event, values_of
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


def task_of(name: str, values: dict[str, Any]) -> Task:
    """Validates a step's task. Raises SpecError."""
    try:
        return STEPS[name].model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}" for item in error.errors())
        raise SpecError(f"the task of {name} is wrong: {wrong}", remedy="see lwfed/run/tasks.py for its keys") from None


def read_task(path: Path) -> dict[str, Any]:
    """Reads a task's values from a file, or from standard input if the path is `-`. Raises SpecError."""
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


def task_of_job(uri: str, job: str, *, index: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Returns a pod's task and the heartbeat that it must watch.

    Args:
        uri: The store's URI.
        job: The Job's name.
        index: The pod's index in the Job, from 0.

    Raises:
        NotFoundError: The store has no such Job.
        SpecError: The Job has no task with that index.
    """
    listed = open_store(uri).read_ref(paths.job(job))
    if listed is None:
        raise NotFoundError(f"the store {uri} has no Job {job}", remedy="the coordinator writes it before the Job")
    tasks = listed["tasks"]
    if index >= len(tasks):
        raise SpecError(f"the Job {job} has {len(tasks)} task(s), none with index {index}", remedy="delete that Job")
    return tasks[index], listed.get("heartbeat")


def run_task(name: str, task: Task, *, as_json: bool, bench: Workbench | None = None) -> dict[str, Any]:
    """Runs a step in this process.

    Args:
        name: The step's name.
        task: Its task.
        as_json: Whether to report progress on standard output.
        bench: The workbench that this process opened for earlier tasks.

    Returns:
        The step's result as plain values.
    """

    def emit(event: Event) -> None:
        if as_json and environment.rank() == 0:
            write_event(event.kind, values_of(event))

    with environment.ranks(use_gpu=task.place.device != "cpu"):
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
        return {"digest": record.digest}


def write_event(kind: str, values: dict[str, Any]) -> None:
    """Writes an event to standard output as one line of JSON."""
    sys.stdout.write(json.dumps({"event": kind, "values": values}) + "\n")
    sys.stdout.flush()


@contextmanager
def reporting_failure(as_json: bool) -> Iterator[None]:
    """Reports an error that ends the body as an event `failed`: torchrun hides the exit codes of its processes."""
    signal.signal(signal.SIGTERM, _terminated)  # a container's first process ignores what it does not handle
    try:
        yield
    except LwfedError as error:
        if as_json:
            write_event("failed", {"exit_code": error.exit_code, "message": str(error)})
        raise


def _terminated(number: int, _frame: FrameType | None) -> None:
    """Exits at once: uncommitted work is trained again, and half-written objects do not count."""
    os._exit(128 + number)


def exit_with_parent(parent: int) -> None:
    """Ends this process soon after another one ends, for whatever reason."""

    def look() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(POLL_S)

    threading.Thread(target=look, daemon=True).start()


def exit_without_coordinator(uri: str, beat: dict[str, Any], *, as_json: bool) -> None:
    """Ends this process when the coordinator's heartbeat stops."""
    error = CoordinatorGoneError(
        f"no heartbeat from the coordinator of {beat['run_id']} for {beat['timeout_s']:g} s",
        remedy=environment.resume_hint(),
    )

    def gone() -> None:
        if as_json:
            write_event("failed", {"exit_code": error.exit_code, "message": str(error)})
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)

    def look() -> None:
        watch(open_store(uri), beat["run_id"], every_s=beat["every_s"], timeout_s=beat["timeout_s"], on_gone=gone)

    threading.Thread(target=look, daemon=True, name="heartbeat").start()
