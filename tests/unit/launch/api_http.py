"""How the stand-in for an API server speaks: requests are read, and answered from what it keeps."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from lwfed.launch.kubernetes.manifests import CONTAINER
from tests.unit.launch.recordings import answer

if TYPE_CHECKING:
    from tests.unit.launch.api_server import ApiServer

NAMESPACE = "lwfed"
TOKEN = "let-me-in"
END = b"0\r\n\r\n"
LIST_KINDS = {"jobs": "JobList", "pods": "PodList", "events": "EventList"}


@dataclass(frozen=True)
class Request:
    """What was asked."""

    verb: str
    resource: str
    name: str
    query: Mapping[str, str]
    body: Any


@dataclass
class Refusal:
    """How the next requests of a kind are answered."""

    verb: str
    resource: str
    status: int
    body: Any
    times: int
    skip: int


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    api: ApiServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps silent."""

    def setup(self) -> None:
        super().setup()
        with self.api.changed:
            self.api.connections.add(self.connection)
            if self.api.stopping:
                self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        with self.api.changed:
            self.api.connections.discard(self.connection)

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        parts = url.path.strip("/").split("/")
        place = parts.index("namespaces") + 2 if "namespaces" in parts else 0
        resource, name, *rest = [*parts[place:], "", ""][:3] if place else ["version", "", ""]
        resource = f"{resource}/log" if rest == ["log"] else resource
        verb = {"POST": "create", "DELETE": "delete"}.get(self.command, "get" if name or not place else "list")
        with self.api.changed:
            self.api.requests.append(Request(verb, resource, name, query, body))
            refusal = self.api.refusal(verb, resource)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(*answer("no valid token"))
        elif refusal is not None and not refusal.status:
            self._done(verb, resource, name, query, body)
            self.close_connection = True
        elif refusal is not None:
            self._send(refusal.status, refusal.body)
        elif resource == "version":
            self._send(200, {"major": "1", "minor": "34"})
        elif place and parts[place - 1] != NAMESPACE and verb == "create":
            self._send(*answer("a Job in a namespace that is not there"))
        elif resource == "pods/log":
            self._log(name, query)
        else:
            self._send(*self._done(verb, resource, name, query, body))

    def _done(self, verb: str, resource: str, name: str, query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        """Does what needs no stream."""
        with self.api.changed:
            there = self.api.objects[resource]
            if verb == "create":
                if body["metadata"]["name"] in there:
                    return answer("a Job whose name is taken")
                return 201, self.api.add(resource, body)
            if verb == "list":
                found = self.api.find(resource, query)
                return 200, {
                    "kind": LIST_KINDS[resource],
                    "metadata": {"resourceVersion": str(self.api.version)},
                    "items": found,
                }
            if name not in there:
                return answer("a Job that is not there")
            if verb == "delete":
                wanted = ((body or {}).get("preconditions") or {}).get("uid")
                if wanted is not None and wanted != there[name]["metadata"]["uid"]:
                    return answer("a Job with another uid than the one to delete")
                self.api.remove(resource, name)
                return 200, {"kind": "Status", "status": "Success"}
            return 200, there[name]

    def _log(self, name: str, query: Mapping[str, str]) -> None:
        with self.api.changed:
            pod = self.api.objects["pods"].get(name)
            lines = self.api.logs.get(name)
        if pod is None:
            self._send(404, {"message": f'pods "{name}" not found'})
        elif lines is None:
            message = f'container "{CONTAINER}" in pod "{name}" is waiting to start: ContainerCreating'
            self._send(400, {"message": message})
        elif query.get("follow") == "true":
            self._stream(self._followed(name, query))
        else:
            last = lines[-int(query.get("tailLines", len(lines))) :]
            self._send(200, "".join(f"{text}\n" for _, text in last))

    def _followed(self, name: str, query: Mapping[str, str]) -> Iterator[bytes]:
        """Yields a log's lines until its container has ended."""
        told = 0
        while True:
            with self.api.changed:
                lines = list(self.api.logs[name])
                pod = self.api.objects["pods"].get(name)
            for when, text in lines[told:]:
                told += 1
                if when >= query.get("sinceTime", ""):
                    yield f"{when} {text}\n".encode()
            if pod is None or pod["status"]["phase"] in ("Succeeded", "Failed"):
                return
            yield b""

    def _stream(self, pieces: Iterator[bytes]) -> None:
        """Sends pieces as they come; an empty one waits for news."""
        self._head("application/json", ("Transfer-Encoding", "chunked"))
        with self.api.changed:
            cuts = self.api.cuts
            self.api.streams.append(cuts)
        try:
            for piece in pieces:
                with self.api.changed:
                    if not piece and self.api.cuts == cuts and not self.api.stopping:
                        self.api.changed.wait(0.05)
                    broken = self.api.cuts != cuts or self.api.stopping
                    last = None if self.api.stopping else self.api.last_words
                if broken:
                    self.close_connection = last is None
                    if last is not None:
                        self.wfile.write(_chunk(last) + END)
                    return
                if piece:
                    self.wfile.write(_chunk(piece))
            self.wfile.write(END)
        finally:
            with self.api.changed:
                self.api.streams.remove(cuts)

    def _send(self, status: int, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self._head("application/json", ("Content-Length", str(len(data))), status=status)
        self.wfile.write(data)

    def _head(self, kind: str, length: tuple[str, str], *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header(*length)
        self.end_headers()


def selects(query: Mapping[str, str], value: Mapping[str, Any]) -> bool:
    """Whether a query's selectors select an object."""
    labels = value["metadata"].get("labels") or {}
    wanted = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
    field = query.get("fieldSelector", "").removeprefix("involvedObject.uid=")
    same = all(labels.get(key) == text for key, _, text in wanted)
    return same and (not field or value.get("involvedObject", {}).get("uid") == field)


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n" if data else b""
