"""Clients one after another in this process."""

from lwfed.catalog.launcher import LauncherDescription

DESCRIPTION = LauncherDescription(remote=False, parallel=False, holds_updates=True)
