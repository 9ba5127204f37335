"""The tasks of a pipeline, which its components call: plain values in, plain values out.

Each task is a process of its own on any machine. It reads other tasks' results from the store; the strings that chain
tasks only name what it must find there. So a task that runs twice, or after its work is done, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from lwfed import environment
from lwfed.catalog.launcher import launcher_kind
from lwfed.drive.console import make_console
from lwfed.drive.display import Display
from lwfed.drive.session import Session, driving
from lwfed.drive.task_resources import with_resources
from lwfed.drive.trackers import NO_STAGE, start_trackers
from lwfed.drive.training import look_up
from lwfed.launch.launchers import end_run
from lwfed.report.page import render
from lwfed.round.train_stage import train_stage as run_stage
from lwfed.run import runs
from lwfed.run.events import RunEnding, RunStarted, Summarised
from lwfed.run.parent import parse_parent
from lwfed.run.runs import Options
from lwfed.run.specs import unpack_spec
from lwfed.run.tasks import RoundTask, StageTask
from lwfed.spec.run import RunSpec
from lwfed.steps.experiment import place_of, summarise
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.store.refs import read_object, read_record
from lwfed.tracking.ending import ending_of
from lwfed.tracking.jsonlines import event_of_failure, read_events
from lwfed.types.canonical import digest_of
from lwfed.types.errors import CheckpointError, LwfedError, SpecError
from lwfed.types.records import RunRecord, StageRecord


class Prepared(NamedTuple):
    """The result of `prepare`: the run's id, and all that decides the first stage's result besides its plan."""

    run_id: str
    input_digest: str
    data_version: str
    code_version: str


class StageDone(NamedTuple):
    """The result of a stage: its checkpoint's digest, its last metrics, and a report."""

    digest: str
    metrics: dict[str, float]
    html: str


class Evaluated(NamedTuple):
    """The result of the final evaluation."""

    metrics: dict[str, float]
    html: str


class Reported(NamedTuple):
    """The result of a finished run: its report, its metrics, and its model's metadata."""

    html: str
    metrics: dict[str, float]
    model: dict[str, str]


def prepare(*, spec: str, store: str, parent: str = "", fresh: bool = False) -> Prepared:
    """Checks the data and plans the run.

    Args:
        spec: The spec, as returned by `pack_spec`.
        store: The store's URI.
        parent: `RUN:STAGE` of a rerun: the parent run and the first stage to train; empty for none.
        fresh: Train again even if equal work is committed.

    Returns:
        The names and digests that the stages need.

    Raises:
        LwfedError: Any error of `prepare_run`.
    """
    with task_session(spec, store) as session:
        taken = parse_parent(parent)
        options = Options(run_id=session.run_id, fresh=fresh, parent=taken)
        run = session.prepare(
            look_up(session.spec, options=options, store=session.store, emit=session.emit, whole=False)
        )
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
    """Runs the rounds of a stage that are not committed yet.

    Args:
        spec: The spec, as returned by `pack_spec`.
        store: The store's URI.
        stage: s, counted from 1.
        plan_digest: Digest of the stage's plan when the pipeline was built; empty if unknown then.
        input_digest: Digest of the checkpoint that it starts from; empty for the first stage.
        data_version: As returned by `prepare`.
        code_version: As returned by `prepare`.
        resources: Settings of this pipeline task, for client pods whose pool does not set its own.

    Returns:
        The result.

    Raises:
        SpecError: The pipeline was built from another spec than the run's.
        LwfedError: Any error of `lwfed.round.train_stage`.
    """
    with task_session(spec, store, part=stage, resources=resources) as session:
        run = _run_at(session, stage)
        plan = digest_of(runs.plans_of(run)[stage - 1].model_dump(mode="json"))
        for what, expected, found in (
            ("the plan", plan_digest or plan, plan),
            ("the data", data_version, runs.data_version_of(run)),
            ("the code", code_version, run.code_version),
            ("the input", input_digest, runs.input_digest_of(session.store, run, stage)),
        ):
            if expected != found:
                raise SpecError(
                    f"{what} of stage {stage} is {expected[:12] or 'none'} for the pipeline and "
                    f"{found[:12] or 'none'} for the run {session.run_id}",
                    remedy="compile the pipeline again with the lwfed of the image, and submit it again",
                )
        session.emit(RunStarted(record=run))
        task = StageTask(
            store=session.store.uri, run_id=run.run_id, stage=stage, place=place_of(run, cache=session.cache)
        )
        record = run_stage(task, launcher=session.launcher, store=session.store, emit=session.emit)
        return StageDone(digest=record.digest, metrics=dict(record.metrics), html=_page(session, run))


def evaluate(*, spec: str, store: str, stage: int, digest: str) -> Evaluated:
    """Evaluates a stage's result on the server's test data, unless that is done already.

    Args:
        spec: The spec, as returned by `pack_spec`.
        store: The store's URI.
        stage: s, counted from 1.
        digest: Digest of the stage's result.

    Returns:
        The metrics.

    Raises:
        CheckpointError: The stage is not committed with that digest.
    """
    with task_session(spec, store) as session:
        run = _run_at(session, stage + 1)
        key = _committed_key(session, run, stage, digest)
        committed = read_record(session.store, paths.stage_record(key), StageRecord)
        planned = runs.plans_of(run)[stage - 1].rounds
        result = planned if committed is None or committed.result_round is None else committed.result_round
        task = RoundTask(
            store=session.store.uri,
            run_id=run.run_id,
            stage_key=key,
            server_round=result,
            place=place_of(run, cache=None),
        )
        ref = paths.round_metrics(key, result)
        if not session.store.has(ref):
            session.launcher.server("evaluate-round", task, emit=session.emit)
        metrics = (read_object(session.store, ref, metrics=dict) or {"metrics": {}})["metrics"]
        return Evaluated(metrics=metrics, html=_page(session, run))


def report(*, spec: str, store: str, stage: int, digest: str) -> Reported:
    """Writes the run's report and figures, and records the run's end.

    Args:
        spec: The spec, as returned by `pack_spec`.
        store: The store's URI.
        stage: The last stage of the pipeline.
        digest: Digest of its result.

    Returns:
        The report, and the final model's metadata: the URI of its manifest in the store, its digest, its run and
        stage, and its name and version in MLflow, which are empty if it is not registered.

    Raises:
        CheckpointError: The stage is not committed with that digest.
    """
    with task_session(spec, store) as session:
        run = _run_at(session, stage + 1)
        key = _committed_key(session, run, stage, digest)
        stages, _ = runs.history(session.store, run)
        wall_s = sum(record.wall_s for record in stages if not record.reused)
        summary = summarise(run, stages, wall_s=wall_s, complete=len(stages) == len(runs.plans_of(run)))
        session.store.write_ref(paths.summary(run.run_id), summary.to_values())
        session.emit(RunStarted(record=run))
        session.finish(run, summary)
        session.emit(Summarised(record=summary))
        html = bytes(session.store.get(paths.report(run.run_id))).decode()
        mlflow = session.delivered()
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
    """Ends the Jobs and the MLflow run that an unfinished run left open.

    The run's own log in the store says whether it finished; see `ending_of`.

    Args:
        spec: The spec, as returned by `pack_spec`.
        store: The store's URI.
        state: The pipeline's final state, as reported by Kubeflow Pipelines.
    """
    opened = open_store(store)
    values = unpack_spec(spec, store=opened)
    run_id = run_id_of(values)
    display = Display(make_console())
    problems: list[LwfedError] = []  # a problem with one thing must not keep the others open
    run, events = None, []
    try:
        run, events = runs.find_run(opened, run_id), read_events(opened.read_log(paths.events(run_id)))
    except LwfedError as error:
        problems.append(error)
    ending = ending_of(events, state=state)
    display(RunEnding(run_id=run_id, status=ending.status, reason=ending.reason))
    if ending.status != "finished" and launcher_kind(values.launch.kind).remote:
        try:
            end_run(values, run_id=run_id)
        except LwfedError as error:
            problems.append(error)
    if ending.status != "finished" and run is not None:
        log, mlflow = start_trackers(run, values.tracking, store=opened, warn=display.warn, part=NO_STAGE)
        log.record(event_of_failure(ending.reason, cancelled=ending.status == "cancelled", closing=True))
        if mlflow is not None:
            mlflow.close()
    if problems:
        raise problems[0]


def task_session(
    spec: str, store: str, *, part: int = NO_STAGE, resources: Mapping[str, Any] | None = None
) -> AbstractContextManager[Session]:
    """Returns a task's session, to be entered; it shows progress as plain lines, which are the task's log.

    Args:
        spec: The spec, as returned by `pack_spec`.
        store: The store's URI.
        part: The part of the run that the task has; see `start_trackers`.
        resources: See `with_resources`.

    Raises:
        LwfedError: The store, the spec in it or the cluster does not answer.
    """
    environment.quiet()
    opened = open_store(store)
    values = with_resources(unpack_spec(spec, store=opened), resources)
    return driving(values, run_id=run_id_of(values), store=opened, console=make_console(), part=part)


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


def _page(session: Session, run: RunRecord) -> str:
    """Returns a report of the work committed so far, with a link to the run in MLflow."""
    stages, rounds = runs.history(session.store, run)
    mlflow = session.delivered()
    address = mlflow.address() if mlflow is not None else ""
    return render(run, stages, rounds, links={"MLflow": address} if address else {})


def _run_at(session: Session, stage: int) -> RunRecord:
    """Reads the run and records the keys of the stages before `stage`, whose tasks the pipeline may have skipped."""
    run = runs.read_run(session.store, session.run_id)
    return runs.note_committed(session.store, run, before=stage)


def _committed_key(session: Session, run: RunRecord, stage: int, digest: str) -> str:
    key = runs.stage_key_of(run, stage)
    committed = None if key is None else read_object(session.store, paths.stage_checkpoint(key), digest=str)
    if key is None or committed is None or committed["digest"] != digest:
        raise CheckpointError(
            f"stage {stage} of {run.run_id} is not committed with digest {digest[:12]}",
            remedy="run its task again",
        )
    return key
