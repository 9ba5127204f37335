"""Finds runs of Kubeflow Pipelines by any of their names, and reads them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lwfed.run.specs import unpack_spec
from lwfed.spec.run import RunSpec
from lwfed.store.opening import open_store
from lwfed.types.errors import LwfedError, NotFoundError
from pipelines import PIPELINE
from pipelines.client.connection import Access, Kfp, connect
from pipelines.tasks import Task, task_names, texts_of

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TAIL = re.compile(r"(?:.*-)?([0-9a-f]{8})")
PAGE = 100
PAGES = 20
NAMED = "LWFED_RUN_ID"
"""The variable that names a run, if the spec sets it."""
OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A pipeline run, with the facts from its own pipeline.

    Attributes:
        kfp: Its server.
        id: Its id in Kubeflow Pipelines.
        namespace: The namespace of its pods.
        name: Its id in lwfed; None if the store with its spec is not reachable.
        store: The store's URI; None if its pipeline names none.
        tasks: Its tasks by name.
    """

    kfp: Kfp
    id: str
    namespace: str
    name: str | None
    store: str | None
    tasks: Mapping[str, Task]

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.name or self.id

    @property
    def page(self) -> str:
        """The URL of its page, or a description if that is unknown."""
        return self.kfp.page(f"runs/details/{self.id}") or f"run {self.id} in Kubeflow's pages"


def open_run(access: Access, text: str) -> tuple[KnownRun, Any]:
    """Connects, finds a run by any of its names, and reads its pipeline.

    Args:
        access: The server.
        text: Its id or the first eight or more characters of that, its id in lwfed, its name, or `latest`.

    Returns:
        The run, and the API's record of it.

    Raises:
        NotFoundError: There is no such run, or there are several.
        LwfedError: Any error of `connect`.
    """
    kfp = connect(access)
    found = _find_run(kfp, text)
    pipeline = _pipeline_spec(kfp, found)
    given, defaults = (found.runtime_config and found.runtime_config.parameters) or {}, texts_of(pipeline)
    packed, store = (given.get(key) or defaults.get(key) for key in ("spec", "store"))
    spec = _spec(packed, store)
    run = KnownRun(
        kfp=kfp,
        id=str(found.run_id),
        namespace=access.namespace or kfp.namespace or (spec.kubernetes.namespace if spec else "kubeflow"),
        name=run_name(spec, str(found.run_id)) if spec else None,
        store=store,
        tasks=task_names(pipeline),
    )
    return run, found


def _find_run(kfp: Kfp, text: str) -> Any:
    if UUID.fullmatch(text):
        return get_run(kfp, text)
    tail = TAIL.fullmatch(text)
    pipeline = own_pipeline(kfp) if text == "latest" else None
    alike: list[str] = []
    for run in all_pages(kfp, kfp.client.list_runs, items="runs"):
        run_id = str(run.run_id)
        if text == "latest":
            if pipeline is not None and pipeline_of(run) == pipeline:
                return get_run(kfp, run_id)
        elif (tail and run_id.startswith(tail[1])) or (len(text) >= 8 and run_id.startswith(text)):
            return get_run(kfp, run_id)
        elif run.display_name == text:
            alike.append(run_id)
    return get_run(kfp, only(alike, text, of="run", kfp=kfp, remedy="use the id that `lwfed submit` printed"))


def only(ids: list[str], text: str, *, of: str, kfp: Kfp, remedy: str) -> str:
    """Returns the one id that a text names.

    Raises:
        NotFoundError: There is none (with the given remedy), or there are several.
    """
    if len(ids) > 1:
        first = ", ".join(found[:8] for found in ids[:5])
        raise NotFoundError(f"{len(ids)} {of}s are named {text}", remedy=f"use one of their ids: {first}")
    if not ids:
        where = f" in {kfp.namespace}" if kfp.namespace else ""
        raise NotFoundError(f"{kfp.endpoint} has no {of} {text}{where}", remedy=f"{remedy}; see also --namespace")
    return ids[0]


def get_run(kfp: Kfp, run_id: str) -> Any:
    """Reads a run."""
    return kfp.call(kfp.client.get_run, run_id, about=f"the run {run_id}")


def is_over(found: Any) -> bool:
    """Whether a run has ended. Its end date does not tell: it is 1970 while a run is being cancelled."""
    return found.state in OVER


def wait_until(run: KnownRun, *, over: bool, seconds: float, poll_s: float) -> Any:
    """Waits until a run has ended, or runs again, at most `seconds`; returns the API's record of it."""
    ends_at = time.monotonic() + seconds
    while is_over(found := get_run(run.kfp, run.id)) != over and time.monotonic() < ends_at:
        time.sleep(poll_s)
    return found


def was_cancelled(found: Any) -> bool:
    """Whether a run was cancelled: it also ends as FAILED then, and only its history shows the difference."""
    states = [item.state for item in found.state_history or () if item.state != "FAILED"]
    return found.state == "CANCELED" or (found.state == "FAILED" and states[-1:] == ["CANCELING"])


def run_name(spec: RunSpec, run_id: str) -> str:
    """Returns lwfed's id of a pipeline run of a spec, as the run's own tasks name it."""
    return spec.kubernetes.env.get(NAMED) or f"{spec.name}-{run_id[:8]}"


def all_pages(kfp: Kfp, method: Callable[..., Any], *, items: str) -> Iterator[Any]:
    """Yields the items of a list of the API, page by page, newest first.

    Args:
        kfp: The server.
        method: The method of kfp's client.
        items: The answer's attribute with the items, such as `runs`.
    """
    token: str | None = None
    for _ in range(PAGES):
        found = kfp.call(
            method, about=items, namespace=kfp.namespace, page_token=token, page_size=PAGE, sort_by="created_at desc"
        )
        yield from getattr(found, items) or ()
        token = found.next_page_token
        if not token:
            return


def own_pipeline(kfp: Kfp) -> str | None:
    """Returns the id of lwfed's pipeline; None if nothing was submitted yet."""
    options = {"filter": by_name(PIPELINE), "namespace": kfp.namespace}
    found = kfp.call(kfp.client.list_pipelines, about="pipelines", **options)
    return next((str(pipeline.pipeline_id) for pipeline in found.pipelines or ()), None)


def by_name(name: str) -> str:
    """Returns a list's filter for items with a name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def pipeline_of(found: Any) -> str | None:
    """Returns the id of the pipeline of a run or a schedule; None if it has none."""
    reference = found.pipeline_version_reference
    return reference.pipeline_id if reference else None


def _pipeline_spec(kfp: Kfp, found: Any) -> Mapping[str, Any]:
    spec, reference = found.pipeline_spec, found.pipeline_version_reference
    if not spec and reference is not None:
        ids = reference.pipeline_id, reference.pipeline_version_id
        spec = kfp.call(kfp.client.get_pipeline_version, *ids, about="the run's pipeline version").pipeline_spec
    spec = spec if isinstance(spec, dict) else {}
    inner = spec.get("pipeline_spec")
    return inner if isinstance(inner, dict) else spec


def _spec(text: str | None, store: str | None) -> RunSpec | None:
    if not text or not store:
        return None
    try:
        return unpack_spec(text, store=open_store(store))
    except (LwfedError, OSError):
        return None
