"""The launcher whose clients are agents that others have started, and what any launcher needs to ask agents.

Only the launcher itself loads torch, since it aggregates and evaluates in its process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwfed.store import paths
from lwfed.store.opening import open_store

if TYPE_CHECKING:
    from lwfed.run.launcher import Launcher
    from lwfed.spec.run import RunSpec
    from lwfed.store.protocol import Store


def make(spec: RunSpec, *, store: Store, run_id: str) -> Launcher:
    """Makes the launcher; see `launchers.make_launcher`."""
    from lwfed.launch.agents.launcher import AgentsLauncher

    return AgentsLauncher(spec, store=store, run_id=run_id)


def end_run(spec: RunSpec, *, run_id: str) -> None:
    """Tells a run's agents that it wants nothing more; see `launchers.end_run`."""
    open_store(spec.store.uri).delete(paths.wants(run_id))
