"""Laws of the commands that look: they print one JSON object where asked, and change nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lwfed.cli.main import EPILOG, app
from lwfed.launch.step_process import STEPS
from lwfed.spec.load import preset_names
from lwfed.types.errors import EXIT_CODES, CheckpointError, LwfedError, NotFoundError, SpecError
from tests.tiny import Finished

COMMANDS = ("run", "rerun", "plan", "partition", "list", "show", "report", "export", "presets", "doctor", "step")


def call(*arguments: str) -> str:
    """Runs a command that must succeed; returns what it printed."""
    ended = CliRunner().invoke(app, arguments)
    if isinstance(ended.exception, Exception):
        raise ended.exception
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def call_json(*arguments: str) -> Any:
    return json.loads(call(*arguments, "--json").splitlines()[-1])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    text = call(command, "--help")
    assert f"{command} " in text and len(text.splitlines()) > 4
    assert "--json" in text or command == "presets"


def test_exit_codes_are_told() -> None:
    text = " ".join(call("--help").split())
    for code, name in EXIT_CODES.items():
        assert f"{code} {name}" in EPILOG and f"{code} {name}" in text


def test_a_store_is_listed_and_shown(finished: Finished) -> None:
    uri, run_id = finished.store.uri, finished.run.run_id
    rows = {row["run_id"]: row for row in call_json("list", "--store", uri)["runs"]}
    assert rows[run_id]["status"] == "finished" and rows[run_id]["digest"] == finished.digest
    assert (rows[run_id]["stages"], rows[run_id]["stages_done"]) == (2, 2)
    shown = call_json("show", run_id, "--store", uri)
    assert shown["digest"] == finished.digest
    assert [r["digest"] for r in shown["round_records"]] == [r["digest"] for r in finished.reported("round")]
    text = call("show", run_id, "--store", uri)
    assert finished.keys[1] in text and "temperature: 0.07" in text
    assert finished.digest[:12] in call("list", "--store", uri)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}"])
def test_a_damaged_run_does_not_hide_others(finished: Finished, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(finished.store.uri, tmp_path / "store")
    broken = tmp_path / "store/runs/broken/run.json"
    broken.parent.mkdir()
    broken.write_bytes(content)
    ended = CliRunner().invoke(app, ["list", "--json", "--store", str(tmp_path / "store")])
    assert finished.run.run_id in [row["run_id"] for row in json.loads(ended.stdout)["runs"]]
    assert isinstance(ended.exception, CheckpointError) and "the run broken cannot" in str(ended.exception)
    shown = CliRunner().invoke(app, ["show", "latest", "--json", "--store", str(tmp_path / "store")])
    assert json.loads(shown.stdout)["run_id"] == finished.run.run_id and "the run broken cannot" in shown.stderr


def test_a_run_that_is_not_there_is_guessed(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="did you mean"):
        call("show", finished.run.run_id[:-1], "--store", finished.store.uri)
    with pytest.raises(NotFoundError, match="there are no runs"):
        call("list", "--store", str(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists(), "looking makes no folder"


def test_a_plan_is_priced_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = call_json("plan", "coco-layerwise", "--examples", "1000")
    assert len(told["stages"]) == len(told["rows"]) - 2
    assert {row["stage"] for row in told["rows"]} >= {"end_to_end", "total", 1, 2}
    assert not list(tmp_path.iterdir()), "nothing is written"
    fits = {size: call_json("plan", "coco-layerwise", "--device-memory", size) for size in ("100MB", "100GiB")}
    verdicts = {size: {row["verdict"] for row in told["rows"] if "verdict" in row} for size, told in fits.items()}
    assert verdicts["100MB"] != verdicts["100GiB"]
    shorter = call_json("plan", "coco-layerwise", "--tokens", "8")
    assert shorter["end_to_end"]["forward_flops"] < told["end_to_end"]["forward_flops"]
    assert "end_to_end" in call("plan")


def test_a_partition_is_counted(tmp_path: Path) -> None:
    told = call_json("partition", "-o", "data.shapes.train=50", "-o", "federation.num_clients=4")
    sizes = [client["num_examples"] for client in told["clients"]]
    assert sum(sizes) == 50 and len(sizes) == 4
    labels = [client["labels"] for client in told["clients"]]
    assert all(sum(counts.values()) == size for counts, size in zip(labels, sizes, strict=True))
    assert "client-003" in call("partition", "-o", "data.shapes.train=50", "-o", "federation.num_clients=4")


def test_presets_are_listed() -> None:
    text = call("presets")
    assert all(name in text for name in preset_names()) and "(default)" in text


def test_a_machine_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = call_json("doctor", "--store", str(tmp_path / "store"))
    assert told["ok"] and any("is writable" in finding["what"] for finding in told["findings"])
    assert not (tmp_path / "store").exists(), "looking leaves no store behind"
    monkeypatch.setenv("LWFED_CPUS", "1")
    told = call_json("doctor", "--store", str(tmp_path / "store"))
    assert any(finding["what"].startswith("1 CPU(s)") for finding in told["findings"])
    (tmp_path / "file").write_bytes(b"")
    ended = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "file" / "x"), "--json"])
    assert ended.exit_code == 1
    assert not json.loads(ended.stdout.splitlines()[-1])["ok"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "is not JSON"), ("[1]", "holds no JSON object")],
)
def test_a_task_that_is_none_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    task = tmp_path / "task.json"
    if content is not None:
        task.write_text(content)
    for step in STEPS:
        with pytest.raises(SpecError, match=message):
            call("step", step, "--task", str(task))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("content", ["{}", '{"store": "/tmp", "odd": 1}'])
def test_a_task_of_another_form_is_the_callers_mistake_and_not_a_fault(tmp_path: Path, step: str, content: str) -> None:
    task = tmp_path / "task.json"
    task.write_text(content)
    with pytest.raises(SpecError) as caught:
        call("step", step, "--task", str(task))
    assert "stage_key" in str(caught.value) or "run_id" in str(caught.value)


def test_a_step_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(LwfedError, match="there is no step `train`") as caught:
        call("step", "train", "--task", str(tmp_path / "x"))
    assert "train-client" in caught.value.remedy


def test_a_name_of_a_run_is_checked_before_any_work(tmp_path: Path) -> None:
    for name in ("../x", "a b", ".hidden", ""):
        with pytest.raises(SpecError, match="not a valid run id"):
            call("run", "-o", f"store.uri={tmp_path}/s", "--run-id", name)
    assert not (tmp_path / "s").exists()
