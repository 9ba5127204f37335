"""A run that several processes tell, each with a recorder of its own: one tree, whoever comes first or comes again.
Against a real sqlite store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lwfed.tracking.jsonlines import encode_event, event_of, event_of_failure, event_of_finish
from lwfed.tracking.mlflow.delivery import Delivery, Status, replay_to_mlflow, serve
from lwfed.tracking.mlflow.process import MlflowFollower
from lwfed.tracking.mlflow.target import Target

pytestmark = pytest.mark.slow  # `import mlflow` and a database's migrations
Record = dict[str, Any]
MakeRun = Callable[..., Record]


@pytest.fixture
def client(mlflow_uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)


@pytest.fixture
def part(mlflow_uri: str) -> Callable[..., Any]:
    """Makes the recorder of a process."""
    from lwfed.tracking.mlflow.recorder import Recorder

    def make(**settings: Any) -> Any:
        return Recorder(Target(uri=mlflow_uri, system_metrics_s=0, **settings))

    return make


def experiment_of(client: Any, name: str) -> str:
    """Makes the platform's experiment."""
    return str(client.create_experiment(name))


def open_run(client: Any, experiment: str, *, above: str | None = None, **tags: str) -> str:
    """Opens a run as the platform does."""
    nested = {"mlflow.parentRunId": above} if above else {}
    return str(client.create_run(experiment, tags={**nested, **tags}).info.run_id)


def rounds_in(client: Any, run_id: str) -> list[int]:
    """Returns the rounds a run has, in the order of their logging."""
    return [point.step for point in client.get_metric_history(run_id, "train/loss")]


def stages_of(client: Any, experiment: str, run_id: str) -> dict[str, str]:
    """Returns stage -> run."""
    found = client.search_runs([experiment], f"tags.`lwfed.whole` = '{run_id}' and tags.`lwfed.role` = 'stage'")
    assert len({run.data.tags["lwfed.stage"] for run in found}) == len(found)
    return {run.data.tags["lwfed.stage"]: run.info.run_id for run in found}


def test_the_topmost_run_of_the_platform_is_the_experiments(
    client: Any, part: Callable[..., Any], make_run: MakeRun, rounds: list[Record], stages: list[Record]
) -> None:
    experiment = experiment_of(client, "climbed")
    top = open_run(client, experiment, **{"kfp.pipeline_run_id": "p"})
    inner = open_run(client, experiment, above=top)  # an exit handler is a graph of its own
    task = open_run(client, experiment, above=inner)
    recorder = part(experiment="unused", adopted_run_id=task, stage=3, pipeline_run_id="p")
    recorder.record(event_of("start", make_run("climbed")))
    recorder.record(event_of("round", rounds[2]))
    recorder.record(event_of("stage", stages[2]))
    assert recorder.run_id == top
    assert stages_of(client, experiment, top) == {"3": task}
    cleaning = part(experiment="unused", adopted_run_id=open_run(client, experiment, above=top), stage=0)
    cleaning.record(event_of("start", make_run("climbed")))
    assert cleaning.run_id == top
    for record in rounds[:2]:  # the earlier stage was told by nobody
        cleaning.record(event_of("round", record))
    cleaning.record(event_of("stage", stages[0]))
    cleaning.record(event_of("round", rounds[2]))
    assert sorted(rounds_in(client, top)) == [1, 2, 3]
    assert rounds_in(client, task) == [3]
    made = client.get_run(stages_of(client, experiment, top)["1"])
    assert made.data.tags["mlflow.parentRunId"] == top and made.info.status == "FINISHED"
    # from elsewhere, where nothing says which experiment the platform took
    status = replay_to_mlflow(
        [event_of("start", make_run("climbed")), *(event_of("round", record) for record in rounds)],
        target=Target(uri=recorder._target.uri, experiment="climbed-elsewhere"),
    )
    assert (status.run_id, status.experiment_id) == (top, experiment)
    assert sorted(rounds_in(client, top)) == [1, 2, 3]


def test_a_run_submitted_again_goes_on_in_its_first_run_with_the_newest_task_as_the_stages(
    client: Any, part: Callable[..., Any], make_run: MakeRun, rounds: list[Record], stages: list[Record]
) -> None:
    experiment = experiment_of(client, "again")
    tops, tasks = [], []
    for told in (1, 2):
        tops.append(open_run(client, experiment, **{"kfp.pipeline_run_id": f"p{told}"}))
        tasks.append(open_run(client, experiment, above=tops[-1]))
        recorder = part(adopted_run_id=tasks[-1], stage=1)
        recorder.record(event_of("start", make_run("again")))
        for record in rounds[:told]:
            recorder.record(event_of("round", record))
    recorder.record(event_of("stage", stages[0]))
    assert recorder.run_id == tops[0]
    assert rounds_in(client, tops[0]) == [1, 2] and rounds_in(client, tops[1]) == []
    assert stages_of(client, experiment, tops[0]) == {"1": tasks[1]}
    assert rounds_in(client, tasks[1]) == [1, 2]
    assert client.get_run(tasks[0]).data.tags["lwfed.role"] == "attempt"
    points = client.get_metric_history(tops[0], "ledger/measured/bytes_up")
    assert [point.step for point in points] == [1]


def test_two_experiments_of_one_pipeline_have_runs_of_their_own(
    client: Any, part: Callable[..., Any], make_run: MakeRun
) -> None:
    experiment = experiment_of(client, "two")
    top = open_run(client, experiment)
    for name in ("two-a", "two-b"):
        recorder = part(adopted_run_id=open_run(client, experiment, above=top), stage=0)
        recorder.record(event_of("start", make_run(name)))
        if name == "two-a":
            assert recorder.run_id == top
    own = client.get_run(recorder.run_id)
    assert own.info.run_id != top and own.data.tags["mlflow.parentRunId"] == top
    assert client.get_run(top).data.tags["lwfed.run_id"] == "two-a"


def test_a_failure_is_the_stages_until_the_platform_gives_up(
    client: Any, part: Callable[..., Any], make_run: MakeRun, rounds: list[Record], stages: list[Record]
) -> None:
    first = part(experiment="failing", stage=1)
    first.record(event_of("start", make_run("failing")))
    first.record(event_of("round", rounds[0]))
    first.record(event_of_failure("too few updates"))
    whole = client.get_run(first.run_id)
    (child,) = stages_of(client, whole.info.experiment_id, whole.info.run_id).values()
    assert whole.info.status == "RUNNING" and client.get_run(child).info.status == "FAILED"
    assert whole.data.tags["lwfed.failure"] == "too few updates"
    again = part(experiment="failing", stage=1)
    again.record(event_of("start", make_run("failing")))
    assert "lwfed.failure" not in client.get_run(first.run_id).data.tags
    again.record(event_of("round", rounds[0]))
    again.record(event_of("round", rounds[1]))  # and is killed
    assert client.get_run(child).info.status == "RUNNING"
    last = part(experiment="failing", stage=0)
    last.record(event_of("start", make_run("failing")))
    last.record(event_of_failure("the pipeline failed"))
    for run_id in (whole.info.run_id, child):
        assert client.get_run(run_id).info.status == "FAILED"
        assert rounds_in(client, run_id) == [1, 2]
    resumed = part(experiment="failing", stage=1)
    resumed.record(event_of("start", make_run("failing")))
    assert client.get_run(whole.info.run_id).info.status == "RUNNING"
    resumed.record(event_of("stage", stages[0]))
    assert client.get_run(child).info.status == "FINISHED"
    assert "lwfed.failure" not in client.get_run(child).data.tags


@pytest.mark.parametrize(("stage", "told", "ended"), [(1, 0, "KILLED"), (1, 1, "FINISHED"), (0, 0, "RUNNING")])
def test_a_part_that_ends_without_a_word_ends_its_stage_alone(
    client: Any, mlflow_uri: str, make_run: MakeRun, rounds: list[Record], stages: list[Record], tmp_path: Path,
    stage: int, told: int, ended: str,
) -> None:  # fmt: skip
    target = Target(uri=mlflow_uri, experiment="silent", system_metrics_s=0, stage=stage)
    (tmp_path / "target.json").write_text(json.dumps(asdict(target)))
    events = [event_of("start", make_run(f"silent-{stage}-{told}")), event_of("round", rounds[0])]
    events += [event_of("stage", record) for record in stages[:told]]
    (tmp_path / "events.jsonl").write_bytes(b"".join(map(encode_event, [*events, {"event": "close"}])))
    serve(tmp_path, gone=lambda: False)
    status = json.loads((tmp_path / "status.json").read_bytes())
    whole = client.get_run(status["run_id"])
    assert whole.info.status == "RUNNING"
    (child,) = stages_of(client, whole.info.experiment_id, whole.info.run_id).values()
    assert client.get_run(child).info.status == ended


def test_rounds_that_come_late_are_logged_once_and_dated_before_those_that_follow(
    client: Any, part: Callable[..., Any], make_run: MakeRun, rounds: list[Record]
) -> None:
    one, other = (part(experiment="late", stage=stage) for stage in (1, 3))
    for recorder in (one, other):
        recorder.record(event_of("start", make_run("late")))
    other.record(event_of("round", rounds[2]))
    for recorder in (one, other, part(experiment="late", stage=1)):
        if recorder not in (one, other):
            recorder.record(event_of("start", make_run("late")))
        for record in rounds:
            recorder.record(event_of("round", record))
    assert sorted(rounds_in(client, one.run_id)) == [1, 2, 3]
    dates = {point.step: point.timestamp for point in client.get_metric_history(one.run_id, "train/loss")}
    assert dates[1] < dates[2]


def test_a_place_that_refuses_artifacts_keeps_no_run_open(
    client: Any, mlflow_uri: str, make_run: MakeRun, rounds: list[Record], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    client.create_experiment("refusing", artifact_location=(tmp_path / "file" / "artifacts").as_uri())
    delivery = Delivery(Target(uri=mlflow_uri, experiment="refusing", system_metrics_s=0))
    model = {"uri": "s3://bucket/runs#key", "digest": "d", "kind": "contrastive", "modalities": ["image"]}
    delivery.add(event_of("start", make_run("refusing")))
    delivery.add(event_of("round", rounds[0]))
    delivery.add(event_of_finish({"digest": "d"}, artifacts=[], model=model))
    assert delivery.drain(now=True)
    status = delivery.status()
    assert len(status.refused) == 1 and status.refused[0].startswith("finish: ")
    run = client.get_run(status.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["lwfed.digest"] == "d"


def test_a_failure_that_the_log_tells_is_replayed_as_the_runs_end(
    client: Any, mlflow_uri: str, make_run: MakeRun, rounds: list[Record]
) -> None:
    events = [event_of("start", make_run("ended")), event_of("round", rounds[0]), event_of_failure("lost")]
    status = replay_to_mlflow(events, target=Target(uri=mlflow_uri, experiment="ended"))
    run = client.get_run(status.run_id)
    assert (run.info.status, run.data.tags["lwfed.failure"]) == ("FAILED", "lost")
    assert {
        client.get_run(item).info.status for item in stages_of(client, run.info.experiment_id, run.info.run_id).values()
    } == {"FAILED"}


def test_an_address_is_the_page_of_the_run(mlflow_uri: str) -> None:
    for uri, address in ((mlflow_uri, ""), ("http://host:5000/", "http://host:5000/#/experiments/7/runs/abc")):
        tracker = MlflowFollower(Target(uri=uri), on_warning=pytest.fail)
        assert tracker.address() == ""
        tracker.status = Status(run_id="abc", experiment_id="7")
        assert tracker.address() == address
