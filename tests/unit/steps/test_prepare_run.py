"""A run that is prepared where its data are is the run that is prepared here; nobody else opens a client's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lwfed.launch.in_process import InProcess
from lwfed.run.launcher import Emit, Outcome
from lwfed.run.runs import Options
from lwfed.run.tasks import PoolTask
from lwfed.spec.load import build_spec
from lwfed.spec.run import RunSpec
from lwfed.steps.prepare import draft, prepare
from lwfed.steps.prepare_remote import prepare_remote
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.types.errors import DataError
from lwfed.types.records import RunRecord
from tests.e2e.own_data import AUDIO, IMAGE, write_advance, write_coco
from tests.tiny import VALUES, ignore

CLOCK = ("created",)


class Elsewhere(InProcess):
    """The launcher of this process, told to be another machine."""

    remote = True

    def __init__(self, store: Store, *, broken: str | None = None) -> None:
        super().__init__(store)
        self._broken = broken

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        for outcome in super().clients(step, tasks, deadline_s=deadline_s, emit=emit, need=need):
            broken = outcome.client == self._broken
            yield Outcome(outcome.client, 11, "the disk is not mounted") if broken else outcome


def there(spec: RunSpec, store: LocalStore, *, broken: str | None = None) -> dict[str, Any]:
    launcher = Elsewhere(store, broken=broken)
    return prepare_remote(spec, options=Options(run_id="r"), launcher=launcher, store=store, emit=ignore)


def here(spec: RunSpec, store: LocalStore) -> dict[str, Any]:
    return prepare(draft(spec, store=store, options=Options(run_id="r")), store=store, emit=ignore)


def without(run: RunRecord, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in run.to_values().items() if key not in keys}


def test_shared_data(tmp_path: Path) -> None:
    spec = build_spec({**VALUES, "store": {"uri": str(tmp_path)}})
    run = there(spec, LocalStore(tmp_path))
    assert run.to_values() == LocalStore(tmp_path).read_ref(paths.run("r"))
    (tmp_path / paths.run("r")).unlink()
    assert without(run, *CLOCK) == without(here(spec, LocalStore(tmp_path)), *CLOCK)


@pytest.fixture
def silos(tmp_path: Path) -> RunSpec:
    """Two silos and a server with images of their own, one of client-001's cut short; it is to be skipped."""
    for number, who in enumerate(("client-000", "client-001", "server")):
        write_coco(tmp_path / "data" / who, train=6 + 2 * number, test=6)
    broken = tmp_path / "data" / "client-001" / "train2017" / "000003.jpg"
    broken.write_bytes(broken.read_bytes()[:40])
    data = {"source": "coco", "root": str(tmp_path / "data" / "{client}"), "workers": 0, "on_bad_example": "skip"}
    federation = {"num_clients": 2, "partition": {"kind": "local"}}
    return build_spec({**VALUES, "data": data, "federation": federation, "store": {"uri": str(tmp_path / "store")}})


def test_data_that_only_clients_see(silos: RunSpec, tmp_path: Path) -> None:
    far, near = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "other")
    run, same = there(silos, far), here(silos, near)
    assert run.data == same.data
    assert run.data.clients == {"client-000": 6, "client-001": 7}
    told = far.read_ref(paths.client_data("r", "client-001"))
    assert len(told["bad"]) == 1 and "000003.jpg" in next(iter(told["bad"].values()))
    for key in near.list("data/"):
        if "train" in key and near.read_ref(key)["bad"]:
            assert far.read_ref(key)["bad"] == near.read_ref(key)["bad"]


@pytest.mark.parametrize("balanced", [True, False])
def test_classes_that_only_clients_see_are_counted_if_they_are_balanced(tmp_path: Path, balanced: bool) -> None:
    for number, who in enumerate(("client-000", "client-001", "server")):
        write_advance(tmp_path / "data" / who, pairs=4 + 4 * number)
    values = {**VALUES, "store": {"uri": str(tmp_path / "store")}}
    values["data"] = {
        "source": "advance",
        "root": str(tmp_path / "data" / "{client}"),
        "workers": 0,
        "test_fraction": 0.25,
    }
    values["federation"] = {"num_clients": 2, "partition": {"kind": "local"}}
    objective = {"kind": "supervised", "class_weights": "balanced" if balanced else None}
    values["model"] = {"encoders": {"image": IMAGE, "audio": AUDIO}, "objective": objective}
    spec = build_spec(values)
    far = LocalStore(tmp_path / "store")
    run, same = there(spec, far), here(spec, LocalStore(tmp_path / "other"))
    assert run.data == same.data
    told = far.read_ref(paths.client_data("r", "client-001"))
    assert ("class_counts" in told) is balanced
    if balanced:
        assert sum(run.data.class_counts) == sum(run.data.clients.values()) and len(set(run.data.class_counts)) == 1


def test_a_client_that_cannot_look_is_named(silos: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="client-001: the disk is not mounted"):
        there(silos, LocalStore(tmp_path / "store"), broken="client-001")


def test_data_that_are_not_there_are_named(silos: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "data" / "client-000").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="client-000"):
        there(silos, LocalStore(tmp_path / "store"))
