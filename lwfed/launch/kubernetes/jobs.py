"""Creates the Jobs of a run, each under the next free name, or takes over those that another coordinator created."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from lwfed import environment
from lwfed.launch.kubernetes.api import PATIENCE_S, Cluster, current_namespace
from lwfed.launch.kubernetes.manifests import STAYS, Call, JobContext, Work, job
from lwfed.launch.kubernetes.names import (
    POOL_LABEL,
    TASKS_NOTE,
    TEMPLATE_NOTE,
    clients_of,
    covers,
    job_name,
    run_selector,
    task_list,
)  # fmt: skip
from lwfed.launch.kubernetes.reasons import indexes, job_end
from lwfed.launch.kubernetes.state import JobHandle
from lwfed.run.tasks import AgentTask, PodTask
from lwfed.spec.kubernetes import KubernetesSpec, PoolSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.canonical import digest_of
from lwfed.types.errors import LwfedError

NAME_TRIES = 20
CLEAN_UP_S = 5.0
"""Seconds of retries to delete a Job: one that stays ends at its deadline, or when the heartbeat stops."""

_ATTEMPT = re.compile(r"-a(\d+)$")


class Jobs:
    """Creates, takes over and deletes the Jobs of a run.

    Args:
        settings: The settings of pods and Jobs.
        cluster: The cluster.
        store: Holds the Jobs' task lists.
        run_id: The run; Jobs are named after it.
        context: What the coordinator adds to each Job.
    """

    def __init__(
        self, settings: KubernetesSpec, *, cluster: Cluster, store: Store, run_id: str, context: JobContext
    ) -> None:
        self.settings, self.cluster, self._store = settings, cluster, store
        self._run_id, self._context = run_id, context

    def begin(self, call: Call, pool: PoolSpec, tasks: Sequence[PodTask]) -> JobHandle:
        """Returns a Job that works on tasks in a pool: an existing one if possible, else a new one.

        A Job that has ended, or that has other tasks or another template, is not taken over; in the second case it is
        deleted.

        Raises:
            SpecError: The cluster rejects the Job as invalid.
            UnreachableError: The cluster does not answer, or denies access.
        """
        wanted = task_list(call.step, tasks, run_id=self._run_id, settings=self.settings)
        work = Work(name="any", call=call, clients=clients_of(wanted), store=self._store.uri, digest=digest_of(wanted))
        manifest = partial(job, pool=pool, spec=self.settings, context=self._context)
        template = str(manifest(work)["metadata"]["annotations"][TEMPLATE_NOTE])
        number = 1
        labels = f"{call.selector},{POOL_LABEL}={pool.name}"
        found = self.cluster.find("jobs", patience_s=PATIENCE_S, labelSelector=labels)
        for value in sorted(found, key=_attempt_of, reverse=True):
            number = max(number, _attempt_of(value) + 1)
            if _is_over(value):
                continue
            if (handle := self._adopted(value, wanted, template=template)) is not None:
                return handle
            if isinstance(tasks[0], AgentTask) and not self._still_has(value, work.clients):
                continue  # other agents stay in it
            self.cluster.delete_job(value["metadata"]["name"], uid=value["metadata"]["uid"])
        for attempt in range(number, number + NAME_TRIES):
            name = job_name(call.step, tasks[0], run_id=self._run_id, pool=pool.name, attempt=attempt)
            if not self._listed(name, wanted):
                continue
            made = self.cluster.create_job(manifest(replace(work, name=name)))
            if made is not None:
                return JobHandle(name=name, uid=str(made["metadata"]["uid"]), clients=work.clients, adopted=False)
            there = self.cluster.read_job(name)  # just created, by a request that seemed lost or by another
            if there is not None and not _is_over(there):
                handle = self._adopted(there, wanted, template=template)
                if handle is not None:
                    return replace(handle, adopted=False)
        raise LwfedError(
            f"found no free name for a Job of {call.step}; the last one tried was {name}",
            remedy=f"list them: kubectl get jobs -n {self.settings.namespace} -l {call.selector}",
        )

    def end(self, handle: JobHandle) -> None:
        """Deletes a Job and its pods; if the API does not answer, the Job ends by itself."""
        with suppress(LwfedError):
            self.cluster.delete_job(handle.name, uid=handle.uid, patience_s=CLEAN_UP_S)

    def forget(self, handle: JobHandle) -> None:
        """Deletes the task list of a Job whose pods have all started and ended."""
        with suppress(LwfedError):
            self._store.delete(paths.job(handle.name))

    def _still_has(self, value: Mapping[str, Any], clients: Sequence[str]) -> bool:
        """Whether a Job may still run any of these clients."""
        listed = self._store.read_ref(paths.job(value["metadata"]["name"]))
        if listed is None:
            return True
        return bool(set(clients) & (set(clients_of(listed)) - _ended_in(value, listed)))

    def _listed(self, name: str, wanted: Mapping[str, Any]) -> bool:
        """Writes a Job's task list unless pods read another one there: equal stages of two runs want the same names."""
        key = paths.job(name)
        if self._store.write_ref(key, wanted, if_absent=True) or self._store.read_ref(key) == wanted:
            return True
        if self.cluster.read_job(name) is not None:
            return False
        self._store.write_ref(key, wanted)  # left by a Job that is gone
        return True

    def _adopted(self, value: Mapping[str, Any], wanted: Mapping[str, Any], *, template: str) -> JobHandle | None:
        """Returns a handle of a Job to take over; None if the Job has other tasks or another template."""
        metadata = value["metadata"]
        notes = metadata.get("annotations") or {}
        listed = self._store.read_ref(paths.job(metadata["name"]))
        if listed is None or notes.get(TEMPLATE_NOTE) != template or notes.get(TASKS_NOTE) != digest_of(listed):
            return None
        gone = _ended_in(value, listed) if wanted["step"] == STAYS else set()
        if not covers(listed, wanted) or gone & set(clients_of(wanted)):
            return None
        return JobHandle(name=metadata["name"], uid=metadata["uid"], clients=clients_of(listed), adopted=True)


def job_context(cluster: Cluster, *, run_id: str) -> JobContext:
    """Returns what this coordinator adds to its Jobs: their owner and the environment of their pods.

    The owner is the controller of this pod (the workflow, or the coordinator's own Job), since a replacement of the
    pod has another UID; a bare pod owns its Jobs itself. Outside the cluster, and in another namespace than the Jobs',
    there is no owner.
    """
    env = environment.for_pods(run_id)
    name = environment.pod_name()
    pod = cluster.read_pod(name) if name is not None and current_namespace() == cluster.namespace else None
    if pod is None:
        return JobContext(env=env)
    itself = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"]}
    owners = pod["metadata"].get("ownerReferences") or ()
    controller = next((owner for owner in owners if owner.get("controller")), itself)
    return JobContext(owner={key: controller[key] for key in ("apiVersion", "kind", "name", "uid")}, env=env)


def delete_run_jobs(cluster: Cluster, run_id: str) -> list[str]:
    """Deletes all Jobs of a run and their pods, including those that have ended. Returns their names."""
    names = []
    for value in cluster.find("jobs", patience_s=PATIENCE_S, labelSelector=run_selector(run_id)):
        cluster.delete_job(value["metadata"]["name"], uid=value["metadata"]["uid"])
        names.append(str(value["metadata"]["name"]))
    return sorted(names)


def _attempt_of(value: Mapping[str, Any]) -> int:
    found = _ATTEMPT.search(value["metadata"]["name"])
    return int(found.group(1)) if found else 0


def _ended_in(value: Mapping[str, Any], listed: Mapping[str, Any]) -> set[str]:
    """Returns the clients of a Job whose pods have succeeded, which it never starts again."""
    done = indexes((value.get("status") or {}).get("completedIndexes"))
    return {client for index, client in enumerate(clients_of(listed)) if index in done}


def _is_over(value: Mapping[str, Any]) -> bool:
    return job_end(value) is not None or value["metadata"].get("deletionTimestamp") is not None
