"""A run's pods in the cluster that Kubeflow Pipelines does not report: waiting pods, and clients' pods."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lwfed.launch.kubernetes import reasons
from lwfed.launch.kubernetes.names import CLIENTS_NOTE, INDEX_LABEL, JOB_LABEL, run_selector
from lwfed.types.errors import LwfedError
from pipelines.client.runs import KnownRun

if TYPE_CHECKING:
    from lwfed.launch.kubernetes.api import Cluster

RUN_LABEL = "pipeline/runid"
WORKFLOW_LABEL = "workflows.argoproj.io/workflow"
MAIN = "main"
"""The container of a task's pod that runs our code; Argo adds containers of its own."""


@dataclass(frozen=True, slots=True)
class ClientPod:
    """A pod of a client.

    Attributes:
        name: The pod.
        client: The client, or `server`.
        container: Its main container.
        phase: Its phase in Kubernetes.
        title: A description of its work.
        stage_key: First characters of its stage's key; empty outside stages.
    """

    name: str
    client: str
    container: str
    phase: str
    title: str
    stage_key: str


def waiting_reasons(run: KnownRun) -> list[str]:
    """Returns why the pods of a pipeline run wait, one line each, in the cluster's own words.

    If no pod waits, the cluster may refuse to create one (by a quota or a policy), which only the workflow shows.

    Raises:
        UnreachableError: The cluster does not answer, or denies access.
    """
    from lwfed.launch.kubernetes.api import connect  # loads the Kubernetes client

    with closing(connect(run.namespace)) as cluster:
        pods = cluster.find("pods", labelSelector=f"{RUN_LABEL}={run.id}")
        lines = [f"{pod['metadata']['name']}: {line}" for pod in pods if (line := _why_waiting(cluster, pod))]
    if lines or any(_phase(pod) in ("Pending", "Running") for pod in pods):
        return list(dict.fromkeys(lines))
    workflow = next((name for pod in pods if (name := _labels(pod).get(WORKFLOW_LABEL))), f"-l {RUN_LABEL}={run.id}")
    return [
        f"it has no pods: the cluster may refuse to create one; see kubectl -n {run.namespace} describe "
        f"quota, and kubectl -n {run.namespace} describe workflow {workflow}"
    ]


def end_waiting_pods(cluster: Cluster, run_id: str) -> list[str]:
    """Deletes the pods of a finished pipeline run that still wait to start; nothing else ever deletes them.

    Args:
        cluster: The cluster, in the namespace of the pods.
        run_id: The pipeline run's id.

    Returns:
        The names of the deleted pods.

    Raises:
        UnreachableError: The cluster does not answer, or denies access.
    """
    pods = cluster.find("pods", labelSelector=f"{RUN_LABEL}={run_id}")
    waiting = [str(pod["metadata"]["name"]) for pod in pods if _phase(pod) == "Pending"]
    for name in waiting:
        cluster.delete_pod(name)
    return waiting


def client_pods(cluster: Cluster, run_id: str) -> list[ClientPod]:
    """Returns the pods of a run's clients, including finished ones, oldest first.

    An annotation of a pod's Job has its clients by index.

    Raises:
        UnreachableError: The cluster does not answer.
    """
    clients: dict[str, list[str]] = {}
    found = []
    pods = cluster.find("pods", labelSelector=run_selector(run_id))
    for pod in sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"])):
        labels = _labels(pod)
        job, index = labels.get(JOB_LABEL, ""), labels.get(INDEX_LABEL, "")
        if job not in clients:
            notes = ((cluster.read_job(job) or {}).get("metadata") or {}).get("annotations") or {}
            clients[job] = list(filter(None, notes.get(CLIENTS_NOTE, "").split(",")))
        if not index.isdigit() or int(index) >= len(clients[job]):
            continue
        client = clients[job][int(index)]
        at = f"round {labels['lwfed/round']}, " if "lwfed/round" in labels else ""
        found.append(
            ClientPod(
                name=pod["metadata"]["name"],
                client=client,
                container=pod["spec"]["containers"][0]["name"],
                phase=_phase(pod),
                title=f"{at}{labels.get('lwfed/step', 'step')} of {client}",
                stage_key=labels.get("lwfed/stage-key", ""),
            )
        )
    return found


def _why_waiting(cluster: Cluster, pod: Mapping[str, Any]) -> str | None:
    """Returns why a pod of the pipeline does not start, from the states of its containers and init containers."""
    if _phase(pod) != "Pending":
        return None
    status = pod["status"]
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    flat = {**pod, "status": {**status, "containerStatuses": containers}}
    names = [container["name"] for container in containers] or [MAIN]
    found = [wait for name in names if (wait := reasons.waiting(flat, container=name))]
    if found:
        return min(found, key=lambda wait: wait.kind not in ("image", "config")).line
    try:
        events = cluster.events_of(str(pod["metadata"].get("uid")))
    except LwfedError:
        return None
    late = reasons.waiting(flat, container=MAIN, events=events)
    return late.line if late else None


def _phase(pod: Mapping[str, Any]) -> str:
    return str(pod["status"].get("phase", "Pending"))


def _labels(pod: Mapping[str, Any]) -> Mapping[str, str]:
    labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
    return labels
