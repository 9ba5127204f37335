"""Clients in processes on this machine."""

from lwfed.catalog.launcher import LauncherDescription

DESCRIPTION = LauncherDescription(remote=False, parallel=True)
