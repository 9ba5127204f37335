"""Clients on machines of their owners, whose agents dial out to the store."""

from __future__ import annotations

from typing import Any

from lwfed.catalog.launcher import LauncherDescription


def check(spec: Any) -> None:
    """Raises ValueError if a client has several devices: an agent trains on one."""
    if spec.launch.devices > 1:
        raise ValueError("an agent trains on one device: set launch.devices=1, which affects digests")


def hears(spec: Any) -> bool:
    """Returns that all clients are agents."""
    return True


DESCRIPTION = LauncherDescription(remote=True, parallel=True, check=check, hears=hears)
