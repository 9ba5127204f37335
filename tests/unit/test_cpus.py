"""Laws of how many CPUs a process may use: the lowest limit counts, wherever it is set."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lwfed.cpus import cgroup_quota, limits, usable
from lwfed.types.errors import SpecError

POD = "/kubepods/pod1/c1"


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LWFED_CPUS", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def proc_of(folder: Path, *, group: str, mount: str, files: dict[str, str]) -> Path:
    """Makes a process's `cgroup` and `mountinfo`, and the files of its cgroups; `{at}` stands for the mount's place."""
    at = folder / "cgroup fs"
    for name, content in files.items():
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    proc = folder / "self"
    proc.mkdir()
    (proc / "cgroup").write_text(group)
    escaped = str(at).replace(" ", "\\040")
    mounts = f"23 1 8:1 / / rw - ext4 /dev/sda rw\n{mount.format(at=escaped)}\n24 1 0:9 / /x rw - none\n"
    (proc / "mountinfo").write_bytes(b"22 1 8:2 / /mnt/\xff\\134 rw - ext4 /dev/\xfc rw\n" + mounts.encode())
    return proc


V1 = "32 31 0:29 {root} {{at}} rw,relatime shared:9 - cgroup cgroup rw,{controllers}"
V2 = "41 31 0:38 {root} {{at}} rw,relatime - cgroup2 cgroup2 rw"


def v1(quota: int, *, at: str = "") -> dict[str, str]:
    return {f"{at}cpu.cfs_quota_us": f"{quota}\n", f"{at}cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("group", "mount", "files", "expected"),
    [
        ("0::/\n", V2.format(root="/"), {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", V2.format(root="/"), {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", V2.format(root="/"), {}, None),
        ("0::/a/b\n", V2.format(root="/"), {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", V2.format(root="/"), {"a/b/cpu.max": "20000 10000", "a/cpu.max": "400000 100000"}, 2.0),
        (f"0::{POD}\n", V2.format(root=POD), {"cpu.max": "300000 100000"}, 3.0),
        ("0::/../other\n", V2.format(root="/"), {"cpu.max": "300000 100000"}, 3.0),
        ("0::/elsewhere\n", V2.format(root=POD), {"cpu.max": "300000 100000"}, 3.0),
        ("4:cpu,cpuacct:/a\n", V1.format(root="/", controllers="cpu,cpuacct"), v1(250000, at="a/"), 2.5),
        ("4:cpu:/a\n", V1.format(root="/", controllers="cpu"), v1(-1, at="a/"), None),
        ("4:cpu:/a\n", V1.format(root="/", controllers="cpuset"), v1(250000, at="a/"), None),
        (f"4:cpu:{POD}\n", V1.format(root=POD, controllers="cpu"), v1(50000), 0.5),
        ("4:cpu:/a\n0::/\n", V1.format(root="/", controllers="cpu"), v1(50000, at="a/"), 0.5),
        ("9:name=systemd:/\n", V1.format(root="/", controllers="name=systemd"), v1(50000), None),
    ],
)
def test_the_lowest_quota_of_a_cgroup_and_those_around_it_counts(
    tmp_path: Path, group: str, mount: str, files: dict[str, str], expected: float | None
) -> None:
    proc = proc_of(tmp_path, group=group, mount=mount, files=files)
    assert cgroup_quota(proc) == expected
    assert limits(proc).get("cgroup quota") == expected


def test_a_system_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None


@pytest.mark.parametrize(("named", "ranks", "expected"), [("1", "1", 1), ("1", "8", 1), ("100000", "100000", 1)])
def test_a_share_is_at_least_one(monkeypatch: pytest.MonkeyPatch, named: str, ranks: str, expected: int) -> None:
    monkeypatch.setenv("LWFED_CPUS", named)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert usable() == expected


def test_only_ranks_of_torchrun_share(monkeypatch: pytest.MonkeyPatch) -> None:
    before = usable()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert usable() == before


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_share_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LWFED_CPUS", text)
    with pytest.raises(SpecError, match="LWFED_CPUS"):
        usable()


PROGRAM = """
import os, sys
from lwfed import cpus
if sys.argv[1:]:
    open(sys.argv[1], "w").write(str(os.getpid()))
else:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(cpus.usable(), sorted(cpus.limits()))
"""


def printed(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinities")
def test_an_affinity_counts() -> None:
    assert printed().startswith("1 ")


@pytest.fixture
def half_a_cpu() -> Iterator[Path]:
    """A cgroup with a quota of half a CPU."""
    root = Path("/sys/fs/cgroup")
    of_v1 = (root / "cpu").is_dir()
    group = (root / "cpu" if of_v1 else root) / f"lwfed-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cgroups cannot be made here: {error}")
    try:
        try:
            (group / ("cpu.cfs_quota_us" if of_v1 else "cpu.max")).write_text("50000")
        except OSError as error:
            pytest.skip(f"no quota can be set here: {error}")
        yield group
    finally:
        with suppress(OSError):
            group.rmdir()


def test_a_real_quota_counts(half_a_cpu: Path) -> None:
    text = printed(str(half_a_cpu / "cgroup.procs"))
    assert text.startswith("1 ") and "cgroup quota" in text
