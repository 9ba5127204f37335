"""Jobs of a run: one that another coordinator began is taken over, else one is made; each under the next free name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lwfed import environment
from lwfed.launch.kubernetes.api import PATIENCE_S, Cluster, current_namespace
from lwfed.launch.kubernetes.manifests import Surroundings, Work, job
from lwfed.launch.kubernetes.names import (
    TASKS_NOTE,
    TEMPLATE_NOTE,
    call_labels,
    clients_of,
    covers,
    job_name,
    run_selector,
    selector,
    task_list,
)  # fmt: skip
from lwfed.launch.kubernetes.reasons import job_end
from lwfed.run.tasks import PoolTask, ServerTask
from lwfed.spec.kubernetes import KubernetesSpec, PoolSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.canonical import digest_of
from lwfed.types.errors import LwfedError

POOL_LABEL = "lwfed/pool"
NAME_TRIES = 20
CLEAN_UP_S = 5.0
"""Seconds for which the API is asked to remove a Job: one that stays ends by its deadline or without a heartbeat."""

_ATTEMPT = re.compile(r"-a(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one call of the launcher asks for; all its Jobs are made alike.

    Attributes:
        step: What the pods run.
        labels: Labels that select all its Jobs and pods.
        deadline_s: Seconds it may take; None: as long as it takes.
    """

    step: str
    labels: Mapping[str, str]
    deadline_s: float | None = None

    @property
    def selector(self) -> str:
        """Selects its Jobs and pods."""
        return selector(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A Job that works for a call.

    Attributes:
        name: Its name.
        uid: Its identity.
        clients: Its clients by index; those of no concern to the call among them.
        adopted: Whether another coordinator made it.
    """

    name: str
    uid: str
    clients: tuple[str, ...]
    adopted: bool


class Jobs:
    """Makes, takes over and removes the Jobs of a run.

    Args:
        settings: Pods and Jobs.
        cluster: Where.
        store: Holds their lists of tasks.
        run_id: The run; it names them.
        around: What the coordinator adds to them.
    """

    def __init__(
        self, settings: KubernetesSpec, *, cluster: Cluster, store: Store, run_id: str, around: Surroundings
    ) -> None:
        self._settings, self._cluster, self._store = settings, cluster, store
        self._run_id, self._around = run_id, around

    def call(self, step: str, task: PoolTask | ServerTask, *, deadline_s: float | None) -> Call:
        """Returns a call; `task` is one of its tasks."""
        return Call(step=step, labels=call_labels(step, task, run_id=self._run_id), deadline_s=deadline_s)

    def begin(self, call: Call, pool: PoolSpec, tasks: Sequence[PoolTask | ServerTask]) -> Begun:
        """Has a pool work on some tasks: by a Job that does so already, else by a new one.

        A Job that is over, or that was made from other tasks or another template, is not taken over; the latter is
        removed.

        Raises:
            SpecError: The cluster takes the Job for wrong.
            UnreachableError: It does not answer, or does not let us.
        """
        wanted = self._list_of(call, tasks)
        number = 1
        for value in self._found(call, pool):
            number = max(number, _attempt_of(value) + 1)
            if _is_over(value):
                continue
            begun = self._adopted(value, wanted, template=self._template(call, pool, wanted))
            if begun is not None:
                return begun
            self._cluster.delete_job(value["metadata"]["name"], uid=value["metadata"]["uid"])
        for attempt in range(number, number + NAME_TRIES):
            name = job_name(call.step, tasks[0], run_id=self._run_id, pool=pool.name, attempt=attempt)
            if not self._listed(name, wanted):
                continue
            manifest = job(self._work(call, pool, wanted, name=name), pool, self._settings, around=self._around)
            made = self._cluster.create_job(manifest)
            if made is not None:
                uid = str(made["metadata"]["uid"])
                return Begun(name=name, uid=uid, clients=clients_of(wanted), adopted=False)
            there = self._cluster.read_job(name)  # made in this moment, by a request that seemed lost or by another
            if there is not None and not _is_over(there):
                begun = self._adopted(there, wanted, template=manifest["metadata"]["annotations"][TEMPLATE_NOTE])
                if begun is not None:
                    return replace(begun, adopted=False)
        raise LwfedError(
            f"no name is free for a Job of {call.step}, {name} being the last tried",
            remedy=f"see: kubectl get jobs -n {self._settings.namespace} -l {call.selector}",
        )

    def end(self, begun: Begun) -> None:
        """Removes a Job and its pods; one that stays, since the API is away, ends by itself."""
        with suppress(LwfedError):
            self._cluster.delete_job(begun.name, uid=begun.uid, patience_s=CLEAN_UP_S)

    def forget(self, begun: Begun) -> None:
        """Removes the list of tasks of a Job whose pods have all started and ended."""
        with suppress(LwfedError):
            self._store.delete(paths.job(begun.name))

    def _listed(self, name: str, wanted: Mapping[str, Any]) -> bool:
        """Writes a Job's list, but never over one that pods read: equal stages of two runs ask for the same names."""
        key = paths.job(name)
        if self._store.write_ref(key, wanted, if_absent=True) or self._store.read_ref(key) == wanted:
            return True
        if self._cluster.read_job(name) is not None:
            return False
        self._store.write_ref(key, wanted)  # left by a Job that is gone
        return True

    def _list_of(self, call: Call, tasks: Sequence[PoolTask | ServerTask]) -> dict[str, Any]:
        settings = self._settings
        return task_list(
            call.step, tasks, run_id=self._run_id, heartbeat_s=settings.heartbeat_s,
            heartbeat_timeout_s=settings.heartbeat_timeout_s,
        )  # fmt: skip

    def _work(self, call: Call, pool: PoolSpec, wanted: Mapping[str, Any], *, name: str) -> Work:
        return Work(
            name=name,
            step=call.step,
            count=len(wanted["tasks"]),
            store=self._store.uri,
            digest=digest_of(wanted),
            labels={**call.labels, POOL_LABEL: pool.name},
            clients=clients_of(wanted),
            deadline_s=call.deadline_s,
        )

    def _template(self, call: Call, pool: PoolSpec, wanted: Mapping[str, Any]) -> str:
        made = job(self._work(call, pool, wanted, name="any"), pool, self._settings, around=self._around)
        return str(made["metadata"]["annotations"][TEMPLATE_NOTE])

    def _found(self, call: Call, pool: PoolSpec) -> Iterator[dict[str, Any]]:
        found = self._cluster.find(
            "jobs", patience_s=PATIENCE_S, labelSelector=f"{call.selector},{POOL_LABEL}={pool.name}"
        )
        yield from sorted(found.get("items") or (), key=_attempt_of, reverse=True)

    def _adopted(self, value: Mapping[str, Any], wanted: Mapping[str, Any], *, template: str) -> Begun | None:
        """Returns a Job as one to take over; None where it does other work, or does it differently."""
        metadata = value["metadata"]
        notes = metadata.get("annotations") or {}
        listed = self._store.read_ref(paths.job(metadata["name"]))
        if listed is None or notes.get(TEMPLATE_NOTE) != template or notes.get(TASKS_NOTE) != digest_of(listed):
            return None
        if not covers(listed, wanted):
            return None
        return Begun(name=metadata["name"], uid=metadata["uid"], clients=clients_of(listed), adopted=True)


def surroundings(cluster: Cluster, *, run_id: str) -> Surroundings:
    """Returns what this coordinator adds to its Jobs: their owner, and what pods know of the run.

    The owner is the controller of this pod (the workflow, or the coordinator's own Job), since a replacement of the
    pod has another identity; a bare pod owns its Jobs itself. Outside the cluster, or for Jobs of another namespace,
    nobody owns them.
    """
    env = environment.for_pods(run_id)
    name = environment.pod_name()
    if name is None or current_namespace() != cluster.namespace:
        return Surroundings(env=env)
    pod = cluster.read_pod(name, namespace=cluster.namespace)
    if pod is None:
        return Surroundings(env=env)
    itself = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"]}
    owners = pod["metadata"].get("ownerReferences") or ()
    controller = next((owner for owner in owners if owner.get("controller")), itself)
    return Surroundings(owner={key: controller[key] for key in ("apiVersion", "kind", "name", "uid")}, env=env)


def delete_run_jobs(cluster: Cluster, run_id: str) -> list[str]:
    """Removes all Jobs of a run and their pods, those that are over too. Returns their names."""
    names = []
    for value in cluster.find("jobs", patience_s=PATIENCE_S, labelSelector=run_selector(run_id)).get("items") or ():
        cluster.delete_job(value["metadata"]["name"], uid=value["metadata"]["uid"])
        names.append(str(value["metadata"]["name"]))
    return sorted(names)


def _attempt_of(value: Mapping[str, Any]) -> int:
    found = _ATTEMPT.search(value["metadata"]["name"])
    return int(found.group(1)) if found else 0


def _is_over(value: Mapping[str, Any]) -> bool:
    return job_end(value) is not None or value["metadata"].get("deletionTimestamp") is not None
