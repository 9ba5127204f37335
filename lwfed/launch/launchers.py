"""Opens the launcher that a spec names; only those of this machine load torch."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from lwfed.run.launcher import Launcher
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store


class Local(Protocol):
    """What the module of a launcher offers."""

    def make(self, spec: RunSpec, *, store: Store, run_id: str) -> Launcher:
        """Makes the launcher; see `make_launcher`."""


class Remote(Local, Protocol):
    """What the module of a remote launcher offers: its work may outlive the process that started it."""

    def end_run(self, spec: RunSpec, *, run_id: str) -> None:
        """Ends what a run left at work; see `end_run`."""


def make_launcher(spec: RunSpec, *, store: Store, run_id: str) -> Launcher:
    """Makes the launcher of a spec.

    Args:
        spec: Which kind, and what that needs.
        store: Where the run is.
        run_id: The run that is worked on; Jobs carry its name.

    Raises:
        UnreachableError: No Kubernetes cluster answers.
        SpecError: A client wants more devices than this machine has GPUs.
    """
    return cast(Local, _module(spec)).make(spec, store=store, run_id=run_id)


def end_run(spec: RunSpec, *, run_id: str) -> None:
    """Ends what a run with a remote launcher may have left at work, such as Jobs of a cluster.

    Raises:
        UnreachableError: The place does not answer, or does not let us.
    """
    cast(Remote, _module(spec)).end_run(spec, run_id=run_id)


def _module(spec: RunSpec) -> object:
    return import_module(f"lwfed.launch.{spec.launch.kind}")
