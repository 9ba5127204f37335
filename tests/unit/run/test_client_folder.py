"""Laws of runs' folders on a volume: what was long unused goes, what a run may still need stays."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lwfed.launch.in_process import InProcess
from lwfed.round.evaluate_client import evaluate_client
from lwfed.round.train_client import train_client
from lwfed.run.client_folder import MARK, UNUSED_S, maintain_folder
from lwfed.run.launcher import Emit, Outcome
from lwfed.run.tasks import ClientTask, Place, PoolTask
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.types.errors import UnreachableError
from tests.tiny import begun, client_task, run_tiny

DAY_S = 24 * 3600.0


def made(volume: Path, run: str, *, unused_s: float, marked: bool = True, beat: Any = None) -> Path:
    """Makes a run's folder with a file in it, last used so long ago."""
    folder = volume / run
    (folder / "client-000" / "prefix").mkdir(parents=True)
    (folder / "client-000" / "prefix" / "tokens").write_bytes(b"0" * 1000)
    mark = folder / MARK
    if marked:
        mark.write_text(json.dumps({"run_id": run, "beat": beat}))
    for path in (mark, folder) if marked else (folder,):
        aged(path, unused_s)
    return folder


def aged(path: Path, unused_s: float) -> None:
    when = time.time() - unused_s
    os.utime(path, (when, when))


def task_of(volume: Path, store: Store, run: str = "mine") -> ClientTask:
    place = Place(device="cpu", cache=str(volume / run))
    return ClientTask(store=store.uri, run_id=run, stage_key="0" * 64, server_round=1, place=place, client="client-000")


def names(volume: Path) -> list[str]:
    return sorted(path.name for path in volume.iterdir())


def test_a_client_that_begins_a_round_removes_what_was_long_unused(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path / "store", "evaluation.holdout_fraction=0.25")
    volume = tmp_path / "volume"
    made(volume, "old", unused_s=UNUSED_S + DAY_S)
    made(volume, "recent", unused_s=UNUSED_S - DAY_S)
    made(volume, "mine", unused_s=UNUSED_S + DAY_S)
    made(volume, "photos", unused_s=100 * UNUSED_S, marked=False)
    task = client_task(bench, stage, "client-000", cache=str(volume / "mine"))
    train_client(task, bench=bench)
    assert names(volume) == ["mine", "photos", "recent"]
    assert (volume / "mine" / "client-000" / "prefix" / "tokens").is_file()
    aged(volume / "recent" / MARK, UNUSED_S + DAY_S)
    aged(volume / "mine" / MARK, UNUSED_S - DAY_S)
    evaluate_client(task.model_copy(update={"server_round": 0}), bench=bench)
    assert names(volume) == ["mine", "photos"]
    assert time.time() - (volume / "mine" / MARK).stat().st_mtime < DAY_S, "a round renews the mark"


def test_the_folder_of_a_run_whose_coordinator_lives_stays(tmp_path: Path) -> None:
    """Its clients on this volume were not drawn for long; the beat has changed since they marked the folder."""
    store, volume = LocalStore(tmp_path / "store"), tmp_path / "volume"
    store.write_ref(paths.heartbeat("long"), {"beat": 7, "by": "pod"})
    maintain_folder(task_of(volume, store, "long"), store=store)
    mark = volume / "long" / MARK
    for beat in (8, 9):
        aged(mark, UNUSED_S + DAY_S)
        store.write_ref(paths.heartbeat("long"), {"beat": beat, "by": "pod"})
        maintain_folder(task_of(volume, store), store=store)
        assert time.time() - mark.stat().st_mtime < DAY_S
    aged(mark, UNUSED_S + DAY_S)
    maintain_folder(task_of(volume, store), store=store)
    assert names(volume) == ["mine"], "no beat since"


class Silent(LocalStore):
    """A store that does not answer."""

    def read_ref(self, key: str) -> dict[str, Any] | None:
        raise UnreachableError("no answer")


def test_a_store_that_does_not_answer_removes_nothing(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    made(volume, "old", unused_s=UNUSED_S + DAY_S)
    for store, left in ((Silent(tmp_path / "store"), ["mine", "old"]), (LocalStore(tmp_path / "store"), ["mine"])):
        maintain_folder(task_of(volume, store), store=store)
        assert names(volume) == left


def test_what_a_killed_process_left_of_a_folder_is_removed_by_the_next(tmp_path: Path) -> None:
    store, volume = LocalStore(tmp_path / "store"), tmp_path / "volume"
    folder = made(volume, "old", unused_s=0.0)
    (folder / MARK).write_text("{")
    aged(folder / MARK, UNUSED_S + DAY_S)
    maintain_folder(task_of(volume, store), store=store)
    assert names(volume) == ["mine"]
    nowhere = task_of(volume, store).model_copy(update={"place": Place(device="cpu")})
    maintain_folder(nowhere, store=store)
    assert names(volume) == ["mine"]


@contextmanager
def as_user(number: int) -> Iterator[None]:
    """Works as a user whom nothing belongs to; a developer is one already."""
    if os.geteuid():
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_a_folder_of_somebody_else_is_named_with_whose_it_is_and_the_remedy(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    with tempfile.TemporaryDirectory() as made_here:
        volume = Path(made_here)
        volume.chmod(0o555)
        with as_user(65532):
            who = f"user {os.geteuid()} of groups"
            why = maintain_folder(task_of(volume, store), store=store)
            again = maintain_folder(task_of(volume, store), store=store)
        owner = f"{volume} belongs to user {os.geteuid()} and group {volume.stat().st_gid}, mode 0555"
        assert why is not None and why == again
        assert why.startswith(f"{volume}/mine/client-000 cannot be written: Permission denied for {who}")
        assert owner in why and "kubernetes.fs_group" in why.partition(" -> ")[2]
        volume.chmod(0o777)
        with as_user(65532):
            assert maintain_folder(task_of(volume, store), store=store) is None
            (volume / "mine/client-000").chmod(0o555)
            why = maintain_folder(task_of(volume, store), store=store)
        assert why is not None and "mine/client-000 belongs to user" in why, "made by a pod of another user"


class Misplaced(InProcess):
    """The launcher of this process; the second client's folder is none, as on a disk of somebody else."""

    def __init__(self, store: Store, *, cache: Path) -> None:
        super().__init__(store)
        self._cache = str(cache)

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        first, second = tasks
        there = second.model_copy(update={"place": second.place.model_copy(update={"cache": self._cache})})
        yield from super().clients(step, [first, there], deadline_s=deadline_s, emit=emit, need=need)


def test_a_client_that_keeps_nothing_says_why_and_its_coordinator_warns(tmp_path: Path) -> None:
    (tmp_path / "volume").write_text("a file")
    launcher = partial(Misplaced, cache=tmp_path / "volume/mine")
    done = run_tiny(tmp_path / "store", "exchange.upload=int8", "stages.rounds=[2,1]", launcher=launcher)
    clients = done.reported("round")[1]["clients"]
    assert clients["client-001"]["unkept"].endswith("volume/mine/client-001 cannot be written: Not a directory")
    assert "unkept" not in clients["client-000"]
    warnings = [values["message"] for values in done.reported("warning")]
    assert any(line.startswith("1 client(s) keep nothing") and "client-001: " in line for line in warnings)
