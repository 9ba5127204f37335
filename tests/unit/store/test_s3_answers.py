"""Answers that are not S3's, redirects and clocks that differ: each is named at once, with what to set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from lwfed.store.s3.answers import clock_skew_s, is_skewed, skew_text
from lwfed.store.s3.store import S3Store
from lwfed.types.errors import UnreachableError

HTML, XML, JSON, TEXT = (
    {"Content-Type": kind} for kind in ("text/html", "application/xml", "application/json", "text/plain")
)
MARK = {"x-amz-request-id": "1"}
CONSOLE = "S3 API Requests must be made to API port."
EUROPE = {"x-amz-bucket-region": "eu-west-3"}
API, REGION = "port of the server's S3 API", "AWS_REGION"
WORK: tuple[Callable[[S3Store], Any], ...] = (
    lambda store: store.read_ref("r.json"),
    lambda store: store.has("a.json"),
    lambda store: store.get("b"),
    lambda store: list(store.list("")),
    lambda store: store.write_ref("r.json", 1, if_absent=True),
    lambda store: store.put("b", [bytes(1 << 10)]),
    lambda store: store.put("b", [bytes(9 << 20)]),
)


def xml(code: str, **more: str) -> bytes:
    """S3's error."""
    fields = "".join(f"<{name}>{value}</{name}>" for name, value in more.items())
    return f"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>{code}</Code>{fields}</Error>".encode()


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes, *, date: str | None = None) -> Iterator[str]:
    """Serves one answer to all requests; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date or super().date_time_string(timestamp)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[UnreachableError]]:
    """Does all work against an answer; each must be refused without waiting."""

    def run(*answer: Any, date: str | None = None) -> list[UnreachableError]:
        for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y")):
            monkeypatch.setenv(name, value)
        errors = []
        with answering(*answer, date=date) as address:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
            store = S3Store("s3://bucket/x", patience_s=300)  # none of it is waited for
            for work in WORK:
                with pytest.raises(UnreachableError) as caught:
                    work(store)
                assert caught.value.exit_code == 17 and "backup" not in str(caught.value)
                errors.append(caught.value)
        return errors

    return run


class Banner(BaseRequestHandler):
    """Greets, as SSH servers do, and takes a whole request."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
        self.request.settimeout(0.2)
        with suppress(TimeoutError):
            while self.request.recv(1 << 16):
                pass


def test_a_server_that_speaks_no_http_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y")):
        monkeypatch.setenv(name, value)
    with ThreadingTCPServer(("127.0.0.1", 0), Banner) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
        for work in WORK:
            with pytest.raises(UnreachableError, match=r"SSH-2\.0") as caught:
                work(S3Store("s3://bucket/x", patience_s=300))  # none of it is waited for
            assert caught.value.exit_code == 17 and API in caught.value.remedy
        server.shutdown()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((200, HTML, b"<!doctype html><html><title>MinIO Console</title></html>"), id="console"),
        pytest.param((404, HTML, b"<html><title>Not found</title></html>"), id="page-404"),
        pytest.param((200, JSON, b"{}"), id="json"),
        pytest.param((404, JSON, b'{"error_code": "ENDPOINT_NOT_FOUND"}'), id="json-404"),
        pytest.param((404, TEXT, b"404 page not found"), id="text-404"),
        pytest.param((404, {}, b""), id="empty-404"),
        pytest.param((200, {}, b""), id="empty"),
        pytest.param((501, HTML, b"<html>Unsupported method</html>"), id="page-501"),
        pytest.param((200, XML, b"<?xml version='1.0'?><rss/>"), id="other-xml"),
        pytest.param((400, XML, xml("InvalidArgument", Message=CONSOLE)), id="port"),
    ],
)  # fmt: skip
def test_a_server_of_another_kind_is_named(answer: Any, refused: Callable[..., list[UnreachableError]]) -> None:
    for error in refused(*answer):
        assert "is not the S3 server" in error.problem and API in error.remedy


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        pytest.param((301, {}, b""), REGION, id="bare"),
        pytest.param((302, HTML | {"Location": "/login"}, b"<a>Found</a>"), "/login", id="login"),
        pytest.param((307, {"Location": "https://127.0.0.1:9443/b"}, b""), "https://127.0.0.1:9443", id="tls"),
        pytest.param((308, {"Location": "https://127.0.0.1/b"}, b""), "https://127.0.0.1", id="tls-308"),
        pytest.param((301, XML | EUROPE, xml("PermanentRedirect")), "=eu-west-3", id="region"),
        pytest.param((301, XML | MARK, xml("PermanentRedirect", Endpoint="b.s3.test")), REGION, id="endpoint"),
        pytest.param((307, XML | {"Location": "http://b.s3.test"}, xml("TemporaryRedirect")), "b.s3.test", id="moved"),
        pytest.param((400, XML, xml("AuthorizationHeaderMalformed", Region="eu-west-3")), "=eu-west-3", id="malformed"),
        pytest.param((400, TEXT, b"Client sent an HTTP request to an HTTPS server."), "https://127.0.0.1", id="plain"),
    ],
)  # fmt: skip
def test_another_region_or_address_is_named(
    answer: Any, remedy: str, refused: Callable[..., list[UnreachableError]]
) -> None:
    assert [error.remedy for error in refused(*answer) if remedy not in error.remedy] == []


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "AccessDenied"])
def test_clocks_that_differ_are_no_matter_of_policies(
    ahead: bool, code: str, refused: Callable[..., list[UnreachableError]]
) -> None:
    off = timedelta(hours=-2 if ahead else 2, seconds=-30)
    date = format_datetime(datetime.now(UTC) + off, usegmt=True)
    side, length = ("ahead of", "2 h 0 min") if ahead else ("behind", "1 h 59 min")
    for error in refused(403, XML | MARK, xml(code), date=date):
        assert f"clock is {length} {side} the server's" in error.problem
        assert "NTP" in error.remedy and "store policy" not in error.remedy


def test_a_refusal_at_the_right_time_is_a_matter_of_policies(
    refused: Callable[..., list[UnreachableError]],
) -> None:
    for error in refused(403, XML | MARK, xml("AccessDenied")):
        assert "clock" not in error.problem and "check" in error.remedy


@pytest.mark.parametrize(
    ("fields", "headers", "expected"),
    [
        ({}, {"date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 3600.0),
        ({"ServerTime": "2026-01-01T02:00:00Z"}, {}, -3600.0),
        ({"ServerTime": "soon"}, {"date": "never"}, None),
        ({}, {}, None),
    ],
)
def test_the_difference_of_clocks(fields: dict[str, str], headers: dict[str, str], expected: float | None) -> None:
    assert clock_skew_s(fields, headers, now=datetime(2026, 1, 1, 1, tzinfo=UTC)) == expected


@pytest.mark.parametrize(
    ("code", "status", "skew_s", "expected"),
    [
        ("RequestTimeTooSkewed", 403, None, True), ("403", 403, 1000.0, True), ("403", 403, -1000.0, True),
        ("403", 403, 800.0, False), ("NoSuchKey", 404, 5000.0, False), ("403", 403, None, False),
    ],
)  # fmt: skip
def test_which_refusals_are_the_clocks(code: str, status: int, skew_s: float | None, expected: bool) -> None:
    assert is_skewed(code, status, skew_s) is expected


def test_a_difference_in_words() -> None:
    assert skew_text(5430.0) == "this machine's clock is 1 h 30 min ahead of the server's"
    assert "behind" in skew_text(-20.0) and "20 s" in skew_text(-20.0)
    assert "differ" in skew_text(None)


def test_a_proxy_whose_server_is_down_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(503, HTML, b"<html>no upstream</html>") as address:
        for name, value in (
            ("AWS_ENDPOINT_URL_S3", address), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y"),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        with pytest.raises(UnreachableError, match="does not answer") as caught:
            S3Store("s3://bucket/x", patience_s=0.2).read_ref("r")
        assert "start it" in caught.value.remedy
