"""`lwfed rerun --endpoint`: trains a run again on the cluster, from one of its stages."""

from __future__ import annotations

from typing import Any

from lwfed.cli.history import open_runs, pick_run
from lwfed.run import runs
from lwfed.spec.stored import OLD_RATES, scales_implicitly
from lwfed.store.opening import open_store
from lwfed.types.errors import NotFoundError
from pipelines.client.connection import Access
from pipelines.client.pace import usual_pace
from pipelines.client.runs import open_run
from pipelines.commands.screen import make_screen
from pipelines.commands.submit import RunOptions, submit_work
from pipelines.stages import Work, check_parent


def resubmit(
    run_id: str,
    *,
    stage: int,
    only: bool,
    override: list[str] | None,
    fresh: bool,
    store: str,
    wait: bool,
    as_json: bool,
    **access: Any,
) -> None:
    """Trains a run again on the cluster, from one of its stages.

    Args:
        run_id: The parent: its id in lwfed, `latest`, or the id of its pipeline run.
        stage: The first stage to train.
        only: Stop after this stage.
        override: Changes to the spec.
        fresh: Train again even if equal work is committed.
        store: The parent's store.
        wait: Follow the run to its end.
        as_json: Print one JSON object as the last line.
        **access: Attributes of `Access`.

    Raises:
        NotFoundError: The run does not exist.
        CheckpointError: The stage before is not committed.
        LwfedError: The server refuses or does not answer.
    """
    server = Access(**access)
    opened = open_runs(store)
    try:
        run = pick_run(opened, run_id)
    except NotFoundError as unknown:
        try:
            found, _ = open_run(server, run_id)
        except NotFoundError:
            raise unknown from None
        if found.name is None or found.store is None:
            raise
        opened = open_store(found.store)
        run = runs.read_run(opened, found.name)
    parent = (str(run.run_id), stage)
    before = check_parent(opened, parent)
    launcher = [] if before.kubernetes.image else ["launch.kind=kubernetes"]  # the parent was trained without a cluster
    where = [] if server.namespace is None else [f"kubernetes.namespace={server.namespace}"]
    overrides = [f"store.uri={opened.uri}", *where, *launcher, *(override or [])]
    screen = make_screen(as_json)
    if scales_implicitly(run.spec):
        screen.say(OLD_RATES)
    work = Work(
        spec=runs.spec_of(run, overrides=overrides),
        stages=[stage] if only else None,
        parent=parent,
        fresh=fresh or not override,  # without a change, the user wants the same work again
    )
    submit_work(server, work, options=RunOptions(), screen=screen, wait=wait, pace=usual_pace())
