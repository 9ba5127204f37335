"""Builds a Job's manifest from a pool: pure, plain values, within the `restricted` Pod Security standard.

Fields are those of Kubernetes 1.29 and later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lwfed.launch.kubernetes.names import CLIENTS_NOTE, POOL_LABEL, TASKS_NOTE, TEMPLATE_NOTE, selector
from lwfed.spec.kubernetes import KubernetesSpec, PoolSpec, VolumeSpec
from lwfed.types.canonical import digest_of
from lwfed.types.errors import FINAL_CODES, CoordinatorGoneError

CONTAINER = "lwfed"
SLACK_S = 120
"""Seconds between the coordinator's deadline and the Job's own, which counts when no coordinator is left."""
GRACE_S = 30
TRAINS = ("train-client",)
"""Steps that use all GPUs of a pod, through torchrun."""

STAYS = "agent"
"""What the pods of a Job run that stay for a stage."""

HOME: Mapping[str, str] = {
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "USER": "lwfed",  # the image's user is a bare number, and some libraries need a name
    "XDG_CACHE_HOME": "/tmp/.cache",
    "XDG_CONFIG_HOME": "/tmp/.config",
    "MPLCONFIGDIR": "/tmp/.config/matplotlib",
    "NUMBA_CACHE_DIR": "/tmp/.cache/numba",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/.cache/inductor",
    "TRITON_CACHE_DIR": "/tmp/.cache/triton",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""Environment for a read-only image: all files are written to /tmp, and output is not buffered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the launcher; its Jobs differ only in their pools.

    Attributes:
        step: The step that the pods run.
        labels: Labels that select all its Jobs and pods.
        deadline_s: Seconds it may take; None: no limit.
    """

    step: str
    labels: Mapping[str, str]
    deadline_s: float | None = None

    @property
    def selector(self) -> str:
        """The label selector of its Jobs and pods."""
        return selector(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of a Job.

    Attributes:
        name: The name of the Job and of its task list in the store.
        call: The call.
        clients: Its clients by index, one pod each; also an annotation for people and `lwfed logs`.
        store: URI of the store.
        digest: Digest of its task list.
    """

    name: str
    call: Call
    clients: tuple[str, ...]
    store: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """What the coordinator adds to each of its Jobs.

    Attributes:
        owner: The owner of Jobs, as in a Job's `ownerReferences`; None: no owner.
        env: Environment to pass on; a pool's own variables override it.
    """

    owner: Mapping[str, Any] | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def job(work: Work, pool: PoolSpec, spec: KubernetesSpec, *, context: JobContext) -> dict[str, Any]:
    """Returns the manifest of a Job: one index per task, each with its own retries."""
    count, deadline_s = len(work.clients), work.call.deadline_s
    labels = {**work.call.labels, POOL_LABEL: pool.name}
    queue = {"kueue.x-k8s.io/queue-name": spec.queue} if spec.queue else {}
    values: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": min(count, pool.parallel or count),
        "backoffLimitPerIndex": spec.retries,
        "podFailurePolicy": {"rules": _failure_rules()},
        "podReplacementPolicy": "Failed",  # never two pods of one client
        "ttlSecondsAfterFinished": spec.job_ttl_s,
        "suspend": True if spec.queue else None,  # Kueue resumes it
        "activeDeadlineSeconds": None if deadline_s is None else math.ceil(deadline_s) + SLACK_S,
        "template": _pod(work, pool, spec, labels=labels, env=context.env),
    }
    settings = pruned(values)
    metadata: dict[str, Any] = {
        "name": work.name,
        "namespace": spec.namespace,
        "labels": labels | queue,
        "annotations": {
            TASKS_NOTE: work.digest,
            CLIENTS_NOTE: ",".join(work.clients),
            TEMPLATE_NOTE: template_digest(settings),
            "sidecar.istio.io/inject": "false",
        },
        "ownerReferences": [dict(context.owner)] if context.owner else None,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": pruned(metadata), "spec": settings}


def template_digest(settings: Mapping[str, Any]) -> str:
    """Returns the digest of what decides how a Job's pods run: its spec without the call's names and times."""
    spec = {key: value for key, value in settings.items() if key not in ("activeDeadlineSeconds", "completions")}
    template = {**spec["template"], "metadata": {}}
    command = {**template["spec"]["containers"][0], "command": []}
    template["spec"] = {**template["spec"], "containers": [command]}
    return digest_of({**spec, "parallelism": None, "template": template})


def pruned(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drops values that are None or empty collections, so that the cluster's defaults apply."""
    return {key: value for key, value in values.items() if value is not None and value not in ({}, [], ())}


def _failure_rules() -> list[dict[str, Any]]:
    """Ignores preemption and drains, and makes some exit codes final. A kill (137) has many causes: it is not final."""

    def on_codes(action: str, codes: Sequence[int]) -> dict[str, Any]:
        wanted = {"containerName": CONTAINER, "operator": "In", "values": sorted(codes)}
        return {"action": action, "onExitCodes": wanted}

    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    return [
        {"action": "Ignore", "onPodConditions": disrupted},
        on_codes("FailJob", [CoordinatorGoneError.exit_code]),
        on_codes("FailIndex", sorted(FINAL_CODES)),
    ]


def _pod(
    work: Work, pool: PoolSpec, spec: KubernetesSpec, *, labels: Mapping[str, str], env: Mapping[str, str]
) -> dict[str, Any]:
    volumes, mounts = _volumes(pool)
    secret = pool.secret or spec.secret
    container = {
        "name": CONTAINER,
        "image": pool.image or spec.image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": _command(work, pool),
        "env": _env(pool, spec, env),
        "envFrom": [{"secretRef": {"name": secret}}] if secret else None,
        "resources": _resources(pool),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    user = spec.run_as_user
    security = {
        "runAsNonRoot": user != 0,
        "runAsUser": user,
        "fsGroup": spec.fs_group,
        "fsGroupChangePolicy": "OnRootMismatch" if spec.fs_group else None,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    values = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "serviceAccountName": pool.service_account or spec.service_account,
        "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
        "priorityClassName": pool.priority_class or spec.priority_class,
        "runtimeClassName": pool.runtime_class,
        "nodeSelector": dict(pool.node_selector),
        "tolerations": [dict(toleration) for toleration in pool.tolerations],
        "affinity": pool.affinity,
        "securityContext": pruned(security),
        "containers": [pruned(container)],
        "volumes": volumes,
    }
    mesh_off = {"sidecar.istio.io/inject": "false"}  # a sidecar would keep the pod running
    return {
        "metadata": {"labels": {**labels, **mesh_off}, "annotations": mesh_off},
        "spec": pruned(values),
    }


def _command(work: Work, pool: PoolSpec) -> list[str]:
    where = ["--store", work.store, "--job", work.name, "--json"]
    if work.call.step == STAYS:
        return ["lwfed", "agent", *where]
    step = ["step", work.call.step, *where]
    if pool.gpus > 1 and work.call.step in TRAINS:
        run = ["python", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={pool.gpus}"]
        return [*run, "-m", "lwfed", *step]
    return ["lwfed", *step]


def _env(pool: PoolSpec, spec: KubernetesSpec, passed_on: Mapping[str, str]) -> list[dict[str, Any]]:
    # CUDA images expose all of a node's GPUs to a pod that requests none
    hidden = {} if pool.gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}
    plain = {**HOME, **hidden, **passed_on, **spec.env, **pool.env}
    fields = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid"}
    return [
        *({"name": name, "value": value} for name, value in sorted(plain.items())),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
    ]


def _resources(pool: PoolSpec) -> dict[str, Any]:
    gpus = {pool.gpu_resource: str(pool.gpus)} if pool.gpus else {}
    requests = {
        "cpu": pool.cpu or "1",
        "memory": pool.memory,
        "ephemeral-storage": pool.ephemeral_storage,
        **gpus,
    }
    limits = {"cpu": pool.cpu_limit, "memory": pool.memory_limit or pool.memory, **gpus}
    return pruned({"requests": pruned(requests), "limits": pruned(limits)})


def _volumes(pool: PoolSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns a pod's volumes and its container's mounts."""
    volumes: list[dict[str, Any]] = [{"name": "lwfed-tmp", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": "lwfed-tmp", "mountPath": "/tmp"}]
    shm = pool.shm or ("1Gi" if pool.gpus else None)
    if shm:
        volumes.append({"name": "lwfed-shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}})
        mounts.append({"name": "lwfed-shm", "mountPath": "/dev/shm"})
    written = {volume.name for volume in pool.volumes if not volume.read_only}
    named: set[str] = set()
    for volume in pool.volumes:
        if volume.name not in named:  # one volume may be mounted at several places
            volumes.append({"name": volume.name, **_source(volume, read_only=volume.name not in written)})
            named.add(volume.name)
        read_only = volume.read_only and volume.empty_dir is None
        mount = {"name": volume.name, "mountPath": volume.mount_path, "subPath": volume.sub_path}
        mounts.append(pruned({**mount, "readOnly": True if read_only else None}))
    return volumes, mounts


def _source(volume: VolumeSpec, *, read_only: bool) -> dict[str, Any]:
    if volume.claim is not None:  # a read-only claim, so that fsGroup does not change the data's files
        claim = {"claimName": volume.claim, "readOnly": True if read_only else None}
        return {"persistentVolumeClaim": pruned(claim)}
    if volume.host_path is not None:
        return {"hostPath": {"path": volume.host_path}}
    if volume.config_map is not None:
        return {"configMap": {"name": volume.config_map}}
    if volume.secret is not None:
        return {"secret": {"secretName": volume.secret}}
    return {"emptyDir": {"sizeLimit": volume.empty_dir} if volume.empty_dir else {}}
