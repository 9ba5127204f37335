"""Passes the resources of a pipeline's task on to the clients' pods, unless their pools set their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lwfed.spec.kubernetes import KubernetesSpec, PoolSpec
from lwfed.spec.run import RunSpec


def with_resources(spec: RunSpec, resources: Mapping[str, Any] | None) -> RunSpec:
    """Returns a spec whose client pools take unset settings from the pipeline's task.

    Args:
        spec: The experiment.
        resources: A `dsl.TaskConfig` as plain values; None or empty values change nothing.
    """
    if not resources:
        return spec
    wanted = resources.get("resources") or {}
    if isinstance(wanted, str):
        wanted = json.loads(wanted)
    requests, limits = wanted.get("requests") or {}, wanted.get("limits") or {}
    accelerators = {name: int(count) for name, count in limits.items() if "/" in name}
    pools = []
    for pool in spec.kubernetes.pools:
        if pool.remote:
            pools.append(pool)
            continue
        own = pool.model_fields_set
        found: dict[str, Any] = {
            "cpu": requests.get("cpu"),
            "memory": requests.get("memory"),
            "cpu_limit": limits.get("cpu"),
            "memory_limit": limits.get("memory"),
            "gpus": next(iter(accelerators.values()), None),
            "gpu_resource": next(iter(accelerators), None),
            "node_selector": resources.get("node_selector") or None,
            "tolerations": resources.get("tolerations") or None,
            "affinity": resources.get("affinity") or None,
        }
        update = {key: value for key, value in found.items() if value is not None and key not in own}
        pools.append(PoolSpec.model_validate({**pool.model_dump(exclude_unset=True), **update}))
    values = {**spec.kubernetes.model_dump(exclude_unset=True), "pools": pools}
    return spec.model_copy(update={"kubernetes": KubernetesSpec.model_validate(values)})
