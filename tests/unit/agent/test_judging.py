"""A policy's judge: a task's place is never its own, others' work and other code are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lwfed.agent.judging import PlaceJudge, PolicyJudge
from lwfed.agent.policy import Policy
from lwfed.round.workbench import Workbench
from lwfed.run import runs
from lwfed.run.agents import Wants
from lwfed.run.tasks import ClientTask, InspectTask, Place, RoundTask
from lwfed.spec.load import to_values
from lwfed.store import paths
from lwfed.types.errors import PolicyError
from tests.tiny import begun, client_task

NAME = "client-000"


class Asked(NamedTuple):
    bench: Workbench
    wants: Wants
    task: ClientTask

    def allow(self, task: Any = None, **policy: Any) -> Any:
        return PolicyJudge(Policy(**policy), client=NAME).allow(self.wants, task or self.task, bench=self.bench)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    bench, stage, _ = begun(tmp_path_factory.mktemp("asked"))
    (run_id,) = runs.run_ids(bench.store)
    task = client_task(bench, stage, NAME, root="/the/tasks", cache="/the/tasks").model_copy(update={"run_id": run_id})
    return Asked(bench, Wants(run_id=run_id), task)


def test_a_tasks_place_and_store_are_ignored(asked: Asked, tmp_path: Path) -> None:
    greedy = asked.task.model_copy(
        update={"store": "/the/tasks", "place": Place(root="/etc", device="cuda", workers=9)}
    )
    allowed = asked.allow(greedy, data={"shapes": "/mine"}, cache=str(tmp_path), device="cpu")
    assert allowed.place.root == "/mine" and allowed.place.device == "cpu" and allowed.place.workers == 0
    assert allowed.place.cache == str(tmp_path / asked.wants.run_id) and allowed.store == asked.bench.store.uri
    assert asked.allow().place == Place()


def test_the_plan_is_judged_and_not_what_the_request_says(asked: Asked) -> None:
    for policy in (
        {"experiments": ("chest-*",)},
        {"objectives": ("supervised",)},
        {"min_cohort": 3},
        {"memory": "1KB"},
    ):
        with pytest.raises(PolicyError, match=f"`{next(iter(policy))}`"):
            asked.allow(**policy)


def test_only_its_own_clients_work_of_the_run_is_done(asked: Asked) -> None:
    for changes in ({"client": "client-001"}, {"run_id": "other"}, {"run_id": None}):
        with pytest.raises(PolicyError):
            asked.allow(asked.task.model_copy(update=changes))
    values = asked.task.model_dump(exclude={"client", "measure", "parent_pid"})
    with pytest.raises(PolicyError, match="works for client-000 alone"):
        asked.allow(RoundTask(**values))


def test_an_inspection_is_judged_by_its_spec(asked: Asked) -> None:
    spec = to_values(runs.spec_of(runs.read_run(asked.bench.store, asked.wants.run_id)))
    task = InspectTask(store="s", run_id=asked.wants.run_id, client=NAME, spec=spec, place=Place(root="/etc"))
    assert asked.allow(task).place == Place()
    with pytest.raises(PolicyError, match="`experiments`"):
        asked.allow(task, experiments=("chest-*",))


def test_a_run_of_other_code_is_refused(asked: Asked, tmp_path: Path) -> None:
    store, key = asked.bench.store, paths.run(asked.wants.run_id)
    run = store.read_ref(key)
    assert run is not None
    asked.allow()
    try:
        store.write_ref(key, {**run, "code_version": "0" * 16})
        with pytest.raises(PolicyError, match="lwfed or a library differs"):
            asked.allow()
    finally:
        store.write_ref(key, run)


def test_too_long_a_round_is_refused() -> None:
    judge = PolicyJudge(Policy(round_s=10), client=NAME)
    judge.allow_time(10)
    with pytest.raises(PolicyError, match="`round_s`"):
        judge.allow_time(10.1)
    PolicyJudge(Policy(), client=NAME).allow_time(1e9)


def test_a_pods_place_is_its_pools(asked: Asked) -> None:
    place = Place(root="/pool", cache="/pool/cache")
    assert PlaceJudge(place).allow(asked.wants, asked.task, bench=asked.bench).place == place
