"""What is read from the environment, and what is put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lwfed import environment


def test_quiet_leaves_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    for name in set(environment.QUIET) - {"MLFLOW_HTTP_REQUEST_TIMEOUT"}:
        monkeypatch.delenv(name, raising=False)
    environment.quiet()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert all(name in os.environ for name in environment.QUIET)


def test_telemetry_names_are_those_the_libraries_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

    for name, value in environment.QUIET.items():
        monkeypatch.setenv(name, value)
    assert MLFLOW_DISABLE_TELEMETRY.get() is True
    assert environment.QUIET["HF_HUB_DISABLE_TELEMETRY"].upper() in constants.ENV_VARS_TRUE_VALUES
    assert environment.QUIET["DO_NOT_TRACK"].upper() in constants.ENV_VARS_TRUE_VALUES


def test_an_adopted_run_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("LWFED_MLFLOW_PARENT_RUN_ID", "def")
    assert environment.mlflow_adopted_run_id() == "abc"
    assert environment.mlflow_parent_run_id() == "def"
    child = environment.child_environment(EXTRA="1")
    assert "MLFLOW_RUN_ID" not in child
    assert child["LWFED_MLFLOW_PARENT_RUN_ID"] == "def"
    assert child["EXTRA"] == "1"


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LWFED_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / "lwfed"
    monkeypatch.setenv("LWFED_CACHE", str(tmp_path / "own"))
    assert environment.cache_folder() == tmp_path / "own"


@pytest.mark.parametrize(("value", "expected"), [("", False), ("0", False), ("false", False), ("1", True)])
def test_debug(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("LWFED_DEBUG", value)
    assert environment.debug() is expected


def test_files_without_a_home_are_never_kept_in_another_user_s_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "LWFED_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 12345)  # the system does not know this user
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    own = environment.cache_folder()
    assert own.parent == tmp_path / "lwfed-12345"
    own.parent.mkdir()  # by whoever runs this test
    assert environment.cache_folder().parent == tmp_path / f"lwfed-12345-{os.getpid()}"
