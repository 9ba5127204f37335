"""How large the Workflow object of a compiled pipeline grows: predicted, because a cluster says so only by failing.

Kubeflow Pipelines make an Argo Workflow, whose status repeats the command, the inputs and the pod patch of each task
once for its driver, its group and its pod, and once more around each for its tries. The same strings are put together
here, escaped as often as they are there; names, dates and the templates that all pipelines share are counted as
constants. What pods tell at their end is not known before and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ARGO_LIMIT = 1 << 20
"""Argo refuses an object above this, even compressed."""
RETRY_LIMIT = 3 << 19
"""etcd's limit: a run's retry writes the object without compression."""
WRAPPED = 2
"""Kubeflow's Argo puts a node for tries around each node."""
HEX = "0" * 64
"""Stands for what tasks hand on: a digest, or a URI with one."""
UUID = "00000000-0000-0000-0000-000000000000"
SHARED_TEMPLATES = 16_000
"""Bytes of the templates that every workflow has: drivers, the launcher's pod, the importer."""
TEMPLATE = 1_400
"""Bytes of a task's part of its group's template, besides its specification."""
NODE = 700
"""Bytes of a node besides its inputs and outputs: names, dates, template, host, resources."""
LAUNCHER = 600
"""Bytes of the launcher's own arguments and environment in a pod's patch."""

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WorkflowSize:
    """Bytes of the object.

    Attributes:
        spec_bytes: When the run starts.
        status_bytes: What is added until it ends.
        pods: Pods of the pipeline; those of clients are not among them.
    """

    spec_bytes: int
    status_bytes: int
    pods: int

    @property
    def total_bytes(self) -> int:
        """At the end of the run."""
        return self.spec_bytes + self.status_bytes


def workflow_size(pipeline: Json, platform: Json | None = None) -> WorkflowSize:
    """Predicts it.

    Args:
        pipeline: The compiled pipeline, as plain values.
        platform: Its second document, with the Kubernetes settings of its executors.
    """
    executors = pipeline["deploymentSpec"]["executors"]
    components = pipeline["components"]
    settings = _settings(platform)
    defaults = (pipeline["root"].get("inputDefinitions") or {}).get("parameters") or {}
    values = {name: item.get("defaultValue", HEX) for name, item in defaults.items()}
    arguments = {_text(part) for part in (*components.values(), *executors.values(), *settings.values())}
    spec = SHARED_TEMPLATES + _size(sorted(arguments)) + _size(pipeline["root"])
    status = pods = 0
    for task in _tasks(pipeline):
        component = components[task["componentRef"]["name"]]
        spec += TEMPLATE + _size(_text(task))
        label = component.get("executorLabel")
        nodes = list(_nodes(task, component, executors.get(label), settings.get(label), values))
        status += WRAPPED * sum(NODE + _size(node) for node in nodes)
        pods += 1 if label is None or "importer" in executors[label] else 2
    root = {"component": _text(pipeline["root"]), "runtime-config": _text({"parameterValues": values})}
    return WorkflowSize(spec, status + WRAPPED * 2 * (NODE + _size(root)), pods + 1)


def _nodes(task: Json, component: Json, executor: Json | None, settings: Json | None, values: Json) -> Iterator[Any]:
    """Yields inputs and outputs of a task's nodes: its driver's, its group's, its pod's."""
    driver = {"component": _text(component), "task": _text(task), "kubernetes-config": _text(settings or {})}
    if executor is None or "importer" in executor:
        yield driver
        yield {"parent-dag-id": "1"}
        return
    container = executor["container"]
    inputs = _text(_executor_input(task, component, values))
    launcher = ["x" * LAUNCHER, "--executor_input", inputs, "--component_spec", _text(component)]
    pod = {
        **container,
        "command": launcher,
        "args": [*container["command"], *container["args"]],
        "env": [*container.get("env", ()), *_variables(settings or {})],
    }
    patch = {"pod-spec-patch": _text({"containers": [pod]})}
    yield {**driver, "container": _text(container), **patch}
    yield patch
    yield patch


def _executor_input(task: Json, component: Json, values: Json) -> Json:
    """Gives what a task is started with."""
    outputs = component.get("outputDefinitions") or {}
    parameters = (task.get("inputs") or {}).get("parameters") or {}
    return {
        "inputs": {"parameterValues": {name: _value(item, values) for name, item in parameters.items()}},
        "outputs": {
            "parameters": {
                name: {"outputFile": f"/tmp/kfp/outputs/{name}"} for name in outputs.get("parameters") or {}
            },
            "artifacts": {
                name: {
                    "artifacts": [{"type": item["artifactType"], "uri": f"minio://mlpipeline/v2/artifacts/{UUID * 3}"}]
                }
                for name, item in (outputs.get("artifacts") or {}).items()
            },
            "outputFile": "/tmp/kfp_outputs/output_metadata.json",
        },
    }


def _variables(settings: Json) -> Iterator[Json]:
    """Yields the variables that a pod takes from elsewhere."""
    for secret in settings.get("secretAsEnv") or ():
        for key in secret["keyToEnv"]:
            named = {"name": secret.get("secretName"), "key": key["secretKey"], "optional": True}
            yield {"name": key["envVar"], "valueFrom": {"secretKeyRef": named}}
    for field in settings.get("fieldPathAsEnv") or ():
        yield {"name": field["name"], "valueFrom": {"fieldRef": {"fieldPath": field["fieldPath"]}}}


def _value(item: Json, values: Json) -> Any:
    constant = (item.get("runtimeValue") or {}).get("constant")
    if constant is not None:
        return constant
    name = str(item.get("componentInputParameter", "")).removeprefix("pipelinechannel--")
    return values.get(name, HEX)


def _tasks(pipeline: Json) -> Iterator[Json]:
    for part in (pipeline["root"], *pipeline["components"].values()):
        yield from ((part.get("dag") or {}).get("tasks") or {}).values()


def _settings(platform: Json | None) -> dict[str, Json]:
    kubernetes = ((platform or {}).get("platforms") or {}).get("kubernetes") or {}
    return dict((kubernetes.get("deploymentSpec") or {}).get("executors") or {})


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _size(value: Any) -> int:
    return len(_text(value))
