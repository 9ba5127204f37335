"""Picks the launcher that a spec names."""

from __future__ import annotations

from lwfed.launch.in_process import InProcess
from lwfed.launch.subprocess import Subprocess
from lwfed.spec.federation import LaunchSpec
from lwfed.steps.launcher import Launcher
from lwfed.steps.workbench import Workbench


def make_launcher(spec: LaunchSpec, *, bench: Workbench) -> Launcher:
    """Makes the launcher of a spec.

    Args:
        spec: Kind, and how many clients and devices at a time.
        bench: The coordinator's bench.
    """
    if spec.kind == "subprocess":
        return Subprocess(bench, parallel=spec.parallel, devices=spec.devices, retries=spec.retries)
    return InProcess(bench)
