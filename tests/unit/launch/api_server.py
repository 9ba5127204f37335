"""Stands in for a cluster's API server, over real HTTP, for the few calls that the launcher makes.

It keeps Jobs, pods and events, and answers as kube-apiserver does: 409 for a name that is taken, lists by label and
field, removal with a uid as precondition, logs that are followed, and 401 without the token. There is no controller, no
scheduler and no kubelet: what a Job's pods do is up to the test. `tests/cluster` has the same laws before a real
cluster.
"""

from __future__ import annotations

import copy
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lwfed.launch.kubernetes.manifests import CONTAINER
from lwfed.launch.kubernetes.names import INDEX_LABEL, JOB_LABEL
from tests.unit.launch.api_http import NAMESPACE, TOKEN, Handler, Refusal, Request, selects

T = TypeVar("T")


def until(look: Callable[[], T | None], *, what: str, within_s: float = 10) -> T:
    """Waits until something is there."""
    ends_at = time.monotonic() + within_s
    while time.monotonic() < ends_at:
        found = look()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {within_s:g} s")


class ApiServer:
    """The server; it answers from `start` to `stop`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.changed = threading.Condition(threading.RLock())
        self.stopping = False
        self.cuts = 0
        self.last_words: bytes | None = None
        self.version = 100
        self.history: list[tuple[int, str, str, dict[str, Any]]] = []
        self.objects: dict[str, dict[str, dict[str, Any]]] = {"jobs": {}, "pods": {}, "events": {}}
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.connections: set[socket.socket] = set()
        self.streams: list[int] = []
        self._refusals: list[Refusal] = []
        self._seconds = 0
        self._port = 0
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    # the server itself

    def start(self) -> None:
        """Answers from now on, under one address for life."""
        self.stopping = False
        handler = type("BoundHandler", (Handler,), {"api": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        """Breaks all connections and takes no more."""
        assert self._http is not None and self._thread is not None
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        until(lambda: not self.connections, what="connections end")

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def kubeconfig(self, path: Path, *, token: str = TOKEN) -> Path:
        """Writes a file that leads here."""
        values = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "now", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
            "current-context": "now",
        }
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    # what tests do to it

    def refuse(self, verb: str, resource: str, status: int, body: Any = None, *, times: int = 1, skip: int = 0) -> None:
        """Answers the next requests of a kind with a status and a body, but for the first few."""
        with self.changed:
            self._refusals.append(Refusal(verb, resource, status, body, times, skip))

    def lose_answer(self, verb: str, resource: str) -> None:
        """Does what is asked next, and breaks the connection in place of an answer."""
        self.refuse(verb, resource, 0)

    def cut(self, *, last: bytes | None = None) -> None:
        """Breaks all logs; with `last`, they end in good order after these bytes."""
        with self.changed:
            self.cuts, self.last_words = self.cuts + 1, last
            self.changed.notify_all()
        until(lambda: all(number == self.cuts for number in self.streams), what="streams end")

    def streaming(self, count: int = 1) -> None:
        """Waits for logs that are followed and not cut."""
        until(lambda: self.streams.count(self.cuts) >= count, what="a stream")

    def asked(self, verb: str, resource: str) -> list[Request]:
        """Returns the requests of a kind so far."""
        with self.changed:
            return [request for request in self.requests if (request.verb, request.resource) == (verb, resource)]

    def job(self, number: int = 0) -> dict[str, Any]:
        """Waits for the Job that was made after `number` others; returns it, removed or not."""

        def look() -> dict[str, Any] | None:
            with self.changed:
                made = [value for _, resource, kind, value in self.history if (resource, kind) == ("jobs", "ADDED")]
                return made[number] if len(made) > number else None

        return until(look, what=f"Job {number}")

    def jobs(self) -> list[str]:
        """Returns the names of the Jobs there are."""
        with self.changed:
            return sorted(self.objects["jobs"])

    def mend_job(self, name: str, **status: Any) -> None:
        """Writes a Job's status, and `suspend` into its spec."""

        def change(value: dict[str, Any]) -> None:
            if "suspend" in status:
                value["spec"]["suspend"] = status.pop("suspend")
            value["status"] = {**(value.get("status") or {}), **status}

        self.change("jobs", name, change)

    def add_pod(self, job: Mapping[str, Any], index: int) -> str:
        """Makes a Job's pod, as its controller would; returns its name."""
        name = f"{job['metadata']['name']}-{index}-{uuid.uuid4().hex[:5]}"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "controller": True, **_identity(job)}
        labels = {
            **job["spec"]["template"]["metadata"]["labels"],
            INDEX_LABEL: str(index),
            JOB_LABEL: job["metadata"]["name"],
        }
        pod = {
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
            "spec": {},
            "status": {"phase": "Pending"},
        }
        self.add("pods", pod)
        return name

    def run_pod(self, name: str, *, node: str = "node-1") -> None:
        """Has a pod's container run."""

        def change(value: dict[str, Any]) -> None:
            value["spec"]["nodeName"] = node
            value["status"] = {"phase": "Running", "containerStatuses": [_container({"running": {}})]}

        with self.changed:
            self.change("pods", name, change)
            self.logs.setdefault(name, [])

    def end_pod(
        self, name: str, exit_code: int = 0, *, reason: str = "Error", message: str = "", **status: Any
    ) -> None:
        """Has a pod's container end."""
        state = {"terminated": {"exitCode": exit_code, "reason": reason if exit_code else "Completed"}}
        if message:
            state["terminated"]["message"] = message

        def change(value: dict[str, Any]) -> None:
            phase = "Failed" if exit_code else "Succeeded"
            value["status"] = {"phase": phase, "containerStatuses": [_container(state)], **status}

        self.change("pods", name, change)

    def say(self, name: str, *lines: str, same_moment: bool = False) -> None:
        """Adds lines to a pod's log."""
        with self.changed:
            for line in lines:
                self._seconds += 0 if same_moment else 1
                self.logs[name].append((f"2026-01-01T00:{self._seconds // 60:02d}:{self._seconds % 60:02d}Z", line))
            self.changed.notify_all()

    def warn(self, value: Mapping[str, Any], reason: str, message: str) -> None:
        """Makes an event of an object."""
        self._seconds += 1
        self.add(
            "events",
            {
                "metadata": {"name": f"event-{uuid.uuid4().hex[:8]}"},
                "involvedObject": _identity(value),
                "reason": reason,
                "message": message,
                "lastTimestamp": f"2026-01-01T01:{self._seconds // 60:02d}:{self._seconds % 60:02d}Z",
            },
        )

    # what it keeps

    def add(self, resource: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Makes an object."""
        with self.changed:
            made = copy.deepcopy(dict(value))
            made["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": NAMESPACE}
            self.objects[resource][made["metadata"]["name"]] = made
            self._note(resource, "ADDED", made)
            return made

    def change(self, resource: str, name: str, deed: Callable[[dict[str, Any]], None]) -> None:
        """Changes an object."""
        with self.changed:
            value = copy.deepcopy(self.objects[resource][name])
            deed(value)
            self.objects[resource][name] = value
            self._note(resource, "MODIFIED", value)

    def remove(self, resource: str, name: str) -> None:
        """Removes an object, and a Job's pods with it."""
        with self.changed:
            value = copy.deepcopy(self.objects[resource].pop(name))
            self._note(resource, "DELETED", value)
            uid = value["metadata"]["uid"]
            for pod in [pod for pod in self.objects["pods"].values() if _owned(pod, uid)]:
                self.remove("pods", pod["metadata"]["name"])

    def find(self, resource: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Returns what a query selects."""
        return [value for value in self.objects[resource].values() if selects(query, value)]

    def refusal(self, verb: str, resource: str) -> Refusal | None:
        """Takes a refusal that was ordered."""
        for found in self._refusals:
            if (found.verb, found.resource) == (verb, resource) and found.times > 0:
                if found.skip:
                    found.skip -= 1
                    return None
                found.times -= 1
                return found
        return None

    def _note(self, resource: str, kind: str, value: dict[str, Any]) -> None:
        self.version += 1
        value["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, resource, kind, value))
        self.changed.notify_all()


@contextmanager
def serving() -> Iterator[ApiServer]:
    """Returns a server for a while."""
    server = ApiServer()
    server.start()
    try:
        yield server
    finally:
        if not server.stopping:
            server.stop()


def _identity(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value["metadata"][key] for key in ("name", "uid")}


def _owned(pod: Mapping[str, Any], uid: str) -> bool:
    return any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())


def _container(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": CONTAINER, "state": dict(state)}
