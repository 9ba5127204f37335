"""`lwfed step`: one step with its task from a file; what a subprocess and a pod run."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from lwfed import environment
from lwfed.steps.tasks import ClientTask, RoundTask, StageTask
from lwfed.types.errors import LwfedError, SpecError

STEPS: dict[str, type[RoundTask] | type[StageTask]] = {
    "train-client": ClientTask,
    "evaluate-client": ClientTask,
    "aggregate-round": RoundTask,
    "evaluate-round": RoundTask,
    "train-stage": StageTask,
}
POLL_S = 1.0


def step(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(STEPS)}.")],
    task: Annotated[Path, typer.Option("--task", metavar="FILE", help="The task, as JSON; - reads standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print progress as one JSON object a line.")] = False,
) -> None:
    """Run one step, as a client's process or a pod does."""
    if name not in STEPS:
        raise SpecError(f"there is no step `{name}`", remedy=f"name one of {', '.join(STEPS)}")
    work = _task_of(name, _read(task))
    try:
        with environment.ranks(use_gpu=work.place.device != "cpu"):
            result = _run(name, work, as_json=as_json)
    except LwfedError as error:
        if as_json:
            _tell("failed", {"exit_code": error.exit_code, "message": str(error)})
        raise
    if result and not as_json:
        typer.echo(json.dumps(result))


def _run(name: str, task: RoundTask | StageTask, *, as_json: bool) -> dict[str, Any]:
    from lwfed.launch.in_process import step_teller
    from lwfed.launch.launchers import make_launcher
    from lwfed.steps import runs
    from lwfed.steps.aggregate_round import aggregate_round, evaluate_round
    from lwfed.steps.evaluate_client import evaluate_client
    from lwfed.steps.train_client import train_client
    from lwfed.steps.train_stage import train_stage
    from lwfed.steps.workbench import Workbench

    def emit(kind: str, told: dict[str, Any]) -> None:
        if as_json and environment.rank() == 0:
            _tell(kind, told)

    if isinstance(task, ClientTask):
        if task.parent_pid is not None:
            _end_with(task.parent_pid)
        bench = Workbench.at(task.store)
        if name == "train-client":
            update = train_client(task, bench=bench, on_step=step_teller(task.client, emit))
            return {"digest": update.get("digest", "")}
        return evaluate_client(task, bench=bench)
    bench = Workbench.at(task.store)
    if isinstance(task, RoundTask):
        if name == "evaluate-round":
            return evaluate_round(task, bench=bench)
        return {"digest": aggregate_round(task, bench=bench)}
    spec = runs.spec_of(runs.read_run(bench.store, task.run_id))
    record = train_stage(task, launcher=make_launcher(spec.launch, bench=bench), bench=bench, emit=emit)
    return {"digest": record["digest"]}


def _task_of(name: str, values: dict[str, Any]) -> RoundTask | StageTask:
    try:
        return STEPS[name].model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}" for item in error.errors())
        raise SpecError(
            f"the task of {name} is wrong: {wrong}", remedy="see lwfed/steps/tasks.py for its keys"
        ) from None


def _tell(kind: str, values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"event": kind, "values": values}) + "\n")
    sys.stdout.flush()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        values = json.loads(content)
    except OSError as error:
        raise SpecError(f"the task {path} cannot be read: {error.strerror}", remedy="name a JSON file") from None
    except ValueError as error:
        raise SpecError(f"the task {path} is not JSON: {error}", remedy="name a JSON file") from None
    if not isinstance(values, dict):
        raise SpecError(f"the task {path} holds no JSON object", remedy="see lwfed/steps/tasks.py for its keys")
    return values


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that asked for its work is gone, however that ended."""

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(POLL_S)

    threading.Thread(target=watch, daemon=True).start()
