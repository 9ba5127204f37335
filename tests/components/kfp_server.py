"""Stands in for the API server of Kubeflow Pipelines 2.17, which cannot be built where these tests run.

It speaks real HTTP to kfp's own client and answers as a live 2.17.0 was seen to: the messages, the status codes, the
nodes of a run (a wrapper and its tries around each, `executor`, `*-driver`), `error` null on FAILED, a terminated run
that goes CANCELING -> FAILED with `finished_at` in 1970, logs as base64, a bearer token that is checked, a namespace
that a multi-user installation insists on. It runs nothing: a run moves one frame of its script on each time it is read.
What the real server does with the compiled pipeline is not tested here.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

START, END, NEVER = "2026-08-10T10:00:00Z", "2026-08-10T10:01:30Z", "1970-01-01T00:00:00Z"
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED")
TASKS = ("prepare", "train-stage-1", "train-stage-2", "evaluate", "report", "importer")
"""Tasks of the tiny experiment's pipeline, in their order."""


@dataclass(frozen=True)
class Frame:
    """What a look at a run shows: its state, and those of its tasks that have begun."""

    state: str
    tasks: Mapping[str, str] = field(default_factory=dict)


def succeeding(*, cached: Sequence[str] = ()) -> list[Frame]:
    """A run whose tasks succeed; those in `cached` come from the cache."""
    done = {name: "CACHED" if name in cached else "SUCCEEDED" for name in (*TASKS, "cleanup")}
    return [Frame("RUNNING", {"prepare": "RUNNING"}), Frame("SUCCEEDED", done)]


def failing(task: str = "train-stage-2") -> list[Frame]:
    """A run in which a task fails."""
    before = dict.fromkeys(TASKS[: TASKS.index(task)], "SUCCEEDED")
    begun = Frame("RUNNING", {**before, task: "RUNNING"})
    return [begun, Frame("FAILED", {**before, task: "FAILED", "cleanup": "SUCCEEDED"})]


def stuck() -> list[Frame]:
    """A run whose first pod never starts: it stays RUNNING for ever."""
    return [Frame("RUNNING", {"prepare": "PENDING"})]


@dataclass
class Run:
    """A run, as the server keeps it."""

    body: dict[str, Any]
    frames: list[Frame]
    history: list[str] = field(default_factory=lambda: ["PENDING"])
    at: int = -1

    def look(self) -> Frame:
        """Goes one frame on."""
        self.at = min(self.at + 1, len(self.frames) - 1)
        frame = self.frames[self.at]
        if self.history[-1] != frame.state:
            self.history.append(frame.state)
        return frame


@dataclass
class State:
    """All that the server knows; tests look at it and change it.

    Attributes:
        token: The bearer token it wants; empty: any.
        multi_user: Whether a namespace is needed.
        namespaces: Those of its users.
        is_kfp: Answers as KFP; otherwise as some web page.
        script: The frames of runs to come.
        logs: What tasks write, by their name; `-driver` for a driver's.
        pods_gone: Whether live logs are no more.
        is_ui: Answers as the server of the web pages does, which passes on no other API than v2beta1.
        known: A compiled pipeline and its settings, for `add_run`.
    """

    token: str = ""
    multi_user: bool = False
    namespaces: tuple[str, ...] = ("alice",)
    is_kfp: bool = True
    script: list[Frame] = field(default_factory=succeeding)
    after_retry: list[Frame] = field(default_factory=succeeding)
    retry_message: str = ""
    logs: dict[str, str] = field(default_factory=dict)
    pods_gone: bool = False
    is_ui: bool = False
    experiments: list[dict[str, Any]] = field(default_factory=list)
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""
    known: tuple[Any, Any] | None = None
    before_terminate: Callable[[Run], Any] | None = None

    def add_run(self, frames: Sequence[Frame], *, name: str = "tiny") -> str:
        """Makes a run of the pipeline `known`, as if it had been submitted; gives its id."""
        assert self.known is not None
        if not self.versions:
            self.pipelines.append({"pipeline_id": "known", "display_name": "lwfed-experiment"})
            _version(self, "known", "known", self.known)
        reference = {"pipeline_id": "known", "pipeline_version_id": self.versions[-1]["pipeline_version_id"]}
        run_id = str(uuid.uuid4())
        body = {"run_id": run_id, "display_name": name, "created_at": START, "pipeline_version_reference": reference}
        self.runs[run_id] = Run(body, list(frames))
        return run_id

    def only_run(self) -> tuple[str, Run]:
        """The one run there is."""
        ((run_id, run),) = self.runs.items()
        return run_id, run

    def spec_text(self) -> str:
        """The spec in the pipeline that was uploaded last."""
        parameters = self.versions[-1]["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        return str(parameters["spec"]["defaultValue"])


class RefusedError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@contextmanager
def serving(state: State) -> Iterator[State]:
    """Serves on a free port of the loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        state.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield state
        finally:
            server.shutdown()


def _handler(state: State) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _answer(self, method: str) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.asked.append(f"{method} {unquote(self.path)}")
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            if not state.is_kfp:
                return self._send(200, b"<html><body>Welcome</body></html>", "text/html")
            try:
                if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
                    raise RefusedError(401, "Request header error: there is no user identity header.")
                found = _route(state, method, unquote(parts.path), query, body, self.headers.get("Content-Type", ""))
            except RefusedError as refused:
                told = {"error": refused.message, "message": refused.message, "code": 3, "details": []}
                return self._send(refused.status, json.dumps(told).encode())
            if isinstance(found, str):
                return self._send(200, found.encode(), "text/plain")
            return self._send(200, json.dumps(found).encode())

        def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def _route(state: State, method: str, path: str, query: Mapping[str, str], body: bytes, kind: str) -> Any:
    v2, ask = "/apis/v2beta1", (method, path)
    if ask == ("GET", f"{v2}/healthz"):
        return {"multi_user": state.multi_user, "pipeline_store": "database"}
    if path == f"{v2}/experiments":
        return _experiments(state, method, query, body)
    if ask == ("GET", f"{v2}/pipelines"):
        return {"pipelines": _filtered(state.pipelines, query)}
    if ask == ("POST", f"{v2}/pipelines/upload"):
        return _upload(state, query, body, kind)
    if ask == ("POST", f"{v2}/pipelines/upload_version"):
        return _version(state, query["pipelineid"], query["name"], _uploaded(body, kind))
    if found := re.fullmatch(rf"{v2}/pipelines/([^/]+)/versions", path):
        return {"pipeline_versions": _filtered([v for v in state.versions if v["pipeline_id"] == found[1]], query)}
    if found := re.fullmatch(rf"{v2}/pipelines/[^/]+/versions/([^/]+)", path):
        return next(v for v in state.versions if v["pipeline_version_id"] == found[1])
    if path == f"{v2}/runs":
        return _runs(state, method, query, body)
    if ask == ("POST", f"{v2}/recurringruns"):
        return _schedule(state, json.loads(body))
    if found := re.fullmatch(rf"{v2}/runs/([^/:]+)(:retry|:terminate)?", path):
        return _run(state, found[1], found[2])
    if found := re.fullmatch(rf"{v2}/runs/([^/]+)/nodes/([^/]+)/artifacts/main-logs:read", path):
        if not state.pods_gone and not _is_over(state.runs[found[1]]):
            raise RefusedError(404, "artifact not found: the pod has not ended")
        return {"data": base64.b64encode(_log(state, found[1], found[2]).encode()).decode()}
    if state.is_ui and path == "/k8s/pod/logs":
        return _pod_log(state, query["runid"], query["podname"])
    if not state.is_ui and (found := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path)):
        return _pod_log(state, found[1], found[2])
    raise RefusedError(404, "Not Found")


def _is_over(run: Run) -> bool:
    return run.frames[max(run.at, 0)].state in ENDED


def _pod_log(state: State, run_id: str, node: str) -> str:
    if state.pods_gone:
        raise RefusedError(500, f'Failed to read logs: pods "{node}" not found')
    return _log(state, run_id, node)


def _experiments(state: State, method: str, query: Mapping[str, str], body: bytes) -> Any:
    if method == "GET":
        namespace = _namespace(state, query.get("namespace"))
        found = [item for item in state.experiments if item.get("namespace") == namespace]
        return {"experiments": _filtered(found, query)}
    made = json.loads(body)
    _namespace(state, made.get("namespace"))
    made |= {"experiment_id": str(uuid.uuid4()), "storage_state": "AVAILABLE", "created_at": START}
    state.experiments.append(made)
    return made


def _upload(state: State, query: Mapping[str, str], body: bytes, kind: str) -> Any:
    if any(item["display_name"] == query["name"] for item in state.pipelines):
        raise RefusedError(409, f"Failed to create a pipeline: The name {query['name']} already exist")
    if state.multi_user:
        _namespace(state, query.get("namespace"))
    made = {"pipeline_id": str(uuid.uuid4()), "display_name": query["name"], "created_at": START}
    state.pipelines.append(made)
    _version(state, made["pipeline_id"], query["name"], _uploaded(body, kind))
    return made


def _version(state: State, pipeline_id: str, name: str, documents: tuple[Any, Any]) -> Any:
    if any(item["display_name"] == name and item["pipeline_id"] == pipeline_id for item in state.versions):
        raise RefusedError(409, f"Failed to create a pipeline version: The name {name} already exist")
    pipeline, platform = documents
    made = {
        "pipeline_id": pipeline_id,
        "pipeline_version_id": str(uuid.uuid4()),
        "display_name": name,
        "pipeline_spec": {"pipeline_spec": pipeline, "platform_spec": platform},
        "created_at": START,
    }
    state.versions.append(made)
    return made


def _runs(state: State, method: str, query: Mapping[str, str], body: bytes) -> Any:
    if method == "GET":
        _namespace(state, query.get("namespace"))
        return {"runs": [_shown(run, run.frames[max(run.at, 0)]) for run in reversed(state.runs.values())]}
    made = json.loads(body)
    _check_parameters(state, made)
    run_id = str(uuid.uuid4())
    made |= {"run_id": run_id, "created_at": START}
    state.runs[run_id] = Run(made, list(state.script))
    return {**made, "state": "PENDING"}


def _check_parameters(state: State, made: Mapping[str, Any]) -> None:
    wanted = made["pipeline_version_reference"]["pipeline_version_id"]
    version = next((item for item in state.versions if item["pipeline_version_id"] == wanted), None)
    if version is None:
        raise RefusedError(404, f"PipelineVersion {wanted} not found.")
    known = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    given = (made.get("runtime_config") or {}).get("parameters") or {}
    if unknown := sorted(set(given) - set(known)):
        raise RefusedError(400, f"parameter(s) provided are not required by pipeline: {', '.join(unknown)}")


def _schedule(state: State, made: dict[str, Any]) -> Any:
    _check_parameters(state, made)
    cron = made["trigger"]["cron_schedule"]["cron"]
    if len(cron.split()) != 6:
        raise RefusedError(400, f"Schedule cron is not a valid format: {cron}")
    made["recurring_run_id"] = str(uuid.uuid4())
    state.schedules.append(made)
    return {**made, "status": "ENABLED"}


def _run(state: State, run_id: str, verb: str | None) -> Any:
    run = state.runs.get(run_id)
    if run is None:
        raise RefusedError(404, f"Run {run_id} not found")
    now = run.frames[max(run.at, 0)]
    if verb == ":retry":
        if state.retry_message:
            raise RefusedError(409, state.retry_message)
        if now.state != "FAILED":
            raise RefusedError(409, "Workflow must be Failed/Error to retry")
        run.frames, run.at = [Frame("FAILED", now.tasks), *state.after_retry], -1  # the old state, for a moment
        return {}
    if verb == ":terminate":
        if state.before_terminate:
            now = state.before_terminate(run)
        if now.state in ENDED:
            raise RefusedError(400, "Failed to terminate a run: Row not found")
        run.frames, run.at = [Frame("CANCELING", now.tasks), Frame("FAILED", now.tasks)], -1
        return {}
    return _shown(run, run.look())


def _shown(run: Run, frame: Frame) -> dict[str, Any]:
    workflow = workflow_of(run.body["run_id"])
    return {
        **run.body,
        "state": frame.state,
        "error": None,
        "finished_at": END if frame.state in ENDED else NEVER,
        "state_history": [{"state": state, "update_time": START} for state in run.history],
        "run_details": {"task_details": list(nodes(workflow, frame))},
    }


def workflow_of(run_id: str) -> str:
    """The name of a run's workflow."""
    return f"lwfed-experiment-{run_id[:5]}"


def nodes(workflow: str, frame: Frame) -> Iterator[dict[str, Any]]:
    """Gives Argo's nodes as the API tells them: each in a wrapper for its tries, children by their node's id."""
    names = [name for name in frame.tasks if name != "cleanup"]
    after = {name: names[at + 1] if at + 1 < len(names) else None for at, name in enumerate(names)}
    first = [f"{workflow}-{_hash(names[0], 'driver')}"] if names else []
    yield _node(workflow, workflow, frame.state, first)
    for task, state in frame.tasks.items():
        following = after.get(task)
        next_driver = [f"{workflow}-{_hash(following, 'driver')}"] if following else []
        told = {"CACHED": "SUCCEEDED"}.get(state, state)
        driver = "PENDING" if state == "PENDING" else "SUCCEEDED"
        chain: list[tuple[str, str, str, str]] = [(f"{task}-driver", "driver", "system-container-driver", driver)]
        if state != "PENDING":
            chain += [
                (task, "dag", "system-container-executor", told),
                ("executor", "pod", "system-container-impl", "SKIPPED" if state == "CACHED" else told),
            ]
        if task == "importer":
            chain = chain[:1] + chain[1:2]
        ids = [f"{workflow}-{_hash(task, part)}" for _, part, _, _ in chain]
        for at, (name, part, template, now) in enumerate(chain):
            below = [ids[at + 1]] if at + 1 < len(ids) else next_driver
            one = f"{workflow}-{_hash(task, part + '0')}"
            yield _node(name, f"{workflow}-{template}-{_hash(task, part)}", now, [one])
            yield _node(f"{name}(0)", f"{workflow}-{template}-{_hash(task, part + '0')}", now, below)


def pod_of(run_id: str, task: str, *, part: str = "pod") -> str:
    """The name of a task's pod."""
    template = {"pod": "system-container-impl", "driver": "system-container-driver"}[part]
    return f"{workflow_of(run_id)}-{template}-{_hash(task, part + '0')}"


def _node(name: str, pod: str, state: str, children: Sequence[str]) -> dict[str, Any]:
    return {
        "task_id": pod,
        "pod_name": pod,
        "display_name": name,
        "state": state,
        "create_time": START,
        "start_time": START,
        "end_time": END if state in ENDED else NEVER,
        "error": None,
        "child_tasks": [{"pod_name": child} for child in children],
    }


def _hash(task: str, part: str) -> str:
    return str(int.from_bytes(f"{task}/{part}".encode(), "big") % 10**9)


def _log(state: State, run_id: str, node: str) -> str:
    if run_id not in state.runs:
        raise RefusedError(404, f"Run {run_id} not found")
    number = node.rpartition("-")[2]
    for task in (*TASKS, "cleanup"):
        for part, name in (("pod0", task), ("driver0", f"{task}-driver")):
            if _hash(task, part) == number and name in state.logs:
                return state.logs[name]
    raise RefusedError(404, f"artifact not found for node {node}")


def _filtered(items: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> list[Mapping[str, Any]]:
    wanted = json.loads(query.get("filter") or '{"predicates": []}')["predicates"]
    for predicate in wanted:
        assert predicate["operation"] == "EQUALS" and predicate["key"] == "display_name"
    names = {predicate["stringValue"] for predicate in wanted}
    return [item for item in items if not names or item["display_name"] in names]


def _namespace(state: State, namespace: str | None) -> str | None:
    if not state.multi_user:
        return None
    if not namespace:
        raise RefusedError(400, "Invalid input error: In multi-user mode, a namespace must be specified")
    if namespace not in state.namespaces:
        raise RefusedError(403, f"User 'alice' is not authorized with reason: no access to namespace {namespace}")
    return namespace


def _uploaded(body: bytes, kind: str) -> tuple[Any, Any]:
    message = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    (part,) = [part for part in message.walk() if part.get_filename()]
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    pipeline, platform = yaml.safe_load_all(content)
    return pipeline, platform
