"""Users without a home or a name, files without read permission, terminals of ASCII alone, keys with line breaks."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Ended, lwfed, succeed, together, write_spec

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
"""Runs a command as a user whom the system does not know, and who has no rights but those of the files' owner."""
SPEC = "spec.yaml"


def as_unknown(*arguments: str, cwd: Path, **extra: str) -> Ended:
    """Runs lwfed as an unknown user, without HOME or any other variable of ours."""
    tried = subprocess.run([*UNKNOWN, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"no user namespaces here: {tried.stderr.decode().strip()}")
    wanted = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TMPDIR": str(cwd), "OMP_NUM_THREADS": "1", **extra}
    ended = subprocess.run(
        [*UNKNOWN, sys.executable, "-m", "lwfed", *arguments],
        cwd=cwd, env=wanted, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_an_unknown_user_without_a_home_plans_and_trains(tmp_path: Path) -> None:
    """Also architectures that are counted and kept, and MLflow, which looks for a home."""
    write_spec(tmp_path, tracking__uri="sqlite:///m.db", stages__rounds=[1, 0])
    normed = ("-o", "model.encoders.image.config.qk_norm=true")
    planned, trained = together(
        partial(as_unknown, "plan", SPEC, *normed, cwd=tmp_path),
        partial(as_unknown, "run", SPEC, "--json", cwd=tmp_path),
    )
    assert planned.code == trained.code == 0, planned.err + trained.err
    assert trained.json["status"] == "finished" and (tmp_path / "m.db").exists() and "warning" not in trained.err
    assert not (tmp_path / "~").exists()
    assert list((tmp_path / "lwfed-12345/lwfed").glob("*.json")), "counted once"


@pytest.mark.parametrize("arguments", [["-o", "store.uri='~/runs'"], ["-o", "data={source: coco, root: ~/x}"]])
def test_a_tilde_without_a_home_is_refused(arguments: list[str], tmp_path: Path) -> None:
    write_spec(tmp_path)
    ended = as_unknown("run", SPEC, *arguments, cwd=tmp_path)
    assert ended.code in (10, 11) and len(ended.errors) == 1 and "bug" not in ended.err, ended.err


@pytest.mark.parametrize("folder", [".", "closed"])
def test_a_spec_without_read_permission_is_named(folder: str, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    spec = write_spec(tmp_path / folder)
    closed = spec if folder == "." else spec.parent
    closed.chmod(0)
    ended = as_unknown("plan", str(spec), cwd=tmp_path)
    closed.chmod(0o755)
    assert ended.code == 10 and str(spec) in ended.errors[0]


@pytest.mark.parametrize(
    "encoding", [{"PYTHONIOENCODING": "ascii", "LANG": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}]
)
def test_a_terminal_may_know_ascii_alone(encoding: dict[str, str], tmp_path: Path) -> None:
    spec = write_spec(tmp_path, stages__rounds=[1, 0], launch__kind="subprocess", evaluation__classes=["ä"] * 5)
    shown, told, run = together(
        partial(succeed, "partition", spec, cwd=tmp_path, **encoding),
        partial(succeed, "partition", spec, "--json", cwd=tmp_path, **encoding),
        partial(succeed, "run", spec, "--json", "--run-id", "one", cwd=tmp_path, **encoding),
    )
    assert "client-001" in shown.out and "#" in shown.out and shown.out.isascii()
    assert told.json["left_out"] == {} and run.json["left_out"] == {}
    assert (
        succeed("show", "one", "--json", cwd=tmp_path, **encoding).json["run"]["spec"]["evaluation"]["classes"][0]
        == "ä"
    )
    assert lwfed("run", tmp_path / "größer.yaml", cwd=tmp_path, **encoding).code == 19


def test_the_models_size_is_printed_before_anything_else(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, stages__rounds=[1, 0])
    ended = succeed("run", spec, "--json", cwd=tmp_path)
    first = ended.err.splitlines()[0]
    assert "image" in first and "text" in first and "parameters" in first and "1 rounds" in first
    refused = lwfed("run", spec, "-o", "data={source: coco, root: ./none}", cwd=tmp_path)
    assert refused.code == 11 and refused.out.splitlines()[0] == first


@pytest.fixture
def bucket() -> Iterator[Any]:
    """A server of S3 that refuses everybody, and the access keys that it was asked with."""
    keys: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_break_after_a_key_is_stripped(end: str, bucket: Any, tmp_path: Path) -> None:
    address, keys = bucket
    access = {"AWS_ACCESS_KEY_ID": "AKIA" + end, "AWS_SECRET_ACCESS_KEY": "secret" + end, "AWS_REGION": "here" + end}
    ended = lwfed("list", "--store", "s3://bucket/x", cwd=tmp_path, AWS_ENDPOINT_URL_S3=address + end, **access)
    assert ended.code == 17 and keys == ["AKIA"], ended.err


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_line_break_within_a_key_is_refused_at_once(name: str, bucket: Any, tmp_path: Path) -> None:
    address, keys = bucket
    access = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret", name: "two\nlines"}
    began = time.monotonic()
    ended = lwfed("list", "--store", "s3://bucket/x", cwd=tmp_path, AWS_ENDPOINT_URL_S3=address, **access)
    assert ended.code == 10 and name in ended.errors[0] and "two" not in ended.err and not keys
    assert time.monotonic() - began < 60
