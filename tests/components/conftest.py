"""Servers for the commands that speak with Kubeflow Pipelines, and the command line itself, in this process."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import Client
from kubernetes.config import kube_config

from tests.components import cluster_server, kfp_server
from tests.components.compiled import IMAGE
from tests.components.kfp_server import State
from tests.s3 import HOW_TO_GET, make_server, serving
from tests.tiny import VALUES

BUCKET = "lwfed"
ON_CLUSTER = {**VALUES, "store": {"uri": f"s3://{BUCKET}/runs"}, "kubernetes": {"image": IMAGE}}
"""The tiny experiment, for a cluster."""


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object in the last line of standard output."""
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> str:
        """The one line that names an error."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


Command = Callable[..., Said]


@pytest.fixture(scope="session")
def s3_variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables that lead to an S3 server with the bucket; to a port where nobody is, where there is no program."""
    with socket.socket() as nobody, serving(tmp_path_factory.mktemp("s3")) as server:
        nobody.bind(("127.0.0.1", 0))  # it is held, so that no other server of a test gets it
        variables = {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_EC2_METADATA_DISABLED": "true",
            "LWFED_S3_PATIENCE_S": "1",
        }
        if server is not None:
            server.make_bucket(BUCKET)
        yield {**variables, **(server.environment() if server is not None else {})}


@pytest.fixture
def kfp(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, s3_variables: dict[str, str], tmp_path: Path
) -> Iterator[State]:
    """A server like that of Kubeflow Pipelines, and no cluster beside it.

    A test that gets an answer seen on no server fails unless it carries the marker `unseen`; so does one that carries
    it in vain, and one that asks for what nobody knows an answer to.
    """
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with kfp_server.serving(State()) as state:
        yield state
    marked = request.node.get_closest_marker("unseen") is not None
    state.check(unseen=marked)
    assert state.unseen or not (marked and state.asked), "the marker `unseen` is not needed: take it off"


@pytest.fixture
def cluster(kfp: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[cluster_server.Objects]:
    """A cluster's API beside it."""
    config = tmp_path / "kubeconfig"
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(config))
    with cluster_server.serving(cluster_server.Objects(), config) as objects:
        yield objects


@pytest.fixture
def stored() -> None:
    """Leaves a test out where no S3 server can be started."""
    if make_server(Path()) is None:
        pytest.skip(HOW_TO_GET)


@pytest.fixture
def lwfed(kfp: State, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs `lwfed` with some arguments, to its exit code; `--endpoint` is added where none is given."""
    from lwfed.cli.main import main

    before = dict(os.environ)

    def call(*arguments: str) -> Said:
        where = [] if "--endpoint" in arguments else ["--endpoint", kfp.endpoint]
        monkeypatch.setattr(sys, "argv", ["lwfed", *arguments, *where])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    yield call
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def spec(kfp: State, tmp_path: Path) -> str:
    """The tiny experiment for a cluster, in a file."""
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(ON_CLUSTER), encoding="utf-8")
    return str(path)
