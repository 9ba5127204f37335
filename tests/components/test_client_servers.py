"""What the commands say to servers that are not what they should be, to other installations, and to what cannot be."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.components.conftest import Command
from tests.components.kfp_server import State


def test_a_spec_that_no_cluster_can_run_reaches_no_server(lwfed: Command, kfp: State, spec: str) -> None:
    ended = lwfed("submit", spec, "-o", "kubernetes.image=")
    assert ended.code == 10 and "kubernetes.image" in ended.error and not kfp.asked


def test_a_dead_server_is_told_within_seconds(lwfed: Command, spec: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        began = time.monotonic()
        ended = lwfed("submit", spec, "--endpoint", f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert ended.code == 17 and "connection refused" in ended.error and "kubectl port-forward" in ended.error
    assert time.monotonic() - began < 5


def test_no_server_named_is_told(lwfed: Command, kfp: State, spec: str) -> None:
    ended = lwfed("submit", spec, "--endpoint", "")
    assert ended.code == 10 and "--endpoint" in ended.error


@pytest.mark.parametrize("command", [["submit"], ["retry", "latest"], ["cancel", "latest"], ["logs", "latest"]])
def test_what_is_not_kubeflow_pipelines_is_told(command: list[str], lwfed: Command, kfp: State, spec: str) -> None:
    kfp.is_kfp = False
    ended = lwfed(*command, *([spec] if command == ["submit"] else []))
    assert ended.code == 19 and "not an API of Kubeflow Pipelines 2" in ended.error


@pytest.mark.unseen
def test_a_token_opens_and_a_wrong_one_does_not(
    lwfed: Command, kfp: State, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp.token = "open-sesame"
    (tmp_path / "token").write_text("open-sesame")
    monkeypatch.setenv("MY_TOKEN", "open-sesame")
    for wrong in ([], ["--token", "wrong"]):
        ended = lwfed("submit", spec, *wrong)
        assert ended.code == 17 and "(401)" in ended.error and "--token-file" in ended.error
    assert not kfp.runs
    for right in (
        ["--token", kfp.token], ["--token-file", str(tmp_path / "token")], ["--existing-token-env", "MY_TOKEN"],
    ):  # fmt: skip
        assert lwfed("submit", spec, *right).code == 0
    assert len(kfp.runs) == 3


@pytest.mark.unseen
def test_a_multi_user_kubeflow_puts_all_into_the_namespace(lwfed: Command, kfp: State, spec: str) -> None:
    kfp.multi_user, kfp.experiments = True, []
    ended = lwfed("submit", spec)
    assert ended.code == 17 and "(403)" in ended.error and "namespace kubeflow" in ended.error
    ended = lwfed("submit", spec, "--namespace", "alice", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["namespace"] == kfp.experiments[0]["namespace"] == "alice"
    assert '"namespace":"alice"' in kfp.spec_text()
    assert lwfed("submit", spec, "-o", "kubernetes.namespace=alice").code == 0
    assert lwfed("logs", "latest", "--namespace", "bob").code == 17


@pytest.mark.unseen
def test_a_namespace_that_kfp_knows_takes_the_jobs_too(lwfed: Command, kfp: State, spec: str, tmp_path: Path) -> None:
    kfp.multi_user = True
    (tmp_path / "context.json").write_text('{"namespace": "alice"}')
    ended = lwfed("submit", spec, "--json")
    assert ended.code == 0 and ended.json["namespace"] == "alice", ended.err
    assert '"namespace":"alice"' in kfp.spec_text()


@pytest.mark.parametrize("arguments", [["--cron", "every monday"], ["--cron", "0 3 * * 1", "--wait"]])
def test_schedules_that_cannot_be_are_refused(arguments: list[str], lwfed: Command, kfp: State, spec: str) -> None:
    ended = lwfed("submit", spec, *arguments)
    assert ended.code == 10 and not kfp.asked
