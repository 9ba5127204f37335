"""Laws of sharing a machine's GPUs out among slots."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lwfed import environment
from lwfed.launch import subprocess
from lwfed.launch.launchers import make_launcher
from lwfed.launch.subprocess import gpus_here, gpus_of, names_of
from lwfed.round.workbench import Workbench
from lwfed.run.launcher import Launcher
from lwfed.spec.federation import LaunchSpec
from lwfed.spec.run import RunSpec
from lwfed.store.local import LocalStore
from lwfed.types.errors import SpecError

SIZES = [(count, devices) for count in range(1, 9) for devices in range(1, count + 1)]
"""(GPUs of a machine, devices a client)."""


def machine(count: int) -> tuple[str, ...]:
    return names_of(count, named=None)


@pytest.mark.parametrize(("count", "devices"), SIZES)
def test_a_slot_has_as_many_gpus_as_a_client_wants_and_none_twice(count: int, devices: int) -> None:
    for slot in range(3 * count):
        own = gpus_of(slot, devices=devices, gpus=machine(count))
        assert len(own) == len(set(own)) == devices and set(own) <= set(machine(count))


@pytest.mark.parametrize(("count", "devices"), SIZES)
def test_slots_share_nothing_while_there_are_gpus_for_all_and_take_turns_beyond(count: int, devices: int) -> None:
    for parallel in range(1, 3 * count + 1):
        taken = Counter(gpu for slot in range(parallel) for gpu in gpus_of(slot, devices=devices, gpus=machine(count)))
        loads = [taken[gpu] for gpu in machine(count)]
        assert max(loads) - min(loads) <= 1, "no GPU has two clients more than another"
        if parallel * devices <= count:
            assert max(loads) == 1


def test_a_slot_has_its_neighbours_gpus_next_to_it() -> None:
    assert [gpus_of(slot, devices=2, gpus=machine(4)) for slot in range(3)] == [("0", "1"), ("2", "3"), ("0", "1")]
    assert [gpus_of(slot, devices=2, gpus=machine(3)) for slot in range(3)] == [("0", "1"), ("2", "0"), ("1", "2")]


def test_without_gpus_nothing_is_said_of_them() -> None:
    assert gpus_of(3, devices=2, gpus=()) == () and environment.only_gpus(()) == {}


def test_names_are_those_that_this_process_was_given_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, names in (
        ("3,5", ("3", "5")),
        (" GPU-8932f937, GPU-0a1b ", ("GPU-8932f937", "GPU-0a1b")),
        ("2,-1,0", ("2",)),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert names_of(len(names), named=environment.named_gpus()) == names
    for text in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert gpus_here("auto") == ()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment.named_gpus() is None and names_of(2, named=None) == ("0", "1")
    assert environment.only_gpus(("GPU-0a1b", "3")) == {"CUDA_VISIBLE_DEVICES": "GPU-0a1b,3"}


def test_counting_takes_no_gpu() -> None:
    before = torch.cuda.is_initialized()
    assert gpus_here("cpu") == () and len(gpus_here("auto")) == torch.cuda.device_count()
    assert torch.cuda.is_initialized() == before


def test_a_run_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "gpus_here", lambda device: () if device == "cpu" else machine(2))
    bench = Workbench(LocalStore(tmp_path))

    def launcher(**launch: Any) -> Launcher:
        return make_launcher(RunSpec(launch=LaunchSpec(kind="subprocess", **launch)), store=bench.store, run_id="r")

    with pytest.raises(SpecError, match=r"`launch\.devices` is 3 and this process sees 2 GPU\(s\): 0, 1 -> set launch"):
        launcher(devices=3)
    launcher(devices=3, device="cpu").close()
    launcher(devices=2, parallel=5).close()
