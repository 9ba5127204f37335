"""Clients in pods on a cluster."""

from __future__ import annotations

from typing import Any

from lwfed.catalog.launcher import LauncherDescription


def check(spec: Any) -> None:
    """Raises ValueError if pods have no image, or if a pool's number of GPUs is not its clients' number of devices."""
    if not spec.kubernetes.image:
        raise ValueError("`launch.kind` is kubernetes: set the pods' image in `kubernetes.image`")
    for pool in spec.kubernetes.pools:
        if pool.remote and spec.launch.devices > 1:
            raise ValueError(f"`kubernetes.pools` {pool.name} is remote, and an agent trains on one device")
        if not pool.remote and max(pool.gpus, 1) != spec.launch.devices:
            raise ValueError(
                f"`kubernetes.pools` {pool.name} has {pool.gpus} GPUs and `launch.devices` is "
                f"{spec.launch.devices}: set launch.devices={max(pool.gpus, 1)}, which affects digests"
            )


def hears(spec: Any) -> bool:
    """Returns whether all clients are agents: their pools are remote, or their pods stay."""
    return all(pool.remote or pool.resident == "stage" for pool in spec.kubernetes.pools)


DESCRIPTION = LauncherDescription(remote=True, parallel=True, check=check, hears=hears)
