"""A namespace and an S3 server for the tests of a cluster; without a cluster they are skipped, with the reason."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.bed import HOW_TO_GET, Bed, find_cluster, namespace
from tests.s3 import HOW_TO_GET as HOW_TO_GET_S3
from tests.s3 import Server, serving


@pytest.fixture(scope="session")
def found() -> Bed:
    """The cluster."""
    cluster = find_cluster()
    if cluster is None:
        pytest.skip(HOW_TO_GET)
    return cluster


@pytest.fixture(scope="session")
def minio(found: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server of the tests' own, where pods reach this machine."""
    with serving(tmp_path_factory.mktemp("s3"), host=found.address) as server:
        if server is None:
            pytest.skip(HOW_TO_GET_S3)
        server.make_bucket("lwfed")
        yield server


@pytest.fixture(scope="session")
def bed(minio: Server) -> Iterator[Bed]:
    """A namespace whose pods find the S3 server."""
    with namespace(f"lwfed-test-{uuid.uuid4().hex[:8]}") as made:
        assert made is not None
        yield replace(made, env=minio.environment())


@pytest.fixture
def uri(bed: Bed, minio: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A store of the test's own; this process finds it and the cluster as pods do."""
    for name, value in {**minio.environment(), "KUBECONFIG": str(bed.kubeconfig)}.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name in ("POD_NAME", "KFP_POD_NAME", "MLFLOW_RUN_ID")]:
        monkeypatch.delenv(name)
    return f"s3://lwfed/{request.node.name[:40].replace('[', '-').replace(']', '')}-{uuid.uuid4().hex[:6]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the test's own."""
    return tmp_path
