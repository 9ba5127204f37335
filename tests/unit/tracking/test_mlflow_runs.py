"""A run as MLflow keeps it: its tree, its metrics by global round, its lineage; nothing twice, nothing ended that is
not ours. Against a real sqlite store."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from lwfed import environment
from lwfed.tracking.jsonlines import (
    JsonLines,
    encode_event,
    event_of,
    event_of_failure,
    event_of_finish,
    read_events,
)
from lwfed.tracking.mlflow import delivery
from lwfed.tracking.mlflow.delivery import Delivery, replay_to_mlflow
from lwfed.tracking.mlflow.process import MlflowFollower
from lwfed.tracking.mlflow.target import Target, absolute_uri, artifact_location

pytestmark = pytest.mark.slow  # `import mlflow` and a database's migrations
Record = dict[str, Any]
MakeRun = Callable[..., Record]


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def recorder_of(uri: str, **settings: Any) -> Any:
    from lwfed.tracking.mlflow.recorder import Recorder

    return Recorder(Target(uri=uri, system_metrics_s=0, **settings))


def following(target: Target, warnings: list[str]) -> tuple[JsonLines, MlflowFollower]:
    """Opens an empty log that MLflow follows."""
    follower = MlflowFollower(target, on_warning=warnings.append)
    return JsonLines(lambda data: None, follow=follower.send), follower


def tell_all(tracker: Any, run: Record, rounds: Sequence[Record], stages: Sequence[Record], **end: Any) -> None:
    """Tells a run as a coordinator does: the rounds of a stage, then the stage."""
    tracker.record(event_of("start", run))
    for stage in stages:
        for record in rounds:
            if record["stage"] == stage["stage"]:
                tracker.record(event_of("round", record))
        tracker.record(event_of("stage", stage))
    tracker.record(event_of_finish({"run_id": run["run_id"], "digest": "final"}, **end))


def children_of(client: Any, experiment_id: str, run_id: str) -> list[Any]:
    found = client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return sorted(found, key=lambda run: int(run.data.tags["lwfed.stage"]))


def history(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def test_the_run_tree(
    mlflow_uri: str, make_run: MakeRun, rounds: list[Record], stages: list[Record], tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("<p>report</p>")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "loss.svg").write_text("<svg/>")
    recorder = recorder_of(mlflow_uri, experiment="tree")
    run = make_run("tree-1", parent={"run_id": "earlier", "stage": 2})
    tell_all(
        recorder, run, rounds, stages, artifacts=[tmp_path / "report.html", tmp_path / "figures", tmp_path / "missing"]
    )
    client = client_of(mlflow_uri)
    whole = client.get_run(recorder.run_id)
    assert whole.info.status == "FINISHED"
    assert whole.info.run_name == "tree-1"
    tags = whole.data.tags
    assert tags["lwfed.parent_run_id"] == "earlier"
    assert tags["lwfed.digest"] == "final"
    assert len(tags["lwfed.spec_digest"]) == 64
    assert whole.data.params["stages.rounds"] == "2, 0, 1"
    assert whole.data.params["data.source"] == "shapes"
    inputs = {item.tags[0].value: item.dataset for item in whole.inputs.dataset_inputs}
    assert inputs["train"].name == "shapes/train"
    assert inputs["train"].digest == ("ab" * 32)[:36]
    assert json.loads(inputs["test"].profile)["num_rows"] == 10
    children = children_of(client, whole.info.experiment_id, whole.info.run_id)
    assert [child.info.run_name for child in children] == ["stage 1", "stage 2", "stage 3"]
    assert {child.info.status for child in children} == {"FINISHED"}
    lineage = [(child.data.tags["lwfed.input_digest"], child.data.tags["lwfed.output_digest"]) for child in children]
    assert lineage == [("out0", "out1"), ("out1", "out2"), ("out2", "out3")]
    assert history(client, whole.info.run_id, "test/t2i/R_at_1") == [(1, 0.1), (2, 0.2), (3, pytest.approx(0.3))]
    assert history(client, children[0].info.run_id, "test/t2i/R_at_1") == [(1, 0.1), (2, 0.2)]
    assert history(client, children[1].info.run_id, "test/loss") == [(2, 0.5)]  # no rounds: judged once
    assert history(client, children[2].info.run_id, "test/t2i/R_at_1") == [(3, pytest.approx(0.3))]
    assert history(client, whole.info.run_id, "ledger/predicted/exchanged_bytes") == [(1, 900), (2, 900), (3, 900)]
    assert {item.path for item in client.list_artifacts(whole.info.run_id)} == {
        "report.html",
        "figures",
        "summary.json",
    }
    assert whole.info.artifact_uri.startswith(
        (Path(mlflow_uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    )


def test_a_new_run_counts_its_stages_and_notes_their_keys_as_they_come(
    mlflow_uri: str, make_run: MakeRun, rounds: list[Record], stages: list[Record]
) -> None:
    run = make_run("keys-1", stages=[], predicted=[{"stage": stage} for stage in (1, 2, 3)])
    recorder = recorder_of(mlflow_uri, experiment="keys")
    client = client_of(mlflow_uri)

    def tags() -> Record:
        found: Record = client.get_run(recorder.run_id).data.tags
        return found

    recorder.record(event_of("start", run))
    assert "over 3 stages" in tags()["mlflow.note.content"]
    assert "lwfed.stage_keys" not in tags()
    for record in rounds[:2]:
        recorder.record(event_of("round", record))
    recorder.record(event_of("stage", stages[0]))
    assert tags()["lwfed.stage_keys"] == "key1"
    recorder.record(event_of("stage", stages[1]))
    assert tags()["lwfed.stage_keys"] == "key1,key2"
    recorder.record(event_of("start", run))  # a replayed log's start knows no keys
    assert tags()["lwfed.stage_keys"] == "key1,key2"
    tell_all(recorder, run, rounds, stages)
    assert tags()["lwfed.stage_keys"] == "key1,key2,key3"


def test_a_stage_that_another_run_trained_has_all_its_rounds(
    mlflow_uri: str, make_run: MakeRun, rounds: list[Record], stages: list[Record]
) -> None:
    begin_ms = int(1000 * time.time())
    created = datetime.fromtimestamp(begin_ms / 1000, UTC).isoformat()
    run = make_run("reused-1", created=created, stages=[], predicted=[{"stage": stage} for stage in (1, 2, 3)])
    long_ago = [{**record, "wall_s": {"round": 3600.0}} if record["stage"] == 1 else record for record in rounds]
    told = [{**record, "reused": record["stage"] == 1} for record in stages]
    data = bytearray()
    log = JsonLines(data.extend)
    tell_all(log, run, long_ago, told)
    end_ms = int(1000 * time.time())
    live = recorder_of(mlflow_uri, experiment="reused")
    tell_all(live, run, long_ago, told)
    client = client_of(mlflow_uri)
    found = [(live.run_id, int(1000 * time.time()))]
    for _ in range(2):
        status = replay_to_mlflow(read_events(bytes(data)), target=Target(uri=mlflow_uri, experiment="reused-later"))
        assert status.complete
        found.append((status.run_id, end_ms))
    for run_id, latest_ms in found:
        whole = client.get_run(run_id)
        points = client.get_metric_history(run_id, "train/loss")
        assert [point.step for point in points] == [1, 2, 3]
        dates = [point.timestamp for point in points]
        assert dates == sorted(set(dates))
        assert begin_ms < dates[0] and dates[-1] <= latest_ms + 3  # not in the future, though the rounds took hours
        children = children_of(client, whole.info.experiment_id, run_id)
        assert [child.data.tags["lwfed.reused"] for child in children] == ["True", "False", "False"]
        assert [step for step, _ in history(client, children[0].info.run_id, "train/loss")] == [1, 2]
        assert [step for step, _ in history(client, children[2].info.run_id, "train/loss")] == [3]
        assert whole.data.tags["lwfed.stage_keys"] == "key1,key2,key3"


def test_a_resumed_run_goes_on_in_the_same_runs(
    mlflow_uri: str, make_run: MakeRun, rounds: list[Record], stages: list[Record]
) -> None:
    first = recorder_of(mlflow_uri, experiment="resume")
    first.record(event_of("start", make_run("resume-1")))
    for record in rounds[:2]:
        first.record(event_of("round", record))
    first.record(event_of("stage", stages[0]))
    first.record(event_of_failure("killed"))
    client = client_of(mlflow_uri)
    assert client.get_run(first.run_id).info.status == "FAILED"
    for _ in range(2):  # the second time there is nothing new
        again = recorder_of(mlflow_uri, experiment="resume")
        tell_all(again, make_run("resume-1"), rounds, stages)
        assert again.run_id == first.run_id
        whole = client.get_run(again.run_id)
        assert whole.info.status == "FINISHED"
        children = children_of(client, whole.info.experiment_id, whole.info.run_id)
        assert len(children) == 3
        assert [step for step, _ in history(client, again.run_id, "train/loss")] == [1, 2, 3]
        assert [step for step, _ in history(client, again.run_id, "ledger/measured/bytes_up")] == [1, 2, 3]
        assert [step for step, _ in history(client, children[0].info.run_id, "train/loss")] == [1, 2]


@pytest.mark.parametrize("stage", [None, 1])
def test_an_adopted_run_is_never_ended(
    mlflow_uri: str, make_run: MakeRun, rounds: list[Record], stages: list[Record], stage: int | None
) -> None:
    client = client_of(mlflow_uri)
    found = client.get_experiment_by_name("platform")
    experiment = found.experiment_id if found else client.create_experiment("platform")
    above = client.create_run(experiment).info.run_id
    tags = {"mlflow.parentRunId": above} if stage else {}
    adopted = client.create_run(experiment, tags=tags).info.run_id
    client.log_param(adopted, "seed", '"3"')  # the platform's own spelling
    recorder = recorder_of(mlflow_uri, experiment="not-asked", adopted_run_id=adopted, stage=stage)
    if stage is None:
        tell_all(recorder, make_run(f"adopted-{stage}"), rounds, stages)
        assert recorder.run_id == adopted
        assert client.get_run(adopted).data.params["lwfed.seed"] == "3"
    else:
        recorder.record(event_of("start", make_run(f"adopted-{stage}")))
        for record in rounds[:2]:
            recorder.record(event_of("round", record))
        recorder.record(event_of("stage", stages[0]))
        recorder.record(event_of_failure("stopped"))
        assert recorder.run_id == above
        assert client.get_run(adopted).data.tags["lwfed.output_digest"] == "out1"
        assert client.get_run(above).info.status == "RUNNING"
    assert client.get_run(adopted).info.status == "RUNNING"
    assert [step for step, _ in history(client, adopted, "train/loss")][:2] == [1, 2]
    assert client.get_experiment_by_name("not-asked") is None


def test_a_server_that_is_down_stops_nothing_and_is_told_later(
    mlflow_uri: str,
    make_run: MakeRun,
    rounds: list[Record],
    stages: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warnings: list[str] = []
    data = bytearray()
    follower = MlflowFollower(Target(uri="http://127.0.0.1:9"), on_warning=warnings.append)
    log = JsonLines(data.extend, follow=follower.send)
    begin = time.perf_counter()
    tell_all(log, make_run("down-1"), rounds, stages)
    assert time.perf_counter() - begin < 2
    follower.close(60)
    assert len(warnings) == 1
    assert "http://127.0.0.1:9" in warnings[0]
    assert follower.status.delivered == 0
    assert not follower.status.complete
    target = Target(uri=mlflow_uri, experiment="later")
    for _ in range(2):
        status = replay_to_mlflow(read_events(bytes(data)), target=target)
        assert status.complete
        client = client_of(mlflow_uri)
        assert [step for step, _ in history(client, str(status.run_id), "train/loss")] == [1, 2, 3]
        assert client.get_run(status.run_id).info.status == "FINISHED"
    metric = client.get_metric_history(status.run_id, "train/loss")[1]
    assert metric.timestamp == 1714557600000 + 4000  # the run's date, and the rounds' own wall time


def test_delivery_waits_between_tries_and_ends_complete(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    now = [0.0]
    delivery = Delivery(Target(uri="http://127.0.0.1:9"), clock=lambda: now[0])
    delivery.add(event_of("start", make_run("x")))
    assert not delivery.drain()
    assert delivery.status().down
    begin = time.perf_counter()
    assert not delivery.drain()  # too early: not even tried
    assert time.perf_counter() - begin < 0.01
    now[0] = 1000.0
    assert not delivery.drain()


def test_what_a_healthy_server_refuses_does_not_hold_up_the_rest(
    mlflow_uri: str, make_run: MakeRun, rounds: list[Record]
) -> None:
    delivery = Delivery(Target(uri=mlflow_uri, experiment="refused", system_metrics_s=0))
    delivery.add(event_of("start", make_run("refused-1")))
    delivery.add({"event": "round", "record": {"stage": 1, "global_round": "x"}})
    delivery.add(event_of("round", rounds[0]))
    delivery.add(event_of_failure("enough"))
    assert delivery.drain()
    status = delivery.status()
    assert len(status.refused) == 1
    assert (status.told, status.delivered, status.complete) == (4, 3, False)
    run = client_of(mlflow_uri).get_run(status.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["lwfed.failure"] == "enough"
    assert run.data.metrics["train/loss"] == 1.0


def test_the_process_delivers_and_samples_the_machine(
    mlflow_uri: str, make_run: MakeRun, rounds: list[Record], stages: list[Record]
) -> None:
    warnings: list[str] = []
    target = Target(uri=mlflow_uri, experiment="process", system_metrics_s=0.2)
    tracker, follower = following(target, warnings)
    begin = time.perf_counter()
    tracker.record(event_of("start", make_run("process-1")))
    tracker.record(event_of("round", rounds[0]))
    assert time.perf_counter() - begin < 1
    client = client_of(mlflow_uri)
    deadline = time.monotonic() + 60
    while not follower.status.run_id and time.monotonic() < deadline:
        time.sleep(0.2)
        tracker.record(event_of("round", rounds[0]))
    time.sleep(1)
    tell_all(tracker, make_run("process-1"), rounds, stages)
    follower.close(60)
    assert warnings == []
    assert follower.status.complete
    run = client.get_run(follower.status.run_id)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(client, run.info.run_id, "train/loss")] == [1, 2, 3]
    assert "system/cpu_utilization_percentage" in run.data.metrics
    tracker.record(event_of("round", rounds[0]))  # after the end: passed over


WRITER = """
import os, subprocess, sys, time
print(subprocess.Popen([sys.executable, "-m", *sys.argv[1:], str(os.getpid())]).pid, flush=True)
time.sleep(600)
"""


def test_a_run_whose_process_is_gone_is_marked_killed(
    mlflow_uri: str, make_run: MakeRun, rounds: list[Record], tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "target.json").write_text(json.dumps({"uri": mlflow_uri, "experiment": "killed", "system_metrics_s": 0}))
    lines = [encode_event(event_of("start", make_run("killed-1"))), encode_event(event_of("round", rounds[0]))]
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, delivery.__name__, str(folder)], stdout=subprocess.PIPE,
        env=environment.child_environment(PYTHONPATH=":".join(entry for entry in sys.path if entry)),
    )  # fmt: skip
    assert writer.stdout is not None
    follower = psutil.Process(int(writer.stdout.readline()))
    deadline = time.monotonic() + 60
    status: dict[str, Any] = {}
    while status.get("delivered") != 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        if (folder / "status.json").exists():
            status = json.loads((folder / "status.json").read_bytes())
    writer.kill()
    writer.wait()
    writer.stdout.close()
    psutil.wait_procs([follower], timeout=30)
    assert not folder.exists()
    assert client_of(mlflow_uri).get_run(status["run_id"]).info.status == "KILLED"


PREDICTOR = """
import numpy as np


class Predictor:
    def __init__(self, digest, kind):
        self.digest, self.kind = digest, kind
        self.modalities = ("image", "text") if kind == "contrastive" else ("audio", "image")
        self.classes = ("low", "high")

    def embed_images(self, images):
        return np.stack([np.asarray(image, dtype=np.float32).mean((0, 1)) for image in images])

    def embed_texts(self, texts):
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    def classify(self, images, audios):
        level = np.array([np.asarray(image).mean() / 255 for image in images])
        assert all(samples.dtype == np.float32 and rate == 8000 for samples, rate in audios)
        return [self.classes[int(x > 0.5)] for x in level], np.stack([1 - level, level], axis=1)


def load_predictor(uri, digest):
    return Predictor(digest, uri)
"""


@pytest.mark.parametrize("kind", ["contrastive", "supervised"])
def test_the_registered_model_fetches_its_weights_when_loaded(
    mlflow_uri: str,
    make_run: MakeRun,
    rounds: list[Record],
    stages: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    import mlflow
    import pandas as pd
    import soundfile

    (tmp_path / f"colour_{kind}.py").write_text(PREDICTOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    modalities = ["image", "text"] if kind == "contrastive" else ["audio", "image"]
    model = {
        "uri": kind, "digest": "final", "kind": kind, "modalities": modalities, "classes": ["low", "high"],
        "loader": f"colour_{kind}:load_predictor",
    }  # fmt: skip
    for _ in range(2):  # told twice, registered once
        recorder = recorder_of(mlflow_uri, experiment="models")
        tell_all(recorder, make_run(f"model-{kind}", name=kind), rounds, stages, model=model)
        assert recorder.model == f"models-{kind}/1"
    version = client_of(mlflow_uri).get_model_version(f"models-{kind}", "1")
    assert version.tags["lwfed.digest"] == "final"
    assert version.run_id == recorder.run_id
    path = tmp_path / "white.png"
    Image.new("RGB", (4, 4), (255, 255, 255)).save(path)
    raw = io.BytesIO()
    Image.new("RGB", (4, 4), (0, 0, 0)).save(raw, format="JPEG")
    text = base64.b64encode(raw.getvalue()).decode()
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(mlflow_uri)
    try:
        loaded = mlflow.pyfunc.load_model(f"models:/models-{kind}/1")
    finally:
        mlflow.set_tracking_uri(before)
    assert loaded.metadata.signature is not None
    assert loaded.unwrap_python_model().predictor.digest == "final"
    if kind == "contrastive":
        got = loaded.predict(pd.DataFrame({"image": [str(path), None, text]}), params={"batch_size": 1})
        assert got["image_embedding"][0] == [255.0, 255.0, 255.0]
        assert got["image_embedding"][1] is None
        assert max(got["image_embedding"][2]) < 3
        assert loaded.predict(pd.DataFrame({"text": ["a", "abc"]}))["text_embedding"].tolist() == [[1, 1], [3, 1]]
        with pytest.raises(ValueError, match="neither a file nor base64"):
            loaded.predict(pd.DataFrame({"image": ["/no/such/file.png"]}))
    else:
        soundfile.write(tmp_path / "tone.wav", np.zeros((800, 2)), 8000)
        rows = pd.DataFrame({"image": [str(path), text], "audio": [str(tmp_path / "tone.wav")] * 2})
        got = loaded.predict(rows)
        assert got["label"].tolist() == ["high", "low"]
        assert [round(sum(row), 6) for row in got["probabilities"]] == [1, 1]


def test_addresses(tmp_path: Path) -> None:
    uri = absolute_uri("sqlite:///mlflow.db", folder=tmp_path)
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_location(uri, experiment="my runs") == (tmp_path / "mlartifacts" / "my-runs").as_uri()
    assert absolute_uri("http://host:5000", folder=tmp_path) == "http://host:5000"
    assert artifact_location("http://host:5000", experiment="x") is None
    assert absolute_uri(uri, folder=Path("/elsewhere")) == uri


def test_closed_without_an_end(mlflow_uri: str, make_run: MakeRun, rounds: list[Record]) -> None:
    target = Target(uri=mlflow_uri, experiment="closed", system_metrics_s=0)
    warnings: list[str] = []
    tracker, follower = following(target, warnings)
    tracker.record(event_of("start", make_run("closed")))
    tracker.record(event_of("round", rounds[0]))
    follower.close(60)
    assert follower.status.complete and warnings == []
    assert client_of(mlflow_uri).get_run(follower.status.run_id).info.status == "KILLED"
