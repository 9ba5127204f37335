"""The session of a pipeline's task: its spec from the store, the run's name, and a report of committed work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lwfed import environment
from lwfed.drive.console import make_console
from lwfed.drive.session import Session, driving
from lwfed.drive.task_resources import with_resources
from lwfed.report.page import render
from lwfed.run import runs
from lwfed.run.specs import unpack_spec
from lwfed.spec.run import RunSpec
from lwfed.store.opening import open_store
from lwfed.types.canonical import digest_of
from lwfed.types.records import RunRecord


@contextmanager
def task_session(spec: str, store: str, *, resources: Mapping[str, Any] | None = None) -> Iterator[Session]:
    """Opens and closes a task's session; shows progress as plain lines, which are the task's log.

    Args:
        spec: The spec, as returned by `pack_spec`.
        store: The store's URI.
        resources: See `with_resources`.

    Raises:
        LwfedError: The store, the spec in it or the cluster does not answer.
    """
    environment.quiet()
    opened = open_store(store)
    values = with_resources(unpack_spec(spec, store=opened), resources)
    with driving(values, run_id=run_id_of(values), store=opened, console=make_console()) as session:
        yield session


def run_id_of(spec: RunSpec) -> str:
    """Returns the id of the run that this process works on.

    Returns:
        `LWFED_RUN_ID`; else the spec's name with the first characters of the pipeline run's id (`KFP_RUN_ID`) or, if
        there is none, of the spec's digest.
    """
    named = environment.run_id()
    if named:
        return named
    tail = environment.kfp_run_id() or digest_of(spec.model_dump(mode="json"))
    return f"{spec.name}-{tail[:8]}"


def page(session: Session, run: RunRecord) -> str:
    """Returns a report of the work committed so far, with a link to the run in MLflow."""
    stages, rounds = runs.history(session.store, run)
    mlflow = session.mlflow()
    address = mlflow.address() if mlflow is not None else ""
    return render(run, stages, rounds, links={"MLflow": address} if address else {})
