"""Stands in for the API server of Kubeflow Pipelines: replays what a real 2.17.0 answered, and refuses the rest.

Recorded answers (`recorded`) come first, then those made from the API's definitions (`definitions`): a test that gets
one has to carry the marker `unseen`. Anything else ends in 501 and fails the test. Nothing is run: what the real server
does with a compiled pipeline is not tested here.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.components import definitions, made
from tests.components.recorded import Answer, NotRecordedError, Played, Script, artifact, as_json, call, recording

V1, V2 = "/apis/v1beta1", "/apis/v2beta1"
PAGES = {"/": "web-page", "/k8s/pod/logs": "web-page-of-pod-logs"}
"""Paths of the web pages' server, and what the API server answers to them."""
NO_LOG = "log-live-Running--704647682"
"""The call for a log that was not there; those of pods that wait, and of unknown ones, were answered alike."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    kind: str
    token: str

    @property
    def words(self) -> tuple[str, str]:
        """Its method and its path."""
        return self.method, self.path

    def matches(self, pattern: str) -> re.Match[str] | None:
        """Finds a pattern in method and path, such as `GET /apis/v2beta1/runs/([^/]+)`."""
        return re.fullmatch(pattern, f"{self.method} {self.path}")


@dataclass
class State:
    """All that the server knows; tests look at it and change it.

    Attributes:
        script: What runs that are made play.
        written: What tasks of such runs write.
        experiments: What is there: at first, what the recorded server had, which lwfed's own first run had made.
        pipelines: The same.
        is_kfp: Answers as KFP; otherwise as some web page.
        is_away: Hangs up without an answer.
        before_terminate: Is called with a run that is to be terminated.
        token: The bearer token it wants; empty: any. Not recorded.
        multi_user: Whether a namespace is needed. Not recorded.
        namespaces: Those of its users.
        is_ui: Answers as the server of the web pages does. Not recorded.
        hides_tasks: Has no v1beta1, as a version that nobody knows yet. Not recorded.
        asked: All requests.
        unseen: Those that were answered from definitions.
        refused: Those that nobody knows an answer to.
    """

    script: Script = field(default_factory=lambda: Script("cached"))
    written: dict[str, str] = field(default_factory=dict)
    is_kfp: bool = True
    is_away: bool = False
    before_terminate: Callable[[Played], Any] | None = None
    token: str = ""
    multi_user: bool = False
    namespaces: tuple[str, ...] = ("alice",)
    is_ui: bool = False
    hides_tasks: bool = False
    experiments: list[dict[str, Any]] = field(default_factory=lambda: items("experiments"))
    pipelines: list[dict[str, Any]] = field(default_factory=lambda: items("pipelines"))
    versions: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, Played] = field(default_factory=dict)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    endpoint: str = ""

    def play(
        self,
        name: str,
        *,
        start: int = 0,
        upto: int | None = None,
        hold_s: float = 0.0,
        retried: str | None = None,
        title: str | None = None,
    ) -> str:
        """Puts a recorded run in place, as if it had been there before; `title` is its name. Returns its id."""
        run = Played(Script(name, start, upto, hold_s, retried), made={"display_name": title} if title else {})
        answer = run.now("v2beta1")
        if reference := answer.get("pipeline_version_reference"):
            self._add_version(reference, recording(name)["pipeline"])
        self.runs[run.run_id] = run
        return run.run_id

    def add_schedule(self) -> str:
        """Puts the recorded schedule in place, which is paused. Returns its id."""
        (made,) = json.loads(call("recurringruns").body)["recurringRuns"]
        self._add_pipeline(made["pipeline_version_reference"]["pipeline_id"])
        self.schedules.append(made)
        return str(made["recurring_run_id"])

    def write(self, run_id: str, **texts: str) -> None:
        """Lets tasks have written logs, in place of the recorded ones: by their names, with `_` for `-`."""
        self.runs[run_id].written.update({name.replace("_", "-"): text for name, text in texts.items()})

    def write_all(self, run_id: str) -> None:
        """Lets all tasks of a run have written a line."""
        for component in recording(self.runs[run_id].script.name)["pipeline"]["components"].values():
            for task in component.get("dag", {}).get("tasks", ()):
                self.runs[run_id].written[task] = f"{task} wrote\n"
        self.runs[run_id].written["cleanup"] = "cleanup wrote\n"

    def check(self, *, unseen: bool) -> None:
        """Checks that all was answered, and what was seen on no server only where `unseen` says so.

        Raises:
            AssertionError: It was not.
        """
        assert not self.refused, f"no server was asked for {'; '.join(self.refused)}"
        assert unseen or not self.unseen, f"seen on no server, and not marked `unseen`: {'; '.join(self.unseen)}"

    def only_run(self) -> tuple[str, Played]:
        """Returns the one run there is."""
        ((run_id, run),) = self.runs.items()
        return run_id, run

    def spec_text(self) -> str:
        """Returns the spec in the pipeline that was uploaded last."""
        parameters = self.versions[-1]["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        return str(parameters["spec"]["defaultValue"])

    def _add_version(self, reference: Mapping[str, str], pipeline: Any) -> None:
        self._add_pipeline(reference["pipeline_id"])
        self.versions = [
            item for item in self.versions if item["pipeline_version_id"] != reference["pipeline_version_id"]
        ]
        spec = {"pipeline_spec": pipeline, "platform_spec": {}}
        self.versions.append({**reference, "display_name": reference["pipeline_version_id"], "pipeline_spec": spec})

    def _add_pipeline(self, pipeline_id: str) -> None:
        if pipeline_id not in {item["pipeline_id"] for item in self.pipelines}:
            self.pipelines.append({**items("pipelines")[0], "pipeline_id": pipeline_id})


def items(name: str) -> list[dict[str, Any]]:
    """Returns what a recorded list holds."""
    held: list[dict[str, Any]] = json.loads(call(name).body)[name]
    return held


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
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_DELETE(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _answer(self) -> None:
            ask = self._ask()
            with lock:
                state.asked.append(f"{self.command} {unquote(self.path)}")
                if state.is_away:
                    self.close_connection = True
                    return
                found = _answer(state, ask)
            self.send_response(found.status)
            self.send_header("Content-Type", found.kind)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            self.wfile.write(found.body)

        def _ask(self) -> Ask:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind, token = (self.headers.get(name, "") for name in ("Content-Type", "Authorization"))
            return Ask(self.command, unquote(parts.path), query, body, kind, token)

    return Handler


def _answer(state: State, ask: Ask) -> Answer:
    words = " ".join(ask.words)
    if not state.is_kfp:
        return Answer(b"<html><body>Welcome</body></html>", kind="text/html")
    try:
        found = definitions.instead(state, ask)
        if found is None and (found := _recorded(state, ask)) is not None:
            if state.multi_user or state.is_ui:
                state.unseen.append(words)
            return found
        found = found or definitions.answer(state, ask)
    except NotRecordedError as error:
        words, found = f"{words} ({error})", None
    except Exception as error:  # a thread's error would be lost
        words, found = f"{words}: {error!r}", None
    if found is not None:
        state.unseen.append(words)
        return found
    state.refused.append(words)
    return as_json({"message": f"no server was asked for {words}"}, status=501)


def _recorded(state: State, ask: Ask) -> Answer | None:
    """Returns the answer of the real server to a request like this; None where it got none."""
    if ask.words == ("GET", f"{V2}/healthz"):
        return call("healthz")
    if (changed := made.answer(state, ask)) is not None:
        return changed
    if ask.words == ("GET", f"{V2}/runs"):
        return _page([run.now("v2beta1") for run in reversed(state.runs.values())], ask)
    for kind, items in (("experiments", state.experiments), ("pipelines", state.pipelines)):
        if ask.words == ("GET", f"{V2}/{kind}"):
            return _listed(kind, items, ask)
    if ask.words == ("GET", f"{V2}/recurringruns"):
        return _listed("recurringRuns", state.schedules, ask)
    if found := ask.matches(rf"GET {V2}/pipelines/([^/]+)/versions"):
        return _listed("pipeline_versions", [item for item in state.versions if item["pipeline_id"] == found[1]], ask)
    if found := ask.matches(rf"GET {V2}/pipelines/[^/]+/versions/([^/]+)"):  # an item of the list, by itself
        known = (as_json(item) for item in state.versions if item["pipeline_version_id"] == found[1])
        return next(known, None) or made.unknown("version-unknown", found[1])
    if found := ask.matches(r"\w+ /apis/\w+/runs/([^/:]+).*"):
        return _of_run(state, ask, found[1])
    if ask.path in PAGES and not state.is_ui:
        return call(PAGES[ask.path])
    return None


def _of_run(state: State, ask: Ask, run_id: str) -> Answer | None:
    run = state.runs.get(run_id)
    if run is None:
        return call("run-unknown", run=run_id) if ask.matches(rf"GET {V2}/runs/[^/:]+") else None
    if ask.matches(rf"GET {V2}/runs/[^/:]+"):
        return as_json(run.look("v2beta1"))
    if ask.matches(rf"GET {V1}/runs/[^/:]+"):
        return as_json(run.look("v1beta1"))
    if found := ask.matches(rf"GET {V2}/runs/[^/]+/nodes/([^/]+)/artifacts/main-logs:read"):
        log = run.log(found[1])
        return call(f"{NO_LOG}-artifact") if log is None else artifact(log)
    if ask.matches(rf"GET {V2}/runs/[^/]+/nodes/[^/]+/log"):
        return call("log-by-v2beta1")
    if found := ask.matches(r"GET /apis/v1alpha1/runs/[^/]+/nodes/([^/]+)/log"):
        log = run.log(found[1])
        if log is None:
            return call(NO_LOG, run=run_id, node=found[1], workflow=run.workflow)
        return Answer(log.encode(), kind="text/plain; charset=utf-8")
    return None


def _page(runs: list[dict[str, Any]], ask: Ask) -> Answer:
    """Returns a page of runs, and the word that the next one is asked for with: it has the id of that page's first."""
    size = int(ask.query.get("page_size") or 10)
    listed = json.loads(_listed("runs", runs, ask).body)
    found = listed.get("runs", [])
    if token := ask.query.get("page_token"):
        first = json.loads(base64.b64decode(token))["KeyFieldValue"]
        found = found[[run["run_id"] for run in found].index(first) :]
    if len(found) > size:
        recorded = json.loads(base64.b64decode(json.loads(call("runs-first-page").body)["next_page_token"]))
        text = json.dumps({**recorded, "KeyFieldValue": found[size]["run_id"]})
        listed["next_page_token"] = base64.b64encode(text.encode()).decode()
    return as_json({**listed, "runs": found[:size]} if found else listed)


def _listed(kind: str, items: Sequence[Mapping[str, Any]], ask: Ask) -> Answer:
    """Returns a list as it was seen: with its size, and as `{}` where nothing is in it."""
    wanted = json.loads(ask.query.get("filter") or '{"predicates": []}')["predicates"]
    for predicate in wanted:
        if predicate["operation"] != "EQUALS" or predicate["key"] not in ("name", "display_name"):
            raise NotRecordedError(f"the filter {predicate}")
    names = {predicate["stringValue"] for predicate in wanted}
    found = [item for item in items if not names or item["display_name"] in names]
    return as_json({kind: found, "total_size": len(found)} if found else {})
