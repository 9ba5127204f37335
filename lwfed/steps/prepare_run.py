"""Prepares a run whose server's data this process has; see `prepare_there` for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwfed.plan.cohort import client_ids
from lwfed.run.events import Emit
from lwfed.run.runs import Options
from lwfed.run.tasks import PrepareTask
from lwfed.spec.data import CLIENT_MARK
from lwfed.spec.load import build_spec
from lwfed.spec.run import RunSpec
from lwfed.steps.prepare import draft, prepare
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import DataError
from lwfed.types.records import RunRecord


def prepare_here(task: PrepareTask, *, store: Store, emit: Emit, cache: Path | None) -> RunRecord:
    """Prepares a run whose server's data this machine has.

    Args:
        task: What is asked for; its run id names the run.
        store: Where to.
        emit: Receives `Checking` and `Warning`.
        cache: Folder for counted architectures.

    Returns:
        The RunRecord, written down.

    Raises:
        SpecError: Stage cuts do not fit the encoders.
        DataError: Data are missing, unreadable or too few.
        ResumeError: The run exists with another plan.
    """
    spec = build_spec(task.spec)
    options = Options(run_id=task.run_id, fresh=task.fresh, parent=task.parent)
    found = _found(store, task.run_id, spec)
    run = draft(spec, store=store, options=options, cache=cache, root=task.place.root, found=found)
    run = prepare(run, store=store, emit=emit, cache=cache, root=task.place.root, found=found)
    from lwfed.round.initial import draw_all  # loads torch

    draw_all(run, store=store)
    return run


def _found(store: Store, run_id: str, spec: RunSpec) -> dict[str, Any] | None:
    """Returns what clients found of data that only they see; None where all data are here."""
    if CLIENT_MARK not in (spec.data.root or ""):
        return None
    clients = client_ids(spec.federation.num_clients)
    values = {client: store.read_ref(paths.client_data(run_id, client)) for client in clients}
    found = {client: value for client, value in values.items() if value is not None}
    if not found:
        return None
    missing = sorted(set(clients) - set(found))
    if missing:
        raise DataError(f"{missing[0]} has not reported what its data are", remedy="start the run again")
    return found
