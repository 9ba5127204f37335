"""Recorded runs of Kubeflow Pipelines, played again: the very answers, with ids and the clock replaced.

`recordings/README.md` says what was recorded. A run that is played steps from snapshot to snapshot as it is looked at,
and stays at the last. Both versions of the API show the same snapshot.
"""

from __future__ import annotations

import base64
import functools
import json
import lzma
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recordings"
DATE = re.compile(r"(?!1970)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
"""A date; that of 1970 stands for none."""
TASK = re.compile(r"([\w-]+)(?:\(0\)\.executor)?\(\d+\)$")
"""The task in the name of its pod's node."""
OVER = ("SUCCEEDED", "FAILED")
OWN = ("display_name", "description", "created_at", "experiment_id", "pipeline_version_reference")
"""What a run keeps when it goes on as another recording."""
NO_LOG = ("Pending", "Running", "Skipped", "Omitted")
"""Phases of nodes that were seen to have no log in the archive."""


class NotRecordedError(Exception):
    """What is asked for was asked of no server."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answers."""

    body: bytes
    status: int = 200
    kind: str = "application/json"


def as_json(values: Any, *, status: int = 200) -> Answer:
    """Returns values as an answer."""
    return Answer(json.dumps(values).encode(), status)


@dataclass(frozen=True, slots=True)
class Script:
    """Which snapshots of a recorded run are played.

    Attributes:
        name: The recording.
        start: The first snapshot; negative: from the end.
        upto: The last; None: of the recording.
        hold_s: Seconds for which the first one stays.
        retried: The recording that is played after a retry that was accepted; None: this one, from what follows `upto`.
    """

    name: str
    start: int = 0
    upto: int | None = None
    hold_s: float = 0.0
    retried: str | None = None


@dataclass
class Played:
    """A run that is played.

    Attributes:
        script: What of which recording.
        run_id: The id it has here.
        made: What the request that made it said; empty for one that is there already.
        written: What the pods of tasks wrote, by the task's name, in place of what is recorded.
    """

    script: Script
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    made: Mapping[str, Any] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begin(self.script)

    def look(self, api: str) -> dict[str, Any]:
        """Returns what an API shows of the run; the same one asked again, the run has gone on."""
        if api in self._shown and self.at < self._last and time.monotonic() >= self._held_until:
            self.go_to(self.at + 1)
        self._shown.add(api)
        return self.now(api)

    def now(self, api: str) -> dict[str, Any]:
        """Returns what an API shows of the run, which stays where it is."""
        snapshot = self._snapshot(self.at)
        if api == "v2beta1":
            return {**snapshot["v2beta1"], **self.made}
        shown = snapshot["v1beta1"]
        if "display_name" in self.made:
            shown = {**shown, "run": {**shown["run"], "name": self.made["display_name"]}}
        workflow = snapshot["workflow"]
        return {**shown, "pipeline_runtime": {"workflow_manifest": json.dumps(workflow)} if workflow else {}}

    @property
    def state(self) -> str:
        """The run's state; empty where it has none yet."""
        return str(self._snapshot(self.at)["v2beta1"].get("state", ""))

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """Argo's nodes, by their ids."""
        return self._nodes(self.at)

    def pod(self, task: str, *, attempt: int = 0) -> str:
        """Returns the id of the node of a task's pod; it may lie in a snapshot to come."""
        inner = rf".*\.{re.escape(task)}(\(0\)\.executor)?\({attempt}\)"
        for at in range(self.at, len(recording(self.script.name)["snapshots"])):
            for name, node in self._nodes(at).items():
                if node["type"] == "Pod" and re.fullmatch(inner, node["name"]):
                    return str(name)
        raise KeyError(task)

    def log(self, node: str) -> str | None:
        """Returns what a pod wrote, as it lies in the archive; None where there was seen to be none.

        Raises:
            NotRecordedError: It may have one.
        """
        known = self.nodes.get(node)
        if known is None or known["phase"] in NO_LOG or "deadline" in known.get("message", ""):
            return None
        if (task := TASK.search(known["name"])) and task[1] in self.written:
            return self.written[task[1]]
        held = recording(self.script.name)["logs"]
        if (text := held.get(self._recorded_node(node), {}).get("text")) is None:
            raise NotRecordedError(f"the log of {known['name']} in {self.script.name}")
        return self._placed(text)

    def end(self) -> None:
        """Goes to the last snapshot at once."""
        self.go_to(self._last)

    def terminate(self) -> None:
        """Goes on to what was recorded after a request to terminate.

        Raises:
            NotRecordedError: Nothing was.
        """
        states = [snapshot["v2beta1"].get("state") for snapshot in recording(self.script.name)["snapshots"]]
        if "CANCELING" not in states:
            raise NotRecordedError(f"how {self.script.name} is terminated")
        self._begin(Script(self.script.name, start=states.index("CANCELING")))

    def retry(self) -> None:
        """Goes on to what was recorded after a retry.

        Raises:
            NotRecordedError: Nothing was.
        """
        if self.script.retried is not None:
            shown = self.now("v2beta1")
            self.made = {**{key: shown[key] for key in OWN if key in shown}, **self.made}
            return self._begin(Script(self.script.retried))
        if self.at + 1 == len(recording(self.script.name)["snapshots"]):
            raise NotRecordedError(f"how {self.script.name} goes on when it is retried")
        return self._begin(Script(self.script.name, start=self.at + 1))

    def _begin(self, script: Script) -> None:
        held = recording(script.name)
        count = len(held["snapshots"])
        self.script = script
        self._recorded_id = held["snapshots"][0]["v2beta1"]["run_id"]
        workflow = next(snapshot["workflow"] for snapshot in held["snapshots"] if snapshot["workflow"])
        self._recorded_workflow = workflow["metadata"]["name"]
        self._last = count - 1 if script.upto is None else script.upto % count
        dates = DATE.findall(json.dumps(held["snapshots"][self._last]))
        shift = datetime.now(UTC) - max(map(_date, dates))
        self._shift = timedelta(seconds=int(shift.total_seconds()))
        self._cache: dict[int, dict[str, Any]] = {}
        self._held_until = time.monotonic() + script.hold_s
        self.go_to(script.start % count)

    def go_to(self, at: int) -> None:
        """Goes to a snapshot."""
        self.at = at
        self._shown: set[str] = set()

    def _snapshot(self, at: int) -> dict[str, Any]:
        if at not in self._cache:
            text = json.dumps(recording(self.script.name)["snapshots"][at])
            self._cache[at] = json.loads(DATE.sub(self._later, self._placed(text)))
        return self._cache[at]

    def _nodes(self, at: int) -> dict[str, dict[str, Any]]:
        workflow = self._snapshot(at)["workflow"] or {"status": {}}
        nodes: dict[str, dict[str, Any]] = workflow["status"].get("nodes", {})
        return nodes

    def _placed(self, text: str) -> str:
        """Puts this run's ids into a recorded text."""
        for old, new in ((self._recorded_id, self.run_id), (self._recorded_workflow, self.workflow)):
            text = text.replace(old, new)
        return re.sub(rf"\b{self._recorded_id[:8]}\b", self.run_id[:8], text)

    def _recorded_node(self, node: str) -> str:
        return node.replace(self.workflow, self._recorded_workflow)

    @property
    def workflow(self) -> str:
        """The name of the run's workflow."""
        return f"{self._recorded_workflow.rpartition('-')[0]}-{self.run_id[-5:]}"

    def _later(self, date: re.Match[str]) -> str:
        return f"{_date(date[0]) + self._shift:%Y-%m-%dT%H:%M:%SZ}"


@functools.cache
def recording(name: str) -> dict[str, Any]:
    """Reads a recorded run: its pipeline, its snapshots, what its pods wrote."""
    held = json.loads(lzma.decompress((FOLDER / f"{name}.json.xz").read_bytes()))
    assert isinstance(held, dict)
    return held


def whole_logs(name: str) -> dict[str, str]:
    """Returns the logs of a recorded run that were not cut, by their nodes."""
    logs: dict[str, Any] = recording(name)["logs"]
    return {node: log["text"] for node, log in logs.items() if len(log["text"].encode()) == log["bytes"]}


def call(name: str, **replaced: str) -> Answer:
    """Returns the answer of a recorded single call.

    Args:
        name: The call.
        **replaced: What stands in place of the recorded `run`, `node` or `workflow`.
    """
    held = _calls()[name]
    found = re.search(r"runs/([0-9a-f-]{36})(?:/nodes/([^/]+))?", held["request"])
    text = held["answer"]
    if found:
        recorded = {"run": found[1], "node": found[2]}
        if workflow := re.search(r"/artifacts/([^/\\]+)/", text):
            recorded["workflow"] = workflow[1]
        for key in ("run", "node", "workflow"):  # a node's id begins with the workflow's name
            if key in replaced and recorded.get(key):
                text = text.replace(recorded[key], replaced[key])
    return Answer(text.encode(), held["status"], held["content_type"])


def recorded_body(name: str) -> dict[str, Any]:
    """Returns what the request of a recorded single call said."""
    body = _calls()[name]["body"]
    assert isinstance(body, dict)
    return body


def artifact(log: str) -> Answer:
    """Returns a log as the API wraps artifacts; recorded ones are the same bytes as the plain log."""
    return as_json({"data": base64.b64encode(log.encode()).decode()})


@functools.cache
def _calls() -> dict[str, dict[str, Any]]:
    held = json.loads((FOLDER / "calls.json").read_text(encoding="utf-8"))
    assert isinstance(held, dict)
    return held


def _date(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
