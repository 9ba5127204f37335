"""Whole runs where there is almost no shared memory, and with fewer CPUs than the machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import AUDIO, IMAGE, committed, environment, lwfed, succeed, write_spec

SMALL_SHM = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "
ENCODERS = {"image": IMAGE, "audio": AUDIO}


def with_little_shared_memory(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command where /dev/shm has 64 kB, less than a batch of sounds."""
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", SMALL_SHM + '"$@"', "sh", *map(str, command)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_workers_need_no_shared_memory(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or with_little_shared_memory("true", cwd=tmp_path).returncode:
        pytest.skip("this user may not mount a small /dev/shm (unshare -m)")
    spec = write_spec(tmp_path, model__encoders=ENCODERS, data__augment=True, stages__rounds=[1, 0])
    alone = succeed("run", spec, "--json", "-o", "store.uri=whole", cwd=tmp_path)
    for kind in ("in_process", "subprocess"):
        options = [
            word for option in ("data.workers=2", f"launch.kind={kind}", f"store.uri={kind}") for word in ("-o", option)
        ]
        ended = with_little_shared_memory(sys.executable, "-m", "lwfed", "run", spec, "--json", *options, cwd=tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert f'"digest": "{alone.json["digest"]}"' in ended.stdout


def test_digests_do_not_depend_on_the_number_of_cpus(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, training__threads=2, data__workers=2, stages__rounds=[1, 0])
    digests = {
        succeed("run", spec, "--json", "-o", f"store.uri=with-{name}", cwd=tmp_path, **variables).json["digest"]
        for name, variables in {
            "one": {"LWFED_CPUS": "1", "OMP_NUM_THREADS": "8"},
            "all": {"OMP_NUM_THREADS": str(os.cpu_count())},
        }.items()
    }
    assert len(digests) == 1


def test_a_number_of_cpus_that_is_none_ends_a_run_before_its_first_round(tmp_path: Path) -> None:
    ended = lwfed("run", write_spec(tmp_path), cwd=tmp_path, LWFED_CPUS="many")
    assert not committed(tmp_path / "lwfed-runs", "rounds/*/updates/*/*")
    assert ended.code == 10 and "LWFED_CPUS" in ended.errors[0]
