"""Stands in for a cluster's API where only what is listed, deleted or logged matters; a real one is in the testbed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


@dataclass
class Objects:
    """What the cluster has, of each namespace alike.

    Attributes:
        pods: Its pods.
        jobs: Its Jobs.
        made_again: Jobs that a coordinator makes when one is deleted.
        events: Its events.
        logs: What pods wrote, by their names.
        streams: What each next request for a pod's log gets in place of that, until the connection ends.
        asked: The requests so far.
        forbids: Whether it lets nobody look.
    """

    pods: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    made_again: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    forbids: bool = False


@contextmanager
def serving(objects: Objects, config: Path) -> Iterator[Objects]:
    """Serves on a free port of the loopback, and writes a kubeconfig that leads there."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(objects)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        here = {"server": f"http://127.0.0.1:{server.server_port}"}
        values = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": here}],
            "users": [{"name": "here", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        }
        config.write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            yield objects
        finally:
            server.shutdown()


def pod(name: str, labels: dict[str, str], **status: Any) -> dict[str, Any]:
    """A pod of the pipeline."""
    return {
        "metadata": {"name": name, "uid": name, "labels": labels, "creationTimestamp": "2026-08-10T10:00:00Z"},
        "spec": {"containers": [{"name": "main"}]},
        "status": {"phase": "Pending", **status},
    }


def _handler(objects: Objects) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            objects.asked.append(f"GET {unquote(self.path)}")
            parts = urlsplit(self.path)
            *_, last = parts.path.split("/")
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            if objects.forbids and last != "version":
                return self._send(403, {"message": f'{last} is forbidden: User "me" cannot list resource "{last}"'})
            if last == "version":
                return self._send(200, {"gitVersion": "v1.34.0"})
            if last == "log":
                name = parts.path.split("/")[-2]
                if objects.streams.get(name):
                    return self._send(200, objects.streams[name].pop(0))
                if name not in objects.logs:
                    return self._send(404, {"message": f'pods "{name}" not found'})
                return self._send(200, objects.logs[name])
            if last == "events":
                uid = query["fieldSelector"].partition("=")[2]
                return self._send(200, {"items": [e for e in objects.events if e["involvedObject"]["uid"] == uid]})
            if last in ("pods", "jobs"):
                wanted = dict(item.split("=") for item in query["labelSelector"].split(","))
                known = getattr(objects, last)
                return self._send(200, {"items": [item for item in known if _has(item, wanted)]})
            if parts.path.split("/")[-2] == "jobs":
                named = [item for item in objects.jobs if item["metadata"]["name"] == last]
                return self._send(200, named[0]) if named else self._send(404, {"message": f'jobs "{last}" not found'})
            return self._send(404, {"message": "the server could not find the requested resource"})

        def do_DELETE(self) -> None:
            objects.asked.append(f"DELETE {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name = urlsplit(self.path).path.split("/")[-1]
            objects.jobs = [item for item in objects.jobs if item["metadata"]["name"] != name] + objects.made_again
            objects.pods = [item for item in objects.pods if item["metadata"]["name"] != name]
            objects.made_again = []
            self._send(200, {"status": "Success"})

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _send(self, status: int, value: Any) -> None:
            content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def _has(item: dict[str, Any], wanted: dict[str, str]) -> bool:
    labels = item["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in wanted.items())
