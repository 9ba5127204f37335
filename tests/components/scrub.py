"""Makes tests/components/recordings from raw recordings: one file a run, and one with all single calls.

    python -m tests.components.scrub FOLDER ...

A FOLDER has a folder a run with `<seconds>-v2beta1.json.gz` and `<seconds>-v1beta1.json.gz`, perhaps `<node>.log`, and
`calls/*.json`: each a request and its answer. `proxy_log` makes such a folder. What nobody reads is left out, and what
belongs to the place of recording is replaced.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
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
    (r"registry-1[\w.]+/v2/lab", "registry.example/v2"),
    (r"\b10\.210\.0\.1:5055\b", "tracking.example"),
    (r"s3://lwfed-main/", "s3://lwfed/"),
    (r"\bon testbed\b", "on node-1"),
    (r"lwfed@sha256:[0-9a-f]{64}", "lwfed@sha256:" + "0" * 64),
    (r"\b127\.0\.0\.1\b", "node-1"),
    (r"RequestID: [0-9A-F]+, HostID: [0-9a-f]+", "RequestID: 0, HostID: 0"),
)


def scrub(raw: Sequence[Path], to: Path) -> None:
    """Writes scrubbed copies of all recordings in some folders."""
    paths = sorted((path for folder in raw for path in folder.glob("calls/*.json")), key=lambda path: path.name)
    calls = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    logs: dict[str, dict[str, Any]] = {}
    for name, call in list(calls.items()):
        found = re.fullmatch(r"GET /apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", call["request"])
        if found and call["transfer_encoding"] == "chunked":  # an artifact's is the same bytes, in base64
            logs.setdefault(found[1], {})[found[2]] = _log(call["answer"], length=call["bytes"])
            del calls[name], calls[name.removesuffix("-v1alpha1") + "-artifact"]
    for name in ("runs-page", "versions-lwfed-experiment"):  # cut in the middle; runs and pipelines have it all
        calls.pop(name, None)
    _write(to / "calls.json", calls)
    for path in (path for folder in raw for path in folder.iterdir() if path.is_dir() and path.name != "calls"):
        run = _run(path)
        run["logs"] = {**logs.get(run["snapshots"][0]["v2beta1"]["run_id"], {}), **_logs(path)}
        _write(to / f"{path.name}.json.xz", run)


def workflow_of(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the workflow in an answer of the v1beta1 API; None where it has none yet."""
    text = run["pipeline_runtime"].get("workflow_manifest")
    workflow = json.loads(text) if text else None
    assert workflow is None or isinstance(workflow, dict)
    return workflow


def alike(run: Mapping[str, Any], workflow: Mapping[str, Any] | None) -> bool:
    """Says whether both versions of the API were asked at the same moment; a run that was retried has more tasks."""
    if workflow is None:
        return not run.get("run_details")
    left = _states_of_nodes(workflow) - _states_of_tasks(run)
    return not left and bool(run.get("run_details")) == bool(workflow["status"].get("nodes"))


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
        workflow = workflow_of(old)
        if not alike(new, workflow):
            continue
        if not pipeline:
            pipeline = _pipeline(next(yaml.safe_load_all(old["run"]["pipeline_spec"]["pipeline_manifest"])))
        old["run"]["pipeline_spec"].pop("pipeline_manifest", None)
        if "pipeline_spec" in new:
            new["pipeline_spec"] = pipeline
        thin = _thin(workflow) if workflow else None
        snapshots.append({"seconds": at, "v2beta1": new, "v1beta1": {"run": old["run"]}, "workflow": thin})
    return {"pipeline": pipeline, "snapshots": snapshots}


def _logs(folder: Path) -> dict[str, Any]:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.log"))}
    return {node: _log(text, length=len(text.encode())) for node, text in texts.items()}


def _log(text: str, *, length: int) -> dict[str, Any]:
    """Returns a log and its whole length: as it is written here, or where it was cut, as it was."""
    written = _replaced(text)
    return {"text": written, "bytes": len(written.encode()) if len(text.encode()) == length else length}


def _thin(workflow: Mapping[str, Any]) -> dict[str, Any]:
    status = {key: value for key, value in workflow["status"].items() if key in STATUS}
    if nodes := workflow["status"].get("nodes"):
        status["nodes"] = {name: _node(node) for name, node in nodes.items()}
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
    tasks = run.get("run_details", {}).get("task_details", ())
    return Counter((task["display_name"], task.get("state")) for task in tasks if "display_name" in task)


def _states_of_nodes(workflow: Mapping[str, Any]) -> Counter[tuple[str, str | None]]:
    nodes = (workflow["status"].get("nodes") or {}).values()
    return Counter((node["displayName"], STATES.get(node["phase"])) for node in nodes)


def _answer(path: Path) -> dict[str, Any]:
    answer = json.loads(gzip.decompress(path.read_bytes()))["answer"]
    assert isinstance(answer, dict)
    return answer


def _replaced(text: str) -> str:
    for pattern, word in REPLACED:
        text = re.sub(pattern, word, text)
    return text


def _write(path: Path, values: Any) -> None:
    text = _replaced(json.dumps(values, indent=1, sort_keys=True))
    content = (text + "\n").encode()
    path.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)


if __name__ == "__main__":
    scrub([Path(argument) for argument in sys.argv[1:]], HERE)
