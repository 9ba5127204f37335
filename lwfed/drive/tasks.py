"""The tasks of a pipeline: what the bodies of its components call. Plain values in, plain values out.

Each task is a process of its own, on any machine: what it needs of another is in the store, and the strings that chain
tasks only say what must be found there. So a task that runs twice, or after its work is done, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lwfed.catalog.launcher import launcher_kind
from lwfed.drive import walk
from lwfed.drive.console import make_console
from lwfed.drive.display import Display
from lwfed.drive.session import Session
from lwfed.drive.task_session import page, run_id_of, working
from lwfed.drive.trackers import NO_STAGE, make_trackers
from lwfed.launch.launchers import end_run
from lwfed.run import runs
from lwfed.run.events import RunEnding, RunStarted, Summarised
from lwfed.run.parent import parse_parent
from lwfed.run.runs import Options
from lwfed.run.specs import unpack_spec
from lwfed.run.tasks import RoundTask
from lwfed.steps.experiment import place_of, summarise
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.tracking.ending import ending_of
from lwfed.tracking.jsonlines import read_events
from lwfed.types.canonical import digest_of
from lwfed.types.errors import CheckpointError, LwfedError, SpecError
from lwfed.types.records import RunRecord


class Prepared(NamedTuple):
    """What `prepare` returns: names, and what decides the first stage's result besides its plan."""

    run_id: str
    input_digest: str
    data_version: str
    code_version: str


class StageDone(NamedTuple):
    """What a stage returns: its checkpoint's digest, its last metrics, and a page for people."""

    digest: str
    metrics: dict[str, float]
    html: str


class Evaluated(NamedTuple):
    """What the final evaluation returns."""

    metrics: dict[str, float]
    html: str


class Reported(NamedTuple):
    """What a finished run leaves: its report, its metrics, and what there is to know of its model."""

    html: str
    metrics: dict[str, float]
    model: dict[str, str]


def prepare(*, spec: str, store: str, parent: str = "", fresh: bool = False) -> Prepared:
    """Checks the data and plans the run.

    Args:
        spec: What `pack_spec` returned.
        store: The store's URI.
        parent: `RUN:STAGE` of a rerun: the run it starts from and the first stage it trains; empty for none.
        fresh: Train again, even where equal work is committed.

    Returns:
        Names and digests for the stages.

    Raises:
        LwfedError: What `prepare_here` raises.
    """
    with working(spec, store) as session:
        taken = parse_parent(parent)
        run = walk.prepare(session, options=Options(run_id=session.run_id, fresh=fresh, parent=taken))
        session.track(run, part=NO_STAGE)
        session.emit(RunStarted(record=run))
        first = taken[1] if taken else 1
        return Prepared(
            run_id=run.run_id,
            input_digest=runs.input_digest_of(session.store, run, first),
            data_version=runs.data_version_of(run),
            code_version=run.code_version,
        )


def train_stage(
    *,
    spec: str,
    store: str,
    stage: int,
    plan_digest: str,
    input_digest: str,
    data_version: str,
    code_version: str,
    resources: Mapping[str, Any] | None = None,
) -> StageDone:
    """Runs all rounds of a stage, or what is left of them.

    Args:
        spec: What `pack_spec` returned.
        store: The store's URI.
        stage: s, counted from 1.
        plan_digest: Digest of the stage's plan as the pipeline was built with; empty: not known then.
        input_digest: Digest of the checkpoint it starts from; empty at the first stage.
        data_version: As `prepare` returned it.
        code_version: As `prepare` returned it.
        resources: What was set on this task of the pipeline, for client pods whose pool does not say.

    Returns:
        The result.

    Raises:
        SpecError: The pipeline was built from another spec than the run's.
        LwfedError: What `lwfed.round.train_stage` raises.
    """
    with working(spec, store, resources=resources) as session:
        run = _run_at(session, stage)
        told = {"the plan": plan_digest or None, "the data": data_version, "the code": code_version}
        found = {
            "the plan": digest_of(runs.plans_of(run)[stage - 1].model_dump(mode="json")),
            "the data": runs.data_version_of(run),
            "the code": run.code_version,
            "the input": runs.input_digest_of(session.store, run, stage),
        }
        for what, value in {**told, "the input": input_digest}.items():
            if value is not None and value != found[what]:
                raise SpecError(
                    f"{what} of stage {stage} is {value[:12] or 'none'} for the pipeline and "
                    f"{found[what][:12] or 'none'} for the run {session.run_id}",
                    remedy="compile the pipeline again with the lwfed of the image, and submit it again",
                )
        session.track(run, part=stage)
        session.emit(RunStarted(record=run))
        record = walk.train_one(session, run, stage)
        return StageDone(digest=record.digest, metrics=dict(record.metrics), html=page(session, run))


def evaluate(*, spec: str, store: str, stage: int, digest: str) -> Evaluated:
    """Evaluates a stage's result on the server's test data, unless that is done.

    Args:
        spec: What `pack_spec` returned.
        store: The store's URI.
        stage: s, counted from 1.
        digest: Of the stage's result.

    Returns:
        The metrics.

    Raises:
        CheckpointError: The stage is not committed with that digest.
    """
    with working(spec, store) as session:
        run = _run_at(session, stage + 1)
        key = _committed_key(session, run, stage, digest)
        plan = runs.plans_of(run)[stage - 1]
        task = RoundTask(
            store=session.store.uri,
            run_id=run.run_id,
            stage_key=key,
            server_round=plan.rounds,
            place=place_of(run, cache=None),
        )
        ref = paths.round_metrics(key, plan.rounds)
        if not session.store.has(ref):
            session.launcher.server("evaluate-round", task, emit=session.emit)
        metrics = (session.store.read_ref(ref) or {"metrics": {}})["metrics"]
        return Evaluated(metrics=metrics, html=page(session, run))


def report(*, spec: str, store: str, stage: int, digest: str) -> Reported:
    """Writes the run's report and figures, and records that the run is over.

    Args:
        spec: What `pack_spec` returned.
        store: The store's URI.
        stage: The last stage of the pipeline.
        digest: Of its result.

    Returns:
        The report, and of the final model: the URI of its manifest in the store, its digest, the run and the stage it
        comes from, and its name and version in MLflow, empty where it is not registered.

    Raises:
        CheckpointError: The stage is not committed with that digest.
    """
    with working(spec, store) as session:
        run = _run_at(session, stage + 1)
        key = _committed_key(session, run, stage, digest)
        stages, _ = runs.history(session.store, run)
        wall_s = sum(record.wall_s for record in stages if not record.reused)
        summary = summarise(run, stages, wall_s=wall_s, complete=len(stages) == len(runs.plans_of(run)))
        session.store.write_ref(paths.summary(run.run_id), summary.to_values())
        session.track(run, part=NO_STAGE)
        session.emit(RunStarted(record=run))
        walk.finish(session, run, summary)
        session.emit(Summarised(record=summary))
        html = bytes(session.store.get(paths.report(run.run_id))).decode()
        mlflow = session.mlflow()
        uri = session.store.uri if "://" in session.store.uri else f"file://{session.store.uri}"
        model = {
            "framework": "lwfed",
            "store_uri": f"{uri}/{paths.stage_checkpoint(key)}",
            "digest": digest,
            "run_id": run.run_id,
            "stage": str(stage),
            "mlflow_model": (mlflow.status.model if mlflow is not None else None) or "",
        }
        return Reported(html=html, metrics=dict(summary.metrics), model=model)


def cleanup(*, spec: str, store: str, state: str) -> None:
    """Ends what a run leaves that did not finish: its Jobs, and its run in MLflow.

    Whether it finished is what its own log in the store says; see `ending_of`.

    Args:
        spec: What `pack_spec` returned.
        store: The store's URI.
        state: How the pipeline ended, as Kubeflow Pipelines say.
    """
    opened = open_store(store)
    values = unpack_spec(spec, store=opened)
    run_id = run_id_of(values)
    display = Display(make_console())
    trouble: list[LwfedError] = []  # what goes wrong with one thing keeps nothing else from being ended
    run, events = None, []
    try:
        run, events = runs.find_run(opened, run_id), read_events(opened.read_log(paths.events(run_id)))
    except LwfedError as error:
        trouble.append(error)
    ending = ending_of(events, state=state)
    display(RunEnding(run_id=run_id, status=ending.status, reason=ending.reason))
    if ending.status != "finished" and launcher_kind(values.launch.kind).remote:
        try:
            end_run(values, run_id=run_id)
        except LwfedError as error:
            trouble.append(error)
    if ending.status != "finished" and run is not None:
        log, _ = make_trackers(run, values.tracking, store=opened, warn=display.warn, stage=NO_STAGE)
        log.start(run.to_values())
        log.fail(ending.reason, cancelled=ending.status == "cancelled", closing=True)
        log.close()
    if trouble:
        raise trouble[0]


def _run_at(session: Session, stage: int) -> RunRecord:
    """Reads the run, with the stages before one noted: the pipeline may have skipped their tasks as done."""
    run = runs.read_run(session.store, session.run_id)
    return runs.note_committed(session.store, run, before=stage)


def _committed_key(session: Session, run: RunRecord, stage: int, digest: str) -> str:
    key = runs.stage_key_of(run, stage)
    committed = None if key is None else session.store.read_ref(paths.stage_checkpoint(key))
    if key is None or committed is None or committed["digest"] != digest:
        raise CheckpointError(
            f"stage {stage} of {run.run_id} is not committed with digest {digest[:12]}",
            remedy="run its task again",
        )
    return key
