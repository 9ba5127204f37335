"""Whatever stands in an environment variable: it is taken, or refused with its name; no command ends in exit code 1."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lwfed import cpus, environment
from lwfed.cli.main import app
from lwfed.types.errors import LwfedError
from tests import tiny

TIMES = {"plan": 40, "list": 40, "run": 8}
"""Command -> number of environments."""
NUMBERS = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "JOB_COMPLETION_INDEX", "LWFED_CPUS", "LWFED_S3_PATIENCE_S",
           "LWFED_READ_PATIENCE_S")  # fmt: skip
NAMES = (
    *NUMBERS, "LWFED_CACHE", "XDG_CACHE_HOME", "HOME", "CUDA_VISIBLE_DEVICES", "LWFED_DEBUG", "LWFED_RUN_ID",
    "KFP_RUN_ID",
    "MLFLOW_RUN_ID", "LWFED_MLFLOW_PARENT_RUN_ID", "MLFLOW_TRACKING_URI", "KFP_POD_NAME", "POD_NAME", "HOSTNAME",
    "KUBECONFIG", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH",
    "LWFED_S3_SECRET_DIR",
    "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "AWS_ACCESS_KEY_ID",
    "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD",
)  # fmt: skip
"""Every variable that lwfed reads, but WORLD_SIZE, by which a process waits for others."""
VALUES = (
    b"", b" ", b"\n", b"\t1 ", b"0", b"1", b"-1", b"2", b"1.5", b"1e400", b"1e300",
    b"nan", b"inf", b"0x10", b"1_000", b"yes",
    "\u0661".encode(), "²".encode(), "ä".encode(), b"\xff\xfe", b"caf\xe9", b"~", b"~nobody/x", b"/dev/null",
    b"/dev/null/x",
    b"/proc/nothing", b"..", b"a" * 300, b"9" * 5_000, b"/" + b"a" * 5_000, b"\x1b[31m", b"http://[", b"://", b"a\nb",
)  # fmt: skip
READERS: dict[str, Callable[[], Any]] = {
    name: function
    for name, function in vars(environment).items()
    if inspect.isfunction(function) and not name.startswith("_") and not inspect.signature(function).parameters
    and name not in ("quiet", "lend_home")
}  # fmt: skip
"""Every function that reads variables alone."""


def odd(rng: np.random.Generator) -> dict[bytes, bytes]:
    names = rng.choice(NAMES, size=int(rng.integers(1, 4)), replace=False)
    return {str(name).encode(): VALUES[rng.integers(len(VALUES))] for name in names}


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[dict[bytes, bytes]], None]]:
    """Sets variables in place of those that the last call set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LWFED_CACHE", str(tmp_path / "cache"))
    whole = dict(os.environb)

    def setting(variables: dict[bytes, bytes]) -> None:
        for name in {*os.environb} - {*whole}:
            del os.environb[name]
        os.environb.update({**whole, **variables})

    yield setting
    setting({})


def refused(error: LwfedError, variables: dict[bytes, bytes]) -> None:
    message = str(error)
    assert error.exit_code != 1 and error.remedy and message.isprintable() and len(message) < 1_000, message
    assert any(name.decode() in message for name in variables), (message, variables)


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_is_read_or_refused(name: str, surroundings: Any, tmp_path: Path) -> None:
    for value in VALUES:
        surroundings({name.encode(): value})
        for reader in (*READERS.values(), *([cpus.usable] if name == "LWFED_CPUS" else [])):
            try:
                read = reader()
            except LwfedError as error:
                refused(error, {name.encode(): value})
            else:
                assert not isinstance(read, int) or read >= 0


PYTORCH_JOB = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
               "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "PET_NNODES": "2",
               "TORCHELASTIC_RUN_ID": "none"}  # fmt: skip


def test_children_do_not_inherit_ranks(surroundings: Any) -> None:
    surroundings({name.encode(): value.encode() for name, value in PYTORCH_JOB.items()})
    assert not set(PYTORCH_JOB) & set(environment.child_environment())
    assert environment.child_environment(RANK="0")["RANK"] == "0"


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_ranks_that_cannot_meet_are_refused(missing: str, surroundings: Any) -> None:
    variables = {name.encode(): value.encode() for name, value in PYTORCH_JOB.items() if name != missing}
    surroundings(variables)
    with pytest.raises(LwfedError) as caught, environment.ranks(use_gpu=False):
        raise AssertionError("no ranks to join")
    refused(caught.value, {missing.encode(): b""})
    assert caught.value.exit_code == 10 and "WORLD_SIZE" in str(caught.value)


@pytest.mark.parametrize("command", TIMES)
def test_commands_end_in_words(command: str, surroundings: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(list(TIMES).index(command))
    values = {**tiny.VALUES, "stages": {"rounds": [1, 0]}, "store": {"uri": str(tmp_path / "store")}}
    (tmp_path / "spec.json").write_text(json.dumps(values))
    for number in range(TIMES[command]):
        variables = odd(rng)
        surroundings(variables)
        ended(command, variables, str(number))


def ended(command: str, variables: dict[bytes, bytes], run_id: str) -> None:
    """Runs a command in this process, which ends well or in a refusal that names a variable."""
    arguments = {"plan": ["spec.json"], "list": [], "run": ["spec.json", "--fresh", "--run-id", f"r{run_id}"]}[command]
    environment.quiet()
    result = CliRunner().invoke(app, [command, *arguments])
    error = result.exception
    if isinstance(error, LwfedError):
        assert error.exit_code == 19 or any(name.decode() in str(error) for name in variables), str(error)
        assert error.exit_code != 1 and error.remedy and str(error).isprintable()
    elif error is not None:
        raise AssertionError(f"{error!r} with {variables}") from error
