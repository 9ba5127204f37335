"""Brings the log of a proxy in front of Kubeflow Pipelines into the raw form that `scrub` reads.

    python -m tests.components.proxy_log LOG FOLDER NAME=RUN[@FROM-TO] ...

LOG has a JSON object a line, one a call: `t` (seconds), `method`, `path`, `request`, `status`, `headers`, `answer`. A
run becomes a folder with its moments, each seen by both versions of the API and unlike the one before it, and with the
logs of its tasks' pods; FROM and TO are lines of the log, where a run is split in two. CALLS says which single calls
are kept.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.components.scrub import alike, workflow_of

ID = "[0-9a-f-]{36}"
NOTHING = "0{8}-0{4}-0{4}-0{4}-0{12}"
V2 = "/apis/v2beta1"
CALLS = {
    "version-made": rf"POST {V2}/pipelines/upload_version\?.*",
    "version": rf"GET {V2}/pipelines/{ID}/versions/(?!{NOTHING}){ID}",
    "version-unknown": rf"GET {V2}/pipelines/{ID}/versions/{NOTHING}",
    "run-made": rf"POST {V2}/runs",
    "run-terminated": rf"POST {V2}/runs/{ID}:terminate",
    "run-retried": rf"POST {V2}/runs/{ID}:retry",
    "runs-first-page": rf"GET {V2}/runs\?page_size=2&(?!.*page_token).*",
    "runs-second-page": rf"GET {V2}/runs\?page_size=2&.*page_token=.*",
    "schedule-made": rf"POST {V2}/recurringruns",
    "schedule-disabled": rf"POST {V2}/recurringruns/{ID}:disable",
    "schedule-enabled": rf"POST {V2}/recurringruns/{ID}:enable",
    "schedule-deleted": rf"DELETE {V2}/recurringruns/{ID}",
    "schedule": rf"GET {V2}/recurringruns/(?!{NOTHING}){ID}",
    "schedule-unknown": rf"GET {V2}/recurringruns/{NOTHING}",
    "log-by-v2beta1": rf"GET {V2}/runs/{ID}/nodes/[^/]+/log",
    "web-page": "GET /",
    "web-page-of-pod-logs": "GET /k8s/pod/logs",
}
"""The single calls that are kept: the first that matches."""
OVER = ("SUCCEEDED", "FAILED")
LISTS = ("runs-first-page", "runs-second-page")
ITEM = ("experiment_id", "run_id", "display_name", "state", "created_at")
"""What stays of a run in a list: it is that of a run by itself."""


def convert(log: Path, to: Path, runs: Mapping[str, str]) -> None:
    """Writes a raw folder.

    Args:
        log: The proxy's log.
        to: The folder, which is made.
        runs: By name, a run's id and which lines count.
    """
    calls = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    (to / "calls").mkdir(parents=True)
    for name, pattern in CALLS.items():
        found = next((call for call in calls if re.fullmatch(pattern, f"{call['method']} {call['path']}")), None)
        if found is not None:
            text = json.dumps(_single(name, found))
            (to / "calls" / f"{name}.json").write_text(text, encoding="utf-8")
    for name, wanted in runs.items():
        run_id, _, window = wanted.partition("@")
        first, last = (int(end) if end else None for end in (window or "-").split("-"))
        (to / name).mkdir()
        _run(calls[first:last], to / name, run_id, later=calls[first:])


def _single(name: str, call: Mapping[str, Any]) -> dict[str, Any]:
    text = call["answer"]
    if name in LISTS:
        listed = json.loads(text)
        listed["runs"] = [{key: run[key] for key in ITEM if key in run} for run in listed["runs"]]
        text = json.dumps(listed)
    elif name in ("version", "version-made"):
        text = json.dumps({**json.loads(text), "pipeline_spec": {}})
    is_json = call["request"].startswith("{")
    return {
        "request": f"{call['method']} {call['path']}",
        "body": json.loads(call["request"]) if is_json else None,
        "status": call["status"],
        "answer": text,
        "bytes": len(call["answer"].encode()),
        "content_type": call["headers"]["Content-Type"],
        "transfer_encoding": call["headers"].get("Transfer-Encoding"),
    }


def _run(calls: list[dict[str, Any]], to: Path, run_id: str, *, later: list[dict[str, Any]]) -> None:
    nodes: dict[str, dict[str, Any]] = {}
    for seconds, new, old in _moments(calls, run_id):
        nodes = (workflow_of(old) or {"status": {}})["status"].get("nodes") or {}
        for api, answer in (("v2beta1", new), ("v1beta1", old)):
            content = json.dumps({"answer": answer}).encode()
            (to / f"{seconds:04d}-{api}.json.gz").write_bytes(gzip.compress(content, mtime=0))
    for call in later:
        found = re.fullmatch(rf"/apis/v1alpha1/runs/{run_id}/nodes/([^/]+)/log", call["path"])
        path = to / f"{found[1] if found else ''}.log"
        if not found or path.exists() or call["answer"].startswith("{") or found[1] not in nodes:
            continue
        if _is_shown(nodes[found[1]]):
            path.write_text(call["answer"], encoding="utf-8")


def _moments(calls: list[dict[str, Any]], run_id: str) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Yields the moments of a run: when, and what the two versions of the API answered."""
    new: dict[str, Any] | None = None
    before: Any = None
    begun: float | None = None
    seen: dict[str, Any] | None = None
    for call in calls:
        version = re.fullmatch(rf"/apis/(v2beta1|v1beta1)/runs/{run_id}(\?.*)?", call["path"])
        if not version or call["method"] != "GET" or call["status"] != 200:
            continue
        begun = begun or call["t"]
        if version[1] == "v2beta1":
            new = json.loads(call["answer"])
            seen = None if new.get("state") in OVER else seen  # what was seen before the end is not the end
        else:
            seen = json.loads(call["answer"])
        if new is None or seen is None or not alike(new, workflow_of(seen)):
            continue
        now = _what_matters(new, workflow_of(seen))
        if now != before:
            before = now
            yield int(call["t"] - begun), new, seen


def _what_matters(run: Mapping[str, Any], workflow: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """Returns what makes a moment unlike the one before: the run's state, its tasks' pods, and drivers that fail."""
    nodes = (workflow["status"].get("nodes") or {}).values() if workflow else ()
    pods = (node for node in nodes if node["type"] == "Pod" and _is_shown(node))
    return run.get("state"), workflow is None, [(node["name"], node["phase"], node.get("message")) for node in pods]


def _is_shown(node: Mapping[str, Any]) -> bool:
    """Says whether `lwfed logs` shows a pod: of drivers, only where they fail."""
    return node["phase"] == "Failed" or not re.search(r"-driver\(\d+\)$", node["name"])


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), dict(argument.split("=", 1) for argument in sys.argv[3:]))
