"""Makes the launcher that a spec names; only the launchers of this machine load torch.

The module of a launcher has a function `make`. That of a remote launcher, whose work may outlive the process that
started it, also has `end_run`. Both have the arguments of the functions here.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from lwfed.run.launcher import Launcher
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store


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
    launcher: Launcher = _module(spec).make(spec, store=store, run_id=run_id)
    return launcher


def end_run(spec: RunSpec, *, run_id: str) -> None:
    """Ends work that a run with a remote launcher may have left running, such as Jobs of a cluster.

    Raises:
        UnreachableError: The cluster does not answer, or denies access.
    """
    _module(spec).end_run(spec, run_id=run_id)


def _module(spec: RunSpec) -> ModuleType:
    return import_module(f"lwfed.launch.{spec.launch.kind}")
