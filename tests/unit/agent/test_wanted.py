"""What an agent reads: one object per run, of runs that exist, whatever else is in their place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lwfed.agent import coordinator, wanted
from lwfed.agent.coordinator import Coordinator
from lwfed.agent.wanted import Wanted
from lwfed.run.agents import Wants
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import UnreachableError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted, "LIST_S", 0.0)


def write(store: LocalStore, run_id: str, call: str = "this", **values: object) -> None:
    store.write_ref(paths.wants(run_id), {"run_id": run_id, "call": call, **values})


def test_any_runs_wants_are_found_changed_and_forgotten(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    its = Wanted(store, None)
    its.look()
    assert its.current == {}
    write(store, "one", poll_s=0.5)
    write(store, "two", poll_s=0.25)
    its.look()
    assert set(its.current) == {"one", "two"} and its.poll_s == 0.25
    write(store, "one", call="next", poll_s=0.5)
    store.delete(paths.wants("two"))
    its.look()
    assert {run: wants.call for run, wants in its.current.items()} == {"one": "next"} and its.poll_s == 0.5


def test_one_run_alone_is_looked_at_if_it_is_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    its = Wanted(store, "two")
    write(store, "one")
    its.look()
    assert its.current == {}
    write(store, "two")
    its.look()
    assert set(its.current) == {"two"}


def test_what_is_no_request_is_none(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    its = Wanted(store, None)
    write(store, "sound")
    store.write_ref(paths.wants("foreign"), {"run_id": "another"})
    store.write_ref(paths.wants("odd"), {"run_id": "odd", "work": 7})
    store.write_ref(paths.wants(".hidden"), {"run_id": ".hidden"})
    (tmp_path / paths.wants("half")).write_text("{")
    its.look()
    assert set(its.current) == {"sound"}
    its.look()
    assert set(its.current) == {"sound"}


def test_a_store_that_is_gone_wants_nothing_less(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = LocalStore(root)
    write(store, "one")
    its = Wanted(store, None)
    its.look()
    root.rename(tmp_path / "away")
    with pytest.raises(UnreachableError, match="gone"):
        its.look()
    with pytest.raises(UnreachableError):
        its.look()
    assert set(its.current) == {"one"}, "the run is not over"
    assert not root.exists(), "nothing was made in its place"
    (tmp_path / "away").rename(root)
    its.look()
    assert set(its.current) == {"one"}


def test_a_coordinator_that_is_gone_is_told_once_and_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store, said = LocalStore(tmp_path), list[str]()
    wants = Wants(run_id="one", heartbeat_s=15, heartbeat_timeout_s=120)
    its = coordinator.Coordinator(store, say=said.append)

    def pass_time(seconds: float, *, beating: bool) -> None:
        nonlocal now
        for _ in range(int(seconds / 5)):
            now += 5
            if beating:
                store.write_ref(paths.heartbeat("one"), {"beat": now})
            its.watch(wants)

    pass_time(600, beating=True)
    assert not said
    pass_time(600, beating=False)
    assert len(said) == 1 and "no heartbeat from the coordinator of one" in said[0]
    pass_time(30, beating=True)
    assert len(said) == 2 and "is back" in said[1]


def test_a_store_that_was_away_is_no_coordinator_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store, said = LocalStore(tmp_path), list[str]()
    its = Coordinator(store, say=said.append)
    wants = Wants(run_id="one", heartbeat_s=15, heartbeat_timeout_s=120)
    store.write_ref(paths.heartbeat("one"), {"beat": 1})
    its.watch(wants)
    now += 20
    its.watch(wants)
    now += 3600  # no look succeeded meanwhile
    its.watch(wants)
    assert not said
