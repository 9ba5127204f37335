"""Prepares a run where its data are: in this process, or in pods of the pools that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwfed.plan.cohort import client_ids
from lwfed.spec.load import build_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.steps import runs
from lwfed.steps.launcher import Emit, Launcher
from lwfed.steps.prepare import draft, placed, prepare
from lwfed.steps.runs import Options
from lwfed.steps.shares import CLIENT_MARK
from lwfed.steps.tasks import InspectTask, Place, PrepareTask
from lwfed.steps.workbench import Workbench
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import DataError


def prepare_here(task: PrepareTask, *, bench: Workbench, emit: Emit, cache: Path | None) -> dict[str, Any]:
    """Prepares a run whose server's data this machine has.

    Args:
        task: What is asked for; its run id names the run.
        bench: The process's bench.
        emit: Told `checking` and `warning`.
        cache: Folder for counted architectures.

    Returns:
        The RunRecord, written down.

    Raises:
        SpecError: Stage cuts do not fit the encoders.
        DataError: Data are missing, unreadable or too few.
        ResumeError: The run exists with another plan.
    """
    spec, store = build_spec(task.spec), bench.store
    options = Options(run_id=task.run_id, fresh=task.fresh, parent=task.parent)
    told = _told(store, task.run_id, spec)
    run = draft(spec, store=store, options=options, cache=cache, root=task.place.root, told=told)
    return prepare(run, store=store, emit=emit, cache=cache, root=task.place.root, told=told)


def prepare_there(spec: RunSpec, *, options: Options, launcher: Launcher, store: Store, emit: Emit) -> dict[str, Any]:
    """Prepares a run whose data only the launcher's machines have; `options.run_id` must be given.

    Raises:
        DataError: A client with data of its own could not look at them.
        LwfedError: What `prepare_here` raises there.
    """
    run_id = options.run_id or ""
    values = to_values(placed(spec, store=store))
    place = Place(workers=spec.data.workers, device=spec.launch.device)
    if CLIENT_MARK in (spec.data.root or ""):
        tasks = [
            InspectTask(store=store.uri, run_id=run_id, client=client, spec=values, place=place)
            for client in client_ids(spec.federation.num_clients)
        ]
        seconds = spec.federation.round_timeout_s
        outcomes = launcher.clients("inspect-client", tasks, deadline_s=seconds, emit=emit)
        failed = {outcome.client: outcome.reason for outcome in outcomes if outcome.exit_code}
        if failed:
            client = min(failed)
            raise DataError(
                f"{len(failed)} client(s) could not look at their data; {client}: {failed[client]}",
                remedy="mend the data or the pool of that client, then start again",
            )
    task = PrepareTask(
        store=store.uri, run_id=run_id, spec=values, fresh=options.fresh, parent=options.parent, place=place
    )
    launcher.server("prepare", task, emit=emit)
    return runs.read_run(store, run_id)


def _told(store: Store, run_id: str, spec: RunSpec) -> dict[str, Any] | None:
    """Gives what clients told of data that only they see; None where all data are here."""
    if CLIENT_MARK not in (spec.data.root or ""):
        return None
    clients = client_ids(spec.federation.num_clients)
    found = {client: store.read_ref(paths.client_data(run_id, client)) for client in clients}
    told = {client: value for client, value in found.items() if value is not None}
    if not told:
        return None
    missing = sorted(set(clients) - set(told))
    if missing:
        raise DataError(f"{missing[0]} has not told what its data are", remedy="start the run again")
    return told
