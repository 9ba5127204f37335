"""Makes tests/components/recordings from raw recordings: one file a run, and one with all single calls.

    python -m tests.components.scrub FOLDER

FOLDER has a folder a run with `<seconds>-v2beta1.json.gz` and `<seconds>-v1beta1.json.gz`, and `calls/*.json`: each a
request and its answer. What nobody reads is left out, and what belongs to the place of recording is replaced.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent / "recordings"
NODE = (
    "id", "name", "displayName", "type", "templateName", "phase", "message", "boundaryID", "children", "startedAt",
    "finishedAt", "nodeFlag",
)  # fmt: skip
METADATA = ("name", "namespace", "creationTimestamp", "labels", "annotations")
STATUS = ("phase", "message", "startedAt", "finishedAt", "progress")
OUTPUTS = ("cached-decision", "condition")
"""The driver's outputs that say what becomes of its task."""
STATES = {"Succeeded": "SUCCEEDED", "Failed": "FAILED", "Error": "FAILED", "Running": "RUNNING", "Pending": "PENDING",
          "Skipped": "SKIPPED"}  # fmt: skip
REPLACED = (
    (r"docker\.io/(library|lab)/", "registry.example/"),
    (r"lwfed@sha256:[0-9a-f]{64}", "lwfed@sha256:" + "0" * 64),
    (r"\b127\.0\.0\.1\b", "node-1"),
    (r"RequestID: [0-9A-F]+, HostID: [0-9a-f]+", "RequestID: 0, HostID: 0"),
)


def scrub(raw: Path, to: Path) -> None:
    """Writes scrubbed copies of all recordings in a folder."""
    calls = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(raw.glob("calls/*.json"))}
    logs: dict[str, dict[str, Any]] = {}
    for name, call in list(calls.items()):
        found = re.fullmatch(r"GET /apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", call["request"])
        if found and call["transfer_encoding"] == "chunked":  # an artifact's is the same bytes, in base64
            logs.setdefault(found[1], {})[found[2]] = {"text": call["answer"], "bytes": call["bytes"]}
            del calls[name], calls[name.removesuffix("-v1alpha1") + "-artifact"]
    for name in ("runs-page", "versions-lwfed-experiment"):  # cut in the middle; runs and pipelines have it all
        del calls[name]
    _write(to / "calls.json", calls)
    for folder in sorted(path for path in raw.iterdir() if path.is_dir() and path.name != "calls"):
        run = _run(folder)
        run["logs"] = logs.get(run["snapshots"][0]["v2beta1"]["run_id"], {})
        _write(to / f"{folder.name}.json.gz", run)


def _run(folder: Path) -> dict[str, Any]:
    first, second = (
        {int(path.name[:4]): _answer(path) for path in sorted(folder.glob(f"*-{api}.json.gz"))}
        for api in ("v2beta1", "v1beta1")
    )
    pipeline: dict[str, Any] = {}
    snapshots = []
    for at, new in first.items():
        near = min(second, key=lambda other: abs(other - at))
        old = second[near]
        workflow = json.loads(old["pipeline_runtime"]["workflow_manifest"])
        if _states_of_tasks(new) != _states_of_nodes(workflow):
            continue  # the two were not taken at the same moment
        if not pipeline:
            pipeline = _pipeline(next(yaml.safe_load_all(old["run"]["pipeline_spec"]["pipeline_manifest"])))
        old["run"]["pipeline_spec"].pop("pipeline_manifest", None)
        if "pipeline_spec" in new:
            new["pipeline_spec"] = pipeline
        snapshots.append({"seconds": at, "v2beta1": new, "v1beta1": {"run": old["run"]}, "workflow": _thin(workflow)})
    return {"pipeline": pipeline, "snapshots": snapshots}


def _thin(workflow: Mapping[str, Any]) -> dict[str, Any]:
    status = {key: value for key, value in workflow["status"].items() if key in STATUS}
    status["nodes"] = {name: _node(node) for name, node in workflow["status"]["nodes"].items()}
    return {"metadata": {key: workflow["metadata"][key] for key in METADATA}, "spec": {}, "status": status}


def _node(node: Mapping[str, Any]) -> dict[str, Any]:
    thin = {key: node[key] for key in NODE if key in node}
    outputs = node.get("outputs") or {}
    kept: dict[str, Any] = {"exitCode": outputs["exitCode"]} if "exitCode" in outputs else {}
    if parameters := [item for item in outputs.get("parameters") or () if item["name"] in OUTPUTS]:
        kept["parameters"] = parameters
    return {**thin, "outputs": kept} if kept else thin


def _pipeline(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Takes the containers' commands out, which are lwfed's own code."""
    for executor in pipeline["deploymentSpec"]["executors"].values():
        for key in ("command", "args"):
            executor.get("container", {}).pop(key, None)
    return pipeline


def _states_of_tasks(run: Mapping[str, Any]) -> Counter[tuple[str, str | None]]:
    tasks = run["run_details"]["task_details"]
    return Counter((task["display_name"], task.get("state")) for task in tasks if "display_name" in task)


def _states_of_nodes(workflow: Mapping[str, Any]) -> Counter[tuple[str, str | None]]:
    nodes = workflow["status"]["nodes"].values()
    return Counter((node["displayName"], STATES.get(node["phase"])) for node in nodes)


def _answer(path: Path) -> dict[str, Any]:
    answer = json.loads(gzip.decompress(path.read_bytes()))["answer"]
    assert isinstance(answer, dict)
    return answer


def _write(path: Path, values: Any) -> None:
    text = json.dumps(values, indent=1, sort_keys=True)
    for pattern, word in REPLACED:
        text = re.sub(pattern, word, text)
    content = (text + "\n").encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


if __name__ == "__main__":
    scrub(Path(sys.argv[1]), HERE)
