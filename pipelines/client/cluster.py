"""What Kubeflow Pipelines do not tell of a run and its cluster does: pods that wait, Jobs left over, clients' pods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lwfed.launch.kubernetes import reasons
from lwfed.launch.kubernetes.api import Cluster, connect
from lwfed.launch.kubernetes.names import CLIENTS_NOTE, INDEX_LABEL, JOB_LABEL, run_selector
from lwfed.types.errors import LwfedError
from pipelines.follow.follow import Waiting

RUN_LABEL = "pipeline/runid"
WORKFLOW_LABEL = "workflows.argoproj.io/workflow"
MAIN = "main"
"""The container of a task's pod that runs what we wrote; Argo's own stand before and beside it."""


@dataclass(frozen=True, slots=True)
class ClientPod:
    """A pod that works for a client.

    Attributes:
        name: The pod.
        job: Its Job.
        client: The client, or `server`.
        container: Its container that counts.
        phase: As Kubernetes has it.
        created: When, as Kubernetes writes it.
        title: What it does, for people.
        stage_key: First characters of its stage's key; empty outside of stages.
    """

    name: str
    job: str
    client: str
    container: str
    phase: str
    created: str
    title: str
    stage_key: str = ""


def waiting_in(namespace: str) -> Waiting:
    """Gives what looks for pods of a pipeline run that do not start, in a namespace."""

    def look(run_id: str) -> list[str]:
        cluster = connect(namespace)
        try:
            return waiting_lines(cluster, run_id)
        finally:
            cluster.close()

    return look


def waiting_lines(cluster: Cluster, run_id: str) -> list[str]:
    """Says what holds the pods of a pipeline run up, a line each, in the cluster's own words.

    Where no pod waits, one may be refused (by a quota, a policy), which only the workflow knows.

    Raises:
        UnreachableError: The cluster does not answer, or does not let us look.
    """
    pods = cluster.find("pods", labelSelector=f"{RUN_LABEL}={run_id}").get("items") or []
    lines = [f"{pod['metadata']['name']}: {line}" for pod in pods if (line := _why_waiting(cluster, pod))]
    if lines:
        return list(dict.fromkeys(lines))
    if any(pod["status"].get("phase") in ("Pending", "Running") for pod in pods):
        return []
    workflow = next((name for pod in pods if (name := _labels(pod).get(WORKFLOW_LABEL))), None)
    named = workflow or f"-l {RUN_LABEL}={run_id}"
    return [
        f"none of its pods is there: the cluster may refuse to make one; see kubectl -n {cluster.namespace} describe "
        f"quota, and kubectl -n {cluster.namespace} describe workflow {named}"
    ]


def end_waiting_pods(cluster: Cluster, run_id: str) -> tuple[str, ...]:
    """Deletes the pods of a pipeline run that is over which still wait to be started: nobody else ever does.

    Args:
        cluster: The cluster, in the namespace of the pods.
        run_id: The pipeline run's id.

    Returns:
        Their names.

    Raises:
        UnreachableError: The cluster does not answer, or does not let us.
    """
    pods = cluster.find("pods", labelSelector=f"{RUN_LABEL}={run_id}").get("items") or []
    waiting = [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase", "Pending") == "Pending"]
    for name in waiting:
        cluster.delete_pod(name)
    return tuple(waiting)


def client_pods(cluster: Cluster, run_id: str) -> list[ClientPod]:
    """Finds the pods that work, or worked, for the clients of a run; the oldest first.

    A pod's place in its Job's list of tasks, which is in the store, says whose it is.

    Raises:
        UnreachableError: The cluster or the store does not answer.
    """
    pods = cluster.find("pods", labelSelector=run_selector(run_id)).get("items") or []
    clients: dict[str, tuple[str, ...]] = {}
    found = []
    for pod in pods:
        labels, container = _labels(pod), pod["spec"]["containers"][0]
        job, index = labels.get(JOB_LABEL, ""), labels.get(INDEX_LABEL, "")
        if job not in clients:
            clients[job] = _clients_of_job(cluster, job)
        if not index.isdigit() or int(index) >= len(clients[job]):
            continue
        client = clients[job][int(index)]
        at = f"round {labels['lwfed/round']}, " if "lwfed/round" in labels else ""
        found.append(
            ClientPod(
                name=pod["metadata"]["name"],
                job=job,
                client=client,
                container=container["name"],
                phase=pod["status"].get("phase", "Pending"),
                created=pod["metadata"].get("creationTimestamp") or "",
                title=f"{at}{labels.get('lwfed/step', 'step')} of {client}",
                stage_key=labels.get("lwfed/stage-key", ""),
            )
        )
    return sorted(found, key=lambda pod: (pod.created, pod.name))


def pod_log(cluster: Cluster, pod: ClientPod, *, follow: bool) -> Iterator[str]:
    """Yields the lines of a pod's log, as it writes them where it is followed.

    Raises:
        LwfedError: There is none, or the connection broke.
    """
    query = {"follow": "true"} if follow else {}
    yield from cluster.log_lines(pod.name, container=pod.container, **query)


def _clients_of_job(cluster: Cluster, job: str) -> tuple[str, ...]:
    """Reads whose pods a Job has; nothing where it is gone."""
    found = cluster.read_job(job)
    notes = (found or {"metadata": {}})["metadata"].get("annotations") or {}
    return tuple(filter(None, notes.get(CLIENTS_NOTE, "").split(",")))


def _why_waiting(cluster: Cluster, pod: Mapping[str, Any]) -> str | None:
    """Says why a pod of the pipeline does not start: its containers one by one, those that come before them too."""
    status = pod["status"]
    if status.get("phase", "Pending") != "Pending":
        return None
    told = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    flat = {**pod, "status": {**status, "containerStatuses": told}}
    names = [container["name"] for container in told] or [MAIN]
    found = [wait for name in names if (wait := reasons.waiting(flat, container=name))]
    if found:
        return min(found, key=lambda wait: wait.kind not in ("image", "config")).line
    try:
        events = cluster.events_of(str(pod["metadata"].get("uid")))
    except LwfedError:
        return None
    late = reasons.waiting(flat, container=MAIN, events=events)
    return late.line if late else None


def _labels(pod: Mapping[str, Any]) -> Mapping[str, str]:
    labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
    return labels
