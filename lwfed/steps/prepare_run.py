"""Prepares a run on a machine that has the server's data; see `prepare_remote` for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def prepare_run(task: PrepareTask, *, store: Store, emit: Emit, cache: Path | None) -> RunRecord:
    """Prepares a run on a machine that has the server's data.

    Args:
        task: The spec, the options and the run id.
        store: The store.
        emit: Receives `Fetching`, `Hashing`, `Checking` and `Warning`.
        cache: Folder for counted architectures, digests of files, and files fetched from a bucket, unless the place has
            one that is shared.

    Returns:
        The RunRecord, as stored.

    Raises:
        SpecError: Stage cuts do not fit the encoders.
        DataError: Data are missing, unreadable or too few.
        ResumeError: The run exists with another plan.
    """
    spec = build_spec(task.spec)
    cache = cache if task.place.shared is None else Path(task.place.shared)
    options = Options(run_id=task.run_id, fresh=task.fresh, parent=task.parent)
    found = _found(store, task.run_id, spec)
    run = draft(spec, store=store, options=options, emit=emit, cache=cache, root=task.place.root, found=found)
    run = prepare(run, store=store, emit=emit, cache=cache, root=task.place.root, found=found)
    from lwfed.round.initial import draw_all  # loads torch

    draw_all(run, store=store)
    return run


def _found(store: Store, run_id: str, spec: RunSpec) -> dict[str, Any] | None:
    """Returns clients' descriptions of data that only they see; None if all data are here."""
    if CLIENT_MARK not in (spec.data.root or ""):
        return None
    clients = spec.federation.eligible_ids
    values = {client: store.read_ref(paths.client_data(run_id, client)) for client in clients}
    found = {client: value for client, value in values.items() if value is not None}
    if not found:
        return None
    missing = sorted(set(clients) - set(found))
    if missing:
        raise DataError(f"{missing[0]} has not described its data", remedy="start the run again")
    return found
