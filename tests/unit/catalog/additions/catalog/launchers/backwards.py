"""Clients in this process, the last one first."""

from lwfed.catalog.launcher import LauncherDescription

DESCRIPTION = LauncherDescription(remote=False, parallel=False)
