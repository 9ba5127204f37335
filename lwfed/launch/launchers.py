"""Picks the launcher that a spec names; only those of this machine load torch."""

from __future__ import annotations

from lwfed.run.launcher import Launcher
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store


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
    launch = spec.launch
    if launch.kind == "kubernetes":
        from lwfed.launch.kubernetes.launcher import KubernetesLauncher

        return KubernetesLauncher(spec, store=store, run_id=run_id)
    if launch.kind == "subprocess":
        from lwfed.launch.devices import check_devices, gpus_here
        from lwfed.launch.subprocess import Subprocess
        from lwfed.round.workbench import Workbench

        gpus = gpus_here(launch.device)
        check_devices(launch.devices, gpus=gpus)
        return Subprocess(
            Workbench(store), parallel=launch.parallel, devices=launch.devices, retries=launch.retries, gpus=gpus
        )  # fmt: skip
    from lwfed.launch.in_process import InProcess

    return InProcess(store)
