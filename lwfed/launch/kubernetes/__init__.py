"""The launcher that runs clients and the server as Jobs of a Kubernetes cluster."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lwfed.run.launcher import Launcher
    from lwfed.spec.run import RunSpec
    from lwfed.store.protocol import Store


def make(spec: RunSpec, *, store: Store, run_id: str) -> Launcher:
    """Makes the launcher; see `launchers.make_launcher`."""
    from lwfed.launch.kubernetes.launcher import KubernetesLauncher

    return KubernetesLauncher(spec, store=store, run_id=run_id)


def end_run(spec: RunSpec, *, run_id: str) -> None:
    """Tells a run's agents that it wants nothing more, and deletes its Jobs; see `launchers.end_run`."""
    from lwfed.launch import agents
    from lwfed.launch.kubernetes.api import connect
    from lwfed.launch.kubernetes.jobs import delete_run_jobs

    try:
        agents.end_run(spec, run_id=run_id)
    finally:  # Jobs end, too, if the store does not answer
        with closing(connect(spec.kubernetes.namespace)) as cluster:
            delete_run_jobs(cluster, run_id)
