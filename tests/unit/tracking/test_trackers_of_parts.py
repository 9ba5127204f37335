"""The log of a run that several processes tell: whole, and nothing in it twice, though some of it nobody told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lwfed.drive.trackers import NO_STAGE, has_finish, start_trackers, target_of
from lwfed.run import runs
from lwfed.spec.federation import TrackingSpec
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.tracking.jsonlines import JsonLines, event_of, event_of_finish, read_events
from lwfed.types.records import RunRecord
from tests.tiny import Finished

OFF = TrackingSpec(uri=None)


@pytest.fixture
def store(finished: Finished, tmp_path: Path) -> Store:
    """A store with a finished run that nobody told of."""
    shutil.copytree(finished.store.uri, tmp_path / "store")
    return open_store(str(tmp_path / "store"))


def part(run: RunRecord, store: Store, stage: int | None) -> JsonLines:
    """Makes the trackers of a process, and tells them that it is at work."""
    trackers, mlflow = start_trackers(run, OFF, store=store, warn=pytest.fail, part=stage)
    assert mlflow is None
    return trackers


def told(store: Store, run: RunRecord) -> list[tuple[str, int | None]]:
    """Returns the events of a run's log: what, and which round or stage."""
    found = []
    for event in read_events(bytes(store.get(paths.events(run.run_id)))):
        record = event["record"]
        found.append((event["event"], record.get("global_round", record.get("stage"))))
    return found


def test_stages_whose_tasks_the_pipeline_left_out_are_told_by_the_next(finished: Finished, store: Store) -> None:
    run = runs.read_run(store, finished.run.run_id)
    rounds = finished.reported("round")
    trackers = part(run.changed(stages=run.stages[:1]), store, 2)  # stage 1 was known to the pipeline
    trackers.record(event_of("round", rounds[2]))
    first = [("start", None), ("round", 1), ("round", 2), ("stage", 1), ("round", 3)]
    assert told(store, run) == first
    trackers = part(run, store, 2)  # the task is tried again: stage 2 is committed by now
    for record in rounds[2:]:
        trackers.record(event_of("round", record))
    trackers.record(event_of("stage", finished.reported("stage")[1]))
    again = [*first, ("start", None), ("round", 4), ("stage", 2)]
    assert told(store, run) == again
    trackers = part(run, store, NO_STAGE)
    assert not has_finish(run.run_id, store=store)
    trackers.record(event_of_finish(finished.summary))
    assert told(store, run) == [*again, ("start", None), ("finish", None)]
    assert has_finish(run.run_id, store=store)


def test_a_process_knows_its_part_from_its_caller_and_its_runs_from_the_platform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("MLFLOW_TRACKING_URI", "http://server"), ("MLFLOW_RUN_ID", "task"), ("KFP_RUN_ID", "p")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LWFED_MLFLOW_PARENT_RUN_ID", "whole")
    target = target_of(TrackingSpec(), stage=2)
    assert target is not None
    assert (target.uri, target.adopted_run_id, target.parent_run_id) == ("http://server", "task", "whole")
    assert (target.stage, target.pipeline_run_id) == (2, "p")
    assert target_of(OFF, stage=2) is None
