"""Makes the launcher that a spec names; only the launchers of this machine load torch."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from lwfed.run.launcher import Launcher
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store


class Local(Protocol):
    """The interface of a launcher's module."""

    def make(self, spec: RunSpec, *, store: Store, run_id: str) -> Launcher:
        """Makes the launcher; see `make_launcher`."""


class Remote(Local, Protocol):
    """The interface of a remote launcher's module; its work may outlive the process that started it."""

    def end_run(self, spec: RunSpec, *, run_id: str) -> None:
        """Ends a run's work that is still running; see `end_run`."""


def make_launcher(spec: RunSpec, *, store: Store, run_id: str) -> Launcher:
    """Makes the launcher of a spec.

    Args:
        spec: Names the kind of launcher and has its settings.
        store: The run's store.
        run_id: The run; Jobs carry its name.

    Raises:
        UnreachableError: No Kubernetes cluster answers.
        SpecError: A client needs more devices than this machine has GPUs.
    """
    return cast(Local, _module(spec)).make(spec, store=store, run_id=run_id)


def end_run(spec: RunSpec, *, run_id: str) -> None:
    """Ends work that a run with a remote launcher may have left running, such as Jobs of a cluster.

    Raises:
        UnreachableError: The cluster does not answer, or denies access.
    """
    cast(Remote, _module(spec)).end_run(spec, run_id=run_id)


def _module(spec: RunSpec) -> object:
    return import_module(f"lwfed.launch.{spec.launch.kind}")
