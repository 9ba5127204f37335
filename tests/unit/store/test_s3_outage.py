"""Laws of an S3 server that goes away, comes back, breaks off or keeps us out: patience, and errors with a remedy."""

from __future__ import annotations

import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lwfed import environment
from lwfed.store.opening import open_store
from lwfed.store.s3.store import S3Store
from lwfed.types.errors import LwfedError, SpecError, UnreachableError
from tests.s3 import HOW_TO_GET, PASSWORD, USER, Server, free_port, make_server, serving
from tests.unit.store.conftest import BUCKET

MIB = 1 << 20
PART = 5 * MIB


@pytest.fixture
def mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of one's own, to be killed."""
    server = make_server(tmp_path / "mortal")
    if server is None:
        pytest.skip(HOW_TO_GET)
    server.start()
    server.make_bucket("mortal")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    try:
        yield server
    finally:
        server.kill()


class Cutting:
    """A way to a server on which answers break off.

    Args:
        port: The server's.
        after: Bytes that come through before the cut.
        times: How many connections are cut; later ones are whole.
    """

    def __init__(self, port: int, *, after: int, times: int) -> None:
        self._to, self._after, self.left = port, after, times
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = [self._listening]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        for work in (lambda end: end.shutdown(socket.SHUT_RDWR), lambda end: end.close()):
            for end in self._ends:
                with suppress(OSError):
                    work(end)
            for thread in self._threads:
                thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            self._ends += [near, far]
            for way in ((near, far, None), (far, near, self._after)):
                self._threads.append(threading.Thread(target=self._pass, args=way, daemon=True))
                self._threads[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65_536):
                passed += len(data)
                if limit is not None and passed > limit:
                    with self._lock:
                        cut, self.left = self.left > 0, self.left - 1
                    if cut:
                        break
                    limit = None
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_an_answer_that_breaks_off_is_gone_on_with(uri: str, s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    content = secrets.token_bytes(20 * MIB)
    open_store(uri).put("x", [content])
    way = Cutting(s3.port, after=3 * MIB, times=5)
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{way.port}")
        store = S3Store(uri, patience_s=5)
        buffers = [bytearray(7 * MIB), bytearray(13 * MIB)]
        store.read_into("x", buffers)
        assert b"".join(buffers) == content and way.left <= 0
        assert store.fetch("x").read_bytes() == content
    finally:
        way.close()


@pytest.mark.slow
def test_a_server_killed_amid_writes_and_back_loses_nothing(mortal: Server) -> None:
    store = S3Store("s3://mortal/run", part_bytes=PART, patience_s=30)
    content = secrets.token_bytes(14 * PART)
    started = threading.Event()
    failed: list[BaseException] = []

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(content), MIB):
            if start == 4 * PART:
                started.set()
            yield content[start : start + MIB]

    def write() -> None:
        try:
            for number in range(2):
                store.put(f"big{number}", chunks())
                for n in range(5):
                    assert store.write_ref(f"refs/{number}-{n}.json", {"n": n}, if_absent=True)
                    store.append("log", f"{number}-{n} ".encode())
        except BaseException as error:
            failed.append(error)
            raise

    if mortal.kind != "minio":
        pytest.skip("rclone forgets begun uploads: `.ci/minio` builds MinIO")
    writer = threading.Thread(target=write)
    writer.start()
    assert started.wait(20)
    mortal.kill()
    time.sleep(1.5)
    mortal.start()
    writer.join(60)
    assert not writer.is_alive() and not failed
    assert store.get("big0") == content and store.get("big1") == content
    assert list(store.list("refs/")) == [f"refs/{number}-{n}.json" for number in range(2) for n in range(5)]
    assert len(store.read_log("log").split()) == 10


@pytest.mark.slow
def test_a_server_that_stays_away_is_told_in_time(mortal: Server) -> None:
    store = S3Store("s3://mortal/run", part_bytes=PART, patience_s=0.4)
    store.put("x", [b"1"])
    mortal.kill()
    for work in (
        lambda: store.read_ref("r"), lambda: store.get("x"), lambda: store.put("y", [b"1"]),
        lambda: store.put("y", [bytes(3 * PART)]), lambda: list(store.list("")), lambda: store.delete("x"),
        lambda: store.has("x"), lambda: store.write_ref("r", 1, if_absent=True), lambda: store.append("log", b"1"),
        lambda: store.read_into("x", [bytearray(30 * MIB)]),
    ):  # fmt: skip
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=f"127.0.0.1:{mortal.port} of s3://mortal/run does not") as caught:
            work()
        assert 0.35 < time.monotonic() - began < 2.5
        assert caught.value.exit_code == 17
        assert "AWS_ENDPOINT_URL_S3" in caught.value.remedy and "--run-id" in caught.value.remedy


def test_a_server_that_hangs_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="does not answer"):
            S3Store("s3://bucket/x", patience_s=1.0).read_ref("r")
        assert time.monotonic() - began < 5


def test_an_answer_that_was_lost_is_known_by_its_writer(uri: str) -> None:
    """The server has written, and its answer is lost: the next try is refused, and it is this writer all the same."""
    for lost, winner in ((1, True), (0, False)):
        store = S3Store(f"{uri}/{lost}", patience_s=5)
        store.write_ref("known", 1, if_absent=True)
        if not winner:
            open_store(store.uri).write_ref("r", {"other": 1})
        events = store.connection.client.meta.events
        times = [lost]

        def lose(**_: object) -> None:
            if times[0]:  # noqa: B023
                times[0] -= 1  # noqa: B023
                raise ConnectionResetError("lost")

        events.register("after-call.s3.PutObject", lose)
        try:
            assert store.write_ref("r", {"mine": 1}, if_absent=True) is winner
        finally:
            events.unregister("after-call.s3.PutObject", lose)
        assert store.read_ref("r") == ({"mine": 1} if winner else {"other": 1})


@pytest.mark.parametrize(
    ("variables", "problem", "remedy"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "rejects these credentials", "AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "rejects these credentials", "LWFED_S3_SECRET_DIR"),
        ({"AWS_ACCESS_KEY_ID": ""}, "no credentials", "AWS_ACCESS_KEY_ID"),
        ({"AWS_ENDPOINT_URL_S3": "nonsense"}, "not configured correctly", "http://HOST:PORT"),
        ({"LWFED_S3_PATIENCE_S": "long"}, "not a number of seconds", "120"),
        ({"LWFED_S3_SECRET_DIR": "/nowhere"}, "no files accesskey", "mount"),
    ],
)
def test_what_keeps_us_out_is_named(
    uri: str, s3: Server, variables: dict[str, str], problem: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = s3.kind != "minio"  # an answer to HEAD that says forbidden, and not why
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if variables.get("AWS_ACCESS_KEY_ID") == "":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    began = time.monotonic()
    for work in ("has", "read_ref", "size"):
        with pytest.raises((UnreachableError, SpecError), match=f"{problem}{'|does not allow' * bare}") as caught:
            getattr(open_store(uri), work)("x")
        assert remedy in caught.value.remedy or (bare and "check them" in caught.value.remedy)
    assert time.monotonic() - began < 5, "what waiting cannot fix is not waited for"


def test_a_bucket_that_is_missing_is_named(s3: Server) -> None:
    store = open_store("s3://missing-bucket/x")
    for work in (lambda: store.read_ref("r"), lambda: store.put("x", [b"1"]), lambda: list(store.list(""))):
        with pytest.raises(UnreachableError, match="no bucket missing-bucket") as caught:
            work()
        assert "lwfed store init s3://missing-bucket/x" in caught.value.remedy


def test_patience_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LWFED_S3_PATIENCE_S", raising=False)
    assert S3Store("s3://bucket").connection.patience_s == environment.s3_patience_s() == 120
    monkeypatch.setenv("LWFED_S3_PATIENCE_S", "7.5")
    assert S3Store("s3://bucket").connection.patience_s == 7.5


@pytest.mark.parametrize("names", [("accesskey", "secretkey"), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")])
def test_a_mounted_secret_leads_to_the_server_and_may_change(
    names: tuple[str, str], server: Server | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if server is None:
        pytest.skip(HOW_TO_GET)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LWFED_S3_SECRET_DIR", str(tmp_path))
    (tmp_path / names[0]).write_text(USER)
    (tmp_path / names[1]).write_text(f"{PASSWORD}\n")
    (tmp_path / "endpoint").write_text(server.endpoint)
    store = S3Store(f"s3://{BUCKET}/secret-{names[0]}")
    store.write_ref("r", 1)
    (tmp_path / names[1]).write_text("wrong")
    fresh = S3Store(store.uri)
    with pytest.raises(UnreachableError, match="rejects these credentials"):
        fresh.read_ref("r")
    (tmp_path / names[1]).write_text(PASSWORD)
    assert fresh.read_ref("r") == 1, "it is read again where the server refuses it"


@pytest.mark.slow
def test_a_server_with_a_certificate_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "certs"
    folder.mkdir()
    try:
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=lwfed-tests",
                "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "private.key"),
                "-out", str(folder / "public.crt"),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    with serving(tmp_path / "tls", certificates=folder) as server:
        if server is None or server.kind != "minio":
            pytest.skip(HOW_TO_GET)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        with pytest.raises(UnreachableError, match="cannot be trusted") as caught:
            S3Store("s3://bucket/x", patience_s=20).read_ref("r")
        assert "AWS_CA_BUNDLE" in caught.value.remedy and "ca.crt" in caught.value.remedy
        secret = tmp_path / "secret"
        secret.mkdir()
        (secret / "accesskey").write_text(USER)
        (secret / "secretkey").write_text(PASSWORD)
        (secret / "ca.crt").write_bytes((folder / "public.crt").read_bytes())
        monkeypatch.setenv("LWFED_S3_SECRET_DIR", str(secret))
        store = S3Store("s3://bucket/x", part_bytes=PART)
        store.connection.request(lambda client: client.create_bucket(Bucket="bucket"), about="to make a bucket")
        content = secrets.token_bytes(11 * MIB)
        store.put("big", [content])
        assert store.get("big") == content and store.write_ref("r", 1, if_absent=True)
        monkeypatch.delenv("LWFED_S3_SECRET_DIR")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "public.crt"))
        assert S3Store("s3://bucket/x").read_ref("r") == 1
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint.replace("https", "http"))
        with pytest.raises(LwfedError) as plain:
            S3Store("s3://bucket/x", patience_s=1).read_ref("r")
        assert plain.value.remedy


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    with pytest.raises(UnreachableError, match="does not answer"):
        S3Store("s3://bucket/x", patience_s=0).read_ref("r")
