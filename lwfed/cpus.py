"""How many CPUs this process may use: fewer than the machine has under an affinity, a cgroup's quota or a share.

A container's limit of CPUs is a cgroup's quota, which neither `os.cpu_count` nor an affinity shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lwfed import environment

PROC = Path("/proc/self")


def usable() -> int:
    """Returns the number of CPUs that this process may use, at least 1: the lowest of `limits`, rounded down.

    The ranks of a client share it. No digest depends on it: `training.threads` is a part of the plan.
    """
    return max(1, int(min(limits().values()) / environment.num_ranks_here()))


def limits(proc: Path = PROC) -> dict[str, float]:
    """Returns what limits this process -> the number of CPUs that it leaves.

    Args:
        proc: The folder with the process's `cgroup` and `mountinfo`.

    Returns:
        `machine`, and `affinity`, `cgroup quota` and `LWFED_CPUS` where they apply.

    Raises:
        SpecError: `LWFED_CPUS` is not a number.
    """
    found: dict[str, float] = {"machine": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):  # also the effect of a cgroup's cpuset
        found["affinity"] = len(os.sched_getaffinity(0))
    quota = cgroup_quota(proc)
    if quota is not None:
        found["cgroup quota"] = quota
    named = environment.cpu_limit()
    if named is not None:
        found["LWFED_CPUS"] = named
    return found


def cgroup_quota(proc: Path = PROC) -> float | None:
    """Returns the lowest quota of a process's cgroups of version 1 or 2, in CPUs; None if there is none.

    Args:
        proc: The folder with the process's `cgroup` and `mountinfo`.
    """
    try:
        groups = (proc / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
        mounts = (proc / "mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    of = {version: PurePosixPath(path) for line in groups for version, path in _membership(line)}
    quotas = [
        quota
        for line in mounts
        for version, root, mount in _mount(line)
        if version in of
        for folder in _upwards(mount, of[version], root=root)
        if (quota := _quota(folder, version)) is not None
    ]
    return min(quotas, default=None)


def _membership(line: str) -> Iterator[tuple[int, str]]:
    """Yields the version and the path of a line of /proc/PID/cgroup, if its hierarchy may have CPU quotas."""
    _, controllers, path = line.split(":", 2)
    if not controllers:
        yield 2, path
    elif "cpu" in controllers.split(","):
        yield 1, path


def _mount(line: str) -> Iterator[tuple[int, PurePosixPath, Path]]:
    """Yields the version, root and place of a line of /proc/PID/mountinfo, if it mounts a hierarchy with CPU quotas."""
    left, _, right = line.partition(" - ")
    kind, _, options = [*right.split(), "", "", ""][:3]
    if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
        root, mount = (name.encode().decode("unicode_escape") for name in left.split()[3:5])
        yield 2 if kind == "cgroup2" else 1, PurePosixPath(root), Path(mount)


def _upwards(mount: Path, path: PurePosixPath, *, root: PurePosixPath) -> Iterator[Path]:
    """Yields the folders of a cgroup and of those around it, as far as the mount shows them."""
    inside = path.relative_to(root) if path.is_relative_to(root) and ".." not in path.parts else PurePosixPath()
    yield from (mount / part for part in (inside, *inside.parents) if part.parts)
    yield mount


def _quota(folder: Path, version: int) -> float | None:
    """Returns the quota of one cgroup in CPUs, or None."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # a root has no such files; `max` is no number
        return None
