"""Runs that Kubeflow Pipelines know: found by any of their names, read, retried, terminated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lwfed.run.specs import unpack_spec
from lwfed.spec.run import RunSpec
from lwfed.store.opening import open_store
from lwfed.types.errors import LwfedError, NotFoundError
from pipelines.client.errors import RefusedError
from pipelines.client.kubeflow import Access, Kfp, connect
from pipelines.client.submit import PIPELINE, named
from pipelines.states.records import Task, task_names

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TAIL = re.compile(r"(?:.*-)?([0-9a-f]{8})")
PAGE = 100
PAGES = 20
NAMED = "LWFED_RUN_ID"
"""The variable that names a run, where the spec sets it."""
OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


@dataclass(frozen=True)
class Facts:
    """What a run's own pipeline says of it.

    Attributes:
        tasks: Its tasks by name: title and stage.
        spec: The experiment; None where the store that holds it is out of reach.
        store: The store's URI.
        name: What lwfed calls the run.
    """

    tasks: Mapping[str, Task]
    spec: RunSpec | None
    store: str | None
    name: str | None


def open_run(access: Access, text: str) -> tuple[Kfp, Any, Facts]:
    """Connects, and finds a run by any of its names.

    Args:
        access: The server.
        text: As `find_run` takes it.

    Returns:
        The connection, the run as the API gives it, and what its pipeline says.

    Raises:
        LwfedError: What `connect` and `find_run` raise.
    """
    kfp = connect(access)
    run = find_run(kfp, text)
    return kfp, run, facts_of(kfp, run)


def find_run(kfp: Kfp, text: str) -> Any:
    """Finds a run by its id, the first eight or more characters of that, lwfed's id of it, or its name.

    Args:
        kfp: The server.
        text: Any of them, or `latest`.

    Returns:
        The run as the API gives it.

    Raises:
        NotFoundError: There is none, or there are several.
    """
    if UUID.fullmatch(text):
        return get_run(kfp, text)
    tail = TAIL.fullmatch(text)
    pipeline = own_pipeline(kfp) if text == "latest" else None
    named: list[Any] = []
    for run in all_pages(kfp, kfp.client._run_api.run_service_list_runs, items="runs", about="runs"):
        run_id = str(run.run_id)
        if text == "latest":
            if pipeline is not None and pipeline_of(run) == pipeline:
                return get_run(kfp, run_id)
        elif (tail and run_id.startswith(tail[1])) or (len(text) >= 8 and run_id.startswith(text)):
            return get_run(kfp, run_id)
        elif run.display_name == text:
            named.append(run)
    if len(named) == 1:
        return get_run(kfp, str(named[0].run_id))
    if named:
        ids = ", ".join(str(run.run_id)[:8] for run in named[:5])
        raise NotFoundError(f"{len(named)} runs are named {text}", remedy=f"name one by its id: {ids}")
    where = f" in {kfp.namespace}" if kfp.namespace else ""
    raise NotFoundError(
        f"{kfp.endpoint} knows no run {text}{where}",
        remedy="give the id that `lwfed submit` printed; see also --namespace",
    )


def get_run(kfp: Kfp, run_id: str) -> Any:
    """Reads a run."""
    return kfp.call(kfp.client._run_api.run_service_get_run, run_id, about=f"the run {run_id}")


def is_over(run: Any) -> bool:
    """Whether a run has ended. Its date of ending says nothing: it is that of 1970 while a run is being cancelled."""
    return run.state in OVER


def was_cancelled(run: Any) -> bool:
    """Whether a run was ended by hand: it ends as FAILED then too, and only its history says so."""
    states = [item.state for item in run.state_history or () if item.state != "FAILED"]
    return run.state == "CANCELED" or (run.state == "FAILED" and states[-1:] == ["CANCELING"])


def facts_of(kfp: Kfp, run: Any) -> Facts:
    """Reads what a run's pipeline says: its tasks, its spec, its store."""
    pipeline = _pipeline_spec(kfp, run)
    given = dict(run.runtime_config.parameters or {}) if run.runtime_config else {}
    constants = _constants(pipeline)
    text, store = (given.get(key) or constants.get(key) for key in ("spec", "store"))
    spec = _spec(text, store)
    name = run_name(spec, str(run.run_id)) if spec else None
    return Facts(tasks=task_names(pipeline), spec=spec, store=store, name=name)


def run_name(spec: RunSpec, run_id: str) -> str:
    """Gives what lwfed calls a pipeline run of a spec: its tasks name it so themselves."""
    return spec.kubernetes.env.get(NAMED) or f"{spec.name}-{run_id[:8]}"


def namespace_of(access: Access, kfp: Kfp, facts: Facts) -> str:
    """Returns the namespace of a run's pods."""
    own = facts.spec.kubernetes.namespace if facts.spec else None
    return access.namespace or kfp.namespace or own or "kubeflow"


def retry(kfp: Kfp, run: Any) -> None:
    """Starts the failed tasks of a run again; those that succeeded stay.

    Raises:
        RefusedError: It has not failed, or Kubeflow Pipelines cannot.
    """
    run_id = str(run.run_id)
    if run.state in ("SUCCEEDED", "SKIPPED"):
        raise RefusedError(
            f"the run {run_id} is {run.state}: nothing of it failed",
            remedy="lwfed rerun RUN --stage S trains a stage again",
        )
    if not is_over(run):
        raise RefusedError(
            f"the run {run_id} is {run.state or 'PENDING'}: only what has failed can be tried again",
            remedy=f"wait for its end, or end it: lwfed cancel {run_id}",
        )
    try:
        kfp.call(kfp.client._run_api.run_service_retry_run, run_id, about=f"to retry the run {run_id}")
    except RefusedError as error:
        raise RefusedError(
            error.problem,
            remedy="submit the experiment again: what is committed is not done twice",
            status=error.status,
        ) from None


def terminate(kfp: Kfp, run: Any) -> bool:
    """Ends a run's tasks; False where it was over already."""
    if is_over(run):
        return False
    try:
        kfp.call(kfp.client._run_api.run_service_terminate_run, str(run.run_id), about=f"to end the run {run.run_id}")
    except LwfedError as error:
        if "Row not found" in str(error):  # it ended in between
            return False
        raise
    return True


def all_pages(kfp: Kfp, method: Callable[..., Any], *, items: str, about: str) -> Iterator[Any]:
    """Yields what a list of the API holds, page by page, the newest first.

    Args:
        kfp: The server.
        method: The list's method of the generated API.
        items: Where an answer has them, such as `runs`.
        about: What is asked for.
    """
    token: str | None = None
    for _ in range(PAGES):
        found = kfp.call(
            method, about=about, namespace=kfp.namespace, page_token=token, page_size=PAGE, sort_by="created_at desc"
        )
        yield from getattr(found, items) or ()
        token = found.next_page_token
        if not token:
            return


def own_pipeline(kfp: Kfp) -> str | None:
    """Returns the id of lwfed's pipeline; None where nothing was submitted yet."""
    found = kfp.call(
        kfp.client._pipelines_api.pipeline_service_list_pipelines,
        about="pipelines",
        filter=named(PIPELINE),
        namespace=kfp.namespace,
    )
    return next((str(pipeline.pipeline_id) for pipeline in found.pipelines or ()), None)


def pipeline_of(run: Any) -> str | None:
    """Returns the id of the pipeline that a run or a schedule belongs to; None where it belongs to none."""
    reference = run.pipeline_version_reference
    return reference.pipeline_id if reference else None


def _pipeline_spec(kfp: Kfp, run: Any) -> Mapping[str, Any]:
    spec = run.pipeline_spec
    reference = run.pipeline_version_reference
    if not spec and reference is not None:
        version = kfp.call(
            kfp.client._pipelines_api.pipeline_service_get_pipeline_version,
            reference.pipeline_id,
            reference.pipeline_version_id,
            about="the run's pipeline version",
        )
        spec = version.pipeline_spec
    if not isinstance(spec, dict):
        return {}
    inner = spec.get("pipeline_spec")
    return inner if isinstance(inner, dict) else spec


def _constants(pipeline: Mapping[str, Any]) -> dict[str, str]:
    """Gives the texts that a compiled pipeline hands to its tasks, and its parameters' defaults."""
    found: dict[str, str] = {}
    definitions = (pipeline.get("root") or {}).get("inputDefinitions") or {}
    for key, value in (definitions.get("parameters") or {}).items():
        if isinstance(value.get("defaultValue"), str):
            found[key] = value["defaultValue"]
    for dag in [pipeline.get("root") or {}, *(pipeline.get("components") or {}).values()]:
        for task in ((dag.get("dag") or {}).get("tasks") or {}).values():
            for key, value in ((task.get("inputs") or {}).get("parameters") or {}).items():
                constant = (value.get("runtimeValue") or {}).get("constant")
                if isinstance(constant, str):
                    found.setdefault(key, constant)
    return found


def _spec(text: str | None, store: str | None) -> RunSpec | None:
    if not text or not store:
        return None
    try:
        return unpack_spec(text, store=open_store(store))
    except (LwfedError, OSError):
        return None
