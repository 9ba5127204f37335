"""What MLflow does not take is named, with why, and at once: places that cannot be written, servers that are none,
deleted experiments, names, registries that are off."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.drive.trackers import place_in_mlflow
from lwfed.spec.federation import TrackingSpec
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.tracking.jsonlines import encode_event, event_of, event_of_finish
from lwfed.tracking.mlflow.delivery import Status, replay_to_mlflow
from lwfed.tracking.mlflow.place import check_place, check_server
from lwfed.tracking.mlflow.process import MlflowFollower
from lwfed.tracking.mlflow.target import Target, model_name
from lwfed.types.errors import LwfedError, NotFoundError, SpecError, UnreachableError
from tests.tiny import Finished

Record = dict[str, Any]
MakeRun = Callable[..., Record]
MODEL = {"uri": "/store#key", "digest": "final", "kind": "contrastive", "modalities": ["image"], "classes": []}


def deliver(uri: str, run: Record, **target: Any) -> Status:
    """Delivers a run of no rounds, with its model."""
    events = [event_of("start", run), event_of_finish({"run_id": run["run_id"], "digest": "final"}, model=MODEL)]
    return replay_to_mlflow(events, target=Target(uri=uri, system_metrics_s=0, **target))


@pytest.fixture
def own(mlflow_uri: str, make_run: MakeRun, tmp_path: Path) -> str:
    """A database of one's own: a copy, since migrations take seconds."""
    deliver(mlflow_uri, make_run("first"), experiment="first")
    shutil.copy(mlflow_uri.removeprefix("sqlite:///"), tmp_path / "own.db")
    return f"sqlite:///{tmp_path / 'own.db'}"


@pytest.fixture(params=["page", "page-404", "empty", "object"])
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that is not MLflow's."""
    status, body = {
        "page": (200, b"<!doctype html><html>x</html>"), "page-404": (404, b"<html>no</html>"), "empty": (200, b""),
        "object": (200, b"{}"),
    }[request.param]  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(params=["file above", "no folder", "proc", "no database", "a file", "file uri", "no server"])
def closed(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that keeps no records, for root too."""
    path = tmp_path / "file"
    path.write_text("no database, but a text\n" * 100)
    return {
        "file above": f"sqlite:///{path}/mlflow.db", "no folder": f"sqlite:///{tmp_path}/none/mlflow.db",
        "proc": "sqlite:////proc/mlflow.db", "no database": f"sqlite:///{path}", "a file": str(path),
        "file uri": path.as_uri(), "no server": "postgresql://user:secret@127.0.0.1:9/mlflow",
    }[request.param]  # fmt: skip


def test_a_closed_place_is_named_at_once(closed: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    began = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        check_place(closed)
    assert time.monotonic() - began < 10
    assert caught.value.exit_code == 17 and "tracking.uri" in caught.value.remedy
    assert "secret" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("uri", ["sqlite:///{}/new.db", "{}/mlruns", "http://127.0.0.1:9", "databricks"])
def test_an_open_place_is_left_as_it_is(uri: str, tmp_path: Path) -> None:
    check_place(uri.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_closed_place_holds_nothing_up(make_run: MakeRun) -> None:
    warnings: list[str] = []
    follower = MlflowFollower(Target(uri="sqlite:////proc/mlflow.db"), on_warning=warnings.append)
    follower.send(event_of("start", make_run("closed")))
    began = time.monotonic()
    follower.close()
    assert time.monotonic() - began < 30, "MLflow itself tries for minutes"
    assert follower.status.down is not None and len(warnings) == 1
    assert "/proc" in warnings[0] and "tracking.uri" in warnings[0]


def test_a_server_of_another_kind_has_nothing(stranger: str, make_run: MakeRun) -> None:
    status = deliver(stranger, make_run("strange"))
    assert (status.delivered, status.told) == (0, 2) and status.down
    with pytest.raises(UnreachableError) as caught:
        check_server(stranger)
    assert "tracking.uri" in caught.value.remedy and "<" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.b", "v1.2-x_y", "a..b"])
@pytest.mark.parametrize("experiment", ["dots.in.it", "team/mine", "a:b%'\"c", "é 1"])
def test_a_model_is_registered_whatever_the_names(
    mlflow_uri: str, make_run: MakeRun, name: str, experiment: str
) -> None:
    status = deliver(mlflow_uri, make_run(f"{abs(hash((name, experiment)))}", name=name), experiment=experiment)
    assert status.complete, status
    expected = f"{experiment}-{name}".replace("/", "-").replace(":", "-")
    assert status.model is not None and status.model.rpartition("/")[0] == expected


def test_a_models_name_is_the_users_own_or_fits() -> None:
    assert model_name(Target(uri="x", register_as="catalog.schema.model"), run="r") == "catalog.schema.model"
    assert len(model_name(Target(uri="x", experiment="e" * 400), run="r")) == 256


@pytest.mark.parametrize(
    "values",
    [
        {"experiment": ""}, {"experiment": " "}, {"experiment": "e" * 501}, {"register_as": "a/b"},
        {"register_as": "a:b"}, {"register_as": ""}, {"register_as": ".."}, {"register_as": "m" * 257},
    ],
)  # fmt: skip
def test_names_that_mlflow_refuses_are_refused_first(values: Record, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "tracking": values}))
    ended = CliRunner().invoke(app, ["plan", str(path)])
    assert isinstance(ended.exception, SpecError) and ended.exception.exit_code == 10
    assert f"tracking.{next(iter(values))}" in str(ended.exception)


@pytest.mark.parametrize("uri", ["ftp://x", "localhost:5000", "sqlite:mlflow.db", "http:/x"])
def test_the_platforms_store_is_checked_like_the_specs(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SpecError, match="MLFLOW_TRACKING_URI"):
        place_in_mlflow(TrackingSpec())
    assert place_in_mlflow(TrackingSpec(uri=None)) is None


def test_a_deleted_experiment_stays_deleted(own: str, make_run: MakeRun) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=own, registry_uri=own)
    found = client.get_experiment_by_name("first")
    client.delete_experiment(found.experiment_id)
    status = deliver(own, make_run("again"), experiment="first")
    assert (status.delivered, status.told) == (0, 2)
    assert status.down is not None and f"--experiment-id {found.experiment_id}" in status.down
    assert client.get_experiment(found.experiment_id).lifecycle_stage == "deleted"
    client.restore_experiment(found.experiment_id)
    assert deliver(own, make_run("again"), experiment="first").complete


@pytest.fixture
def told(finished: Finished, make_run: MakeRun, tmp_path: Path) -> str:
    """A store with a finished run that has a log and a tracking store; its id is in the folder's name."""
    store = shutil.copytree(finished.store.uri, tmp_path / "store")
    path = store / "runs" / finished.run.run_id / "run.json"
    values = json.loads(path.read_bytes())
    values["spec"]["tracking"] = {"uri": "sqlite:///unused.db"}
    path.write_text(json.dumps(values))
    opened = open_store(str(store))
    events = [event_of("start", values), event_of_finish(dict(finished.summary), model=MODEL)]
    opened.append(paths.events(finished.run.run_id), b"".join(encode_event(event) for event in events))
    return str(store)


def report(store: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, BaseException | None]:
    """Runs `lwfed report latest --mlflow`; returns what it printed, and how it failed."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ended = CliRunner().invoke(app, ["report", "latest", "--mlflow", "--json", "--store", store])
    return json.loads(ended.stdout.splitlines()[-1])["mlflow"], ended.exception


def test_a_report_that_mlflow_takes_ends_well(told: str, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status, error = report(told, own, monkeypatch)
    assert error is None and status["delivered"] == status["told"] == 2


def test_a_registry_that_is_off_is_an_error_with_which_and_why(
    told: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(own.removeprefix("sqlite:///"))) as database:
        database.execute("DROP TABLE registered_models")
        database.commit()
    status, error = report(told, own, monkeypatch)
    assert (status["delivered"], status["told"], len(status["refused"])) == (1, 2, 1)
    assert isinstance(error, UnreachableError) and error.exit_code == 17
    assert "finish" in error.problem and "the model lwfed-tiny is not registered" in error.problem


def test_a_report_to_a_closed_place_is_an_error(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status, error = report(told, "sqlite:////proc/mlflow.db", monkeypatch)
    assert status["delivered"] == 0
    assert isinstance(error, UnreachableError) and "/proc" in error.problem


def test_a_run_without_a_log_has_nothing_to_report(
    finished: Finished, told: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(told).delete(paths.events(finished.run.run_id))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
    ended = CliRunner().invoke(app, ["report", "latest", "--mlflow", "--store", told])
    assert isinstance(ended.exception, NotFoundError)


@pytest.mark.parametrize(
    ("uri", "level"), [("sqlite:////proc/mlflow.db", "fail"), ("sqlite:///{}/m.db", "ok"), ("ftp://x", "fail")]
)
def test_the_doctor_looks_at_mlflows_place(
    uri: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp_path))
    ended = CliRunner().invoke(app, ["doctor", "--json", "--store", str(tmp_path / "store")])
    found = json.loads(ended.stdout.splitlines()[-1])
    (about,) = [item for item in found["findings"] if item["what"].startswith("MLflow: ")]
    assert about["level"] == level and (ended.exit_code == 0) is (level == "ok")


def test_the_doctor_knows_a_server_of_another_kind(
    stranger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stranger)
    ended = CliRunner().invoke(app, ["doctor", "--json", "--store", str(tmp_path / "store")])
    assert ended.exit_code == 1 and not isinstance(ended.exception, LwfedError)
