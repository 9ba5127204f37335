"""Where pods run: namespace, image, and the pools of clients that share a pod template.

None of it affects results, and none of it is part of a stage's plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lwfed.spec.base import Section
from lwfed.types.clients import WAYS, names_client
from lwfed.types.errors import SpecError

LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
QUANTITY = re.compile(r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$")


REMOTE_KEYS = frozenset({"name", "clients", "remote", "gflop_per_s"})
"""Keys of a pool whose clients' agents others start."""


class VolumeSpec(Section):
    """A volume of a pool's pods; exactly one of claim, host_path, config_map, secret and empty_dir."""

    name: str = Field(pattern=LABEL, max_length=40, description="its name in the pod")
    mount_path: str = Field(pattern="^/", description="its path in the pods")
    claim: str | None = Field(None, description="a PersistentVolumeClaim")
    host_path: str | None = Field(None, description="a folder on the node, such as a silo's own disk")
    config_map: str | None = Field(None, description="a ConfigMap")
    secret: str | None = Field(None, description="a Secret")
    empty_dir: str | None = Field(None, description='an empty folder that is removed with the pod: its size, or ""')
    sub_path: str | None = Field(None, description="a folder within the volume")
    read_only: bool = Field(True, description="whether pods can only read it")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = ("claim", "host_path", "config_map", "secret", "empty_dir")
        named = [source for source in sources if getattr(self, source) is not None]
        if len(named) != 1:
            raise ValueError(f"the volume `{self.name}` needs exactly one of {', '.join(sources)}")
        return self


class PoolSpec(Section):
    """Clients that share a pod template; a silo with its own data and credentials is a pool of one."""

    name: str = Field(pattern=LABEL, max_length=20, description="its name in Jobs and labels")
    clients: tuple[str, ...] = Field((), description=f"{WAYS}; empty: all clients that no other pool names")
    gpus: int = Field(0, ge=0, description="GPUs per pod; above 1 the client trains with torchrun")
    gpu_resource: str = Field("nvidia.com/gpu", description="the GPUs' resource name on the nodes")
    cpu: str | None = Field(None, description="requested CPUs; null: those of the stage task, else 1")
    memory: str | None = Field(None, description="requested memory; null: that of the stage task")
    cpu_limit: str | None = Field(None, description="limit of CPUs; null: none")
    memory_limit: str | None = Field(None, description="limit of memory; null: the request")
    ephemeral_storage: str | None = Field(None, description="requested disk space on the node")
    shm: str | None = Field(
        None, description="size of /dev/shm, which only NCCL needs; null: 1Gi with GPUs, else the node's default"
    )
    node_selector: dict[str, str] = Field({}, description="labels of the nodes that pods may run on")
    tolerations: tuple[dict[str, Any], ...] = Field((), description="taints that pods tolerate, in Kubernetes' format")
    affinity: dict[str, Any] | None = Field(None, description="affinity, in Kubernetes' format")
    volumes: tuple[VolumeSpec, ...] = Field((), description="volumes of its pods")
    data_root: str | None = Field(None, description="data.root in its pods; null: the spec's")
    cache: str | None = Field(
        None,
        description="a folder on a volume for files that clients need in the next round; it gets one folder per run",
    )
    secret: str | None = Field(None, description="Secret with its store credentials; null: kubernetes.secret")
    env: dict[str, str] = Field({}, description="environment of its pods, besides kubernetes.env")
    image: str | None = Field(None, description="image of its pods; null: kubernetes.image")
    service_account: str | None = Field(None, description="null: kubernetes.service_account")
    priority_class: str | None = Field(None, description="null: kubernetes.priority_class")
    runtime_class: str | None = Field(None, description="RuntimeClass of its pods")
    parallel: int | None = Field(None, ge=1, description="pods at a time; null: all")
    resident: Literal["round", "stage"] = Field(
        "round", description="how long pods stay; stage: each waits for its next round, and may serve several clients"
    )
    idle_s: float | None = Field(
        None, gt=0, description="seconds without work after which a pod that stays ends, and frees its GPU; null: never"
    )
    remote: bool = Field(
        False, description="its clients' owners run `lwfed agent` themselves: nothing is started for them"
    )
    gflop_per_s: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="what a client of it computes, in GFLOP per second: the first rounds' deadline with "
        "`federation.round_timeout_s: auto`; null: unknown",
    )

    @model_validator(mode="after")
    def _quantities(self) -> Self:
        for key in ("cpu", "memory", "cpu_limit", "memory_limit", "ephemeral_storage", "shm"):
            value = getattr(self, key)
            if value is not None and not QUANTITY.fullmatch(value):
                raise ValueError(f"`{key}` {value} is not a quantity: write 500m, 4, 8Gi ...")
        return self

    @model_validator(mode="after")
    def _stays_as_it_can(self) -> Self:
        stays = self.resident == "stage"
        if self.idle_s is not None and not stays:
            raise ValueError(f"`idle_s` of the pool {self.name} needs `resident: stage`")
        if stays and self.gpus > 1:
            raise ValueError(
                f"the pool {self.name} has {self.gpus} GPUs per client, and pods that stay train on one: "
                "set `resident: round`"
            )
        if self.remote:
            fields = type(self).model_fields
            odd = [key for key in fields if key not in REMOTE_KEYS and getattr(self, key) != fields[key].get_default()]
            if odd:
                raise ValueError(f"the pool {self.name} is remote and starts no pods: remove `{odd[0]}`")
        return self

    @model_validator(mode="after")
    def _cache_can_be_written(self) -> Self:
        cache = PurePosixPath(self.cache or "")
        above = [volume for volume in self.volumes if cache.is_relative_to(volume.mount_path)]
        nearest = max(above, key=lambda volume: len(volume.mount_path), default=None)
        if nearest is not None and nearest.read_only and nearest.empty_dir is None:
            raise ValueError(
                f"`cache` {self.cache} is on the volume `{nearest.name}`, which is read-only: set `read_only: false`"
            )
        return self


class CoordinatorSpec(Section):
    """The pod of a stage's coordinator: a small one on a CPU."""

    cpu: str = Field("500m", description="requested CPUs")
    memory: str = Field("2Gi", description="requested memory, and its limit")
    node_selector: dict[str, str] = Field({}, description="labels of the nodes that it may run on")
    tolerations: tuple[dict[str, Any], ...] = Field((), description="taints that it tolerates")


class KubernetesSpec(Section):
    """Pods and Jobs. Does not affect digests."""

    namespace: str = Field("kubeflow", pattern=LABEL, max_length=63, description="namespace of the Jobs")
    image: str = Field("", description="the image of all pods, preferably by digest: REPOSITORY@sha256:...")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field("IfNotPresent", description="when to pull")
    image_pull_secrets: tuple[str, ...] = Field((), description="Secrets for pulling images")
    service_account: str | None = Field(None, description="of client and server pods; it needs no permissions")
    secret: str | None = Field(
        None, description="Secret with environment variables for every pod: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3 ..."
    )
    env: dict[str, str] = Field({}, description="environment of every pod")
    queue: str | None = Field(None, description="Kueue LocalQueue of the Jobs")
    priority_class: str | None = Field(None, description="PriorityClass of client and server pods")
    run_as_user: int | None = Field(
        None, ge=0, description="numeric user of pods; null: the image's. 0 disables runAsNonRoot"
    )
    fs_group: int | None = Field(
        65532,
        ge=1,
        description="group that may write to the disks of `claim` volumes with `read_only: false` (fsGroup); null: the "
        "cluster's default, as on OpenShift",
    )
    retries: int = Field(2, ge=0, description="retries for a client within a Job (backoffLimitPerIndex)")
    attempts: int = Field(2, ge=1, description="Jobs for the same work, if one is lost or fails as a whole")
    job_ttl_s: int = Field(3600, ge=0, description="seconds after which finished Jobs are removed")
    pending_timeout_s: float = Field(600, gt=0, description="seconds to wait for a pod that cannot start")
    heartbeat_s: float = Field(15, gt=0, description="seconds between the coordinator's heartbeats")
    heartbeat_timeout_s: float = Field(120, gt=0, description="seconds without heartbeat until client pods stop")
    coordinator: CoordinatorSpec = CoordinatorSpec()
    server: PoolSpec = PoolSpec(name="server")
    pools: tuple[PoolSpec, ...] = Field((PoolSpec(name="clients"),), min_length=1, description="pools of clients")

    @model_validator(mode="after")
    def _pools_fit(self) -> Self:
        names = [pool.name for pool in (*self.pools, self.server)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two of `kubernetes.pools` and `kubernetes.server` have the name {name}")
        if self.server.remote:
            raise ValueError("`kubernetes.server.remote`: the coordinator starts the server's pod itself")
        if self.server.clients:
            raise ValueError("`kubernetes.server.clients`: the server's pool has no clients")
        if sum(not pool.clients for pool in self.pools) > 1:
            raise ValueError("only one of `kubernetes.pools` may leave out `clients`: the one for all other clients")
        if self.heartbeat_timeout_s < 2 * self.heartbeat_s:
            raise ValueError("`kubernetes.heartbeat_timeout_s` is less than two heartbeats: raise it")
        return self

    def pool_of(self, client: str) -> PoolSpec:
        """Returns the pool of a client: the first that names it, else the one without `clients`.

        Raises:
            SpecError: No pool matches the client.
        """
        for pool in self.pools:
            if any(names_client(name, client) for name in pool.clients):
                return pool
        for pool in self.pools:
            if not pool.clients:
                return pool
        raise SpecError(
            f"no pool in `kubernetes.pools` matches {client}", remedy="name it in one, or add a pool without `clients`"
        )

    def by_pool(self, clients: Iterable[str]) -> list[tuple[PoolSpec, list[str]]]:
        """Groups clients by pool, keeping the order of both. Raises SpecError as `pool_of` does."""
        names: dict[str, list[str]] = {}
        for client in clients:
            names.setdefault(self.pool_of(client).name, []).append(client)
        return [(pool, names[pool.name]) for pool in self.pools if pool.name in names]
