"""Clients as pods of a cluster."""

from __future__ import annotations

from typing import Any

from lwfed.catalog.launcher import LauncherDescription


def check(spec: Any) -> None:
    """Raises ValueError where pods have no image, or a pool's GPUs are not the devices of its clients."""
    if not spec.kubernetes.image:
        raise ValueError("`launch.kind` is kubernetes: name the image of the pods in `kubernetes.image`")
    for pool in spec.kubernetes.pools:
        if max(pool.gpus, 1) != spec.launch.devices:
            raise ValueError(
                f"`kubernetes.pools` {pool.name} has {pool.gpus} GPUs and `launch.devices` is "
                f"{spec.launch.devices}: set launch.devices={max(pool.gpus, 1)}, which a digest depends on"
            )


DESCRIPTION = LauncherDescription(remote=True, parallel=True, check=check)
