"""Picks the launcher that a spec names."""

from __future__ import annotations

from lwfed.launch.devices import check_devices, gpus_here
from lwfed.launch.in_process import InProcess
from lwfed.launch.subprocess import Subprocess
from lwfed.spec.run import RunSpec
from lwfed.steps.launcher import Launcher
from lwfed.steps.workbench import Workbench


def make_launcher(spec: RunSpec, *, bench: Workbench, run_id: str) -> Launcher:
    """Makes the launcher of a spec.

    Args:
        spec: Which kind, and what that needs.
        bench: The coordinator's bench.
        run_id: The run that is worked on; Jobs carry its name.

    Raises:
        UnreachableError: No Kubernetes cluster answers.
        SpecError: A client wants more devices than this machine has GPUs.
    """
    launch = spec.launch
    if launch.kind == "kubernetes":
        from lwfed.launch.kubernetes import KubernetesLauncher

        return KubernetesLauncher(spec, store=bench.store, run_id=run_id)
    if launch.kind == "subprocess":
        gpus = gpus_here(launch.device)
        check_devices(launch.devices, gpus=gpus)
        return Subprocess(
            bench, parallel=launch.parallel, devices=launch.devices, retries=launch.retries, gpus=gpus
        )  # fmt: skip
    return InProcess(bench)
