"""Prepares a run in pods of the pools that have its data; the coordinator itself opens none."""

from __future__ import annotations

from lwfed.run import runs
from lwfed.run.events import Emit
from lwfed.run.launcher import Launcher
from lwfed.run.runs import Options
from lwfed.run.specs import with_absolute_paths
from lwfed.run.tasks import InspectTask, Place, PrepareTask
from lwfed.spec.data import CLIENT_MARK
from lwfed.spec.load import to_values
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import DataError
from lwfed.types.records import RunRecord


def prepare_remote(spec: RunSpec, *, options: Options, launcher: Launcher, store: Store, emit: Emit) -> RunRecord:
    """Prepares a run whose data only the launcher's machines have; `options.run_id` must be set.

    Raises:
        DataError: A client with its own data could not inspect them.
        LwfedError: Any error of `prepare_run` there.
    """
    run_id = options.run_id or ""
    values = to_values(with_absolute_paths(spec, store=store))
    place = Place(workers=spec.data.workers, device=spec.launch.device)
    if CLIENT_MARK in (spec.data.root or ""):
        tasks = [
            InspectTask(store=store.uri, run_id=run_id, client=client, spec=values, place=place)
            for client in spec.federation.eligible_ids
        ]
        seconds = spec.federation.timeout_s
        outcomes = launcher.clients(
            "inspect-client", tasks, deadline_s=float("inf") if seconds is None else seconds, emit=emit
        )
        failed = {outcome.client: outcome.reason for outcome in outcomes if outcome.exit_code}
        if failed:
            client = min(failed)
            raise DataError(
                f"{len(failed)} client(s) could not inspect their data; {client}: {failed[client]}",
                remedy="fix the data or the pool of that client, then start again",
            )
    task = PrepareTask(
        store=store.uri, run_id=run_id, spec=values, fresh=options.fresh, parent=options.parent, place=place
    )
    launcher.server("prepare", task, emit=emit)
    return runs.read_run(store, run_id)
