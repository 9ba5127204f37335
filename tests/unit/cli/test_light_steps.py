"""What a pod loads is most of its start: each step loads torch and the model's libraries where it computes, no more."""

from __future__ import annotations

from pathlib import Path

from lwfed.run.tasks import InspectTask, Place, PrepareTask, RunTask
from lwfed.spec.load import to_values
from lwfed.store import paths
from tests.starting import run_step
from tests.tiny import ONE_STAGE, accept, begun, client_task, round_task, run_tiny, tiny_spec

NEVER = {"mlflow", "kfp", "kubernetes", "matplotlib", "matplotlib.pyplot"}
"""What no step of a pod has a use for."""
CLIENTS = ("client-000", "client-001")


def test_steps_of_a_round_load_what_computes(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, *ONE_STAGE)
    task = client_task(bench, stage, CLIENTS[0])
    assert not run_step("train-client", task).loaded & NEVER
    assert bench.store.has(paths.update(stage.key, 1, CLIENTS[0])), "it did train"
    accept(bench, stage, CLIENTS)
    assert not run_step("aggregate-round", round_task(bench, stage)).loaded & NEVER
    assert not run_step("evaluate-client", task).loaded & NEVER
    bench.store.delete(paths.round_metrics(stage.key, 1))
    assert not run_step("evaluate-round", round_task(bench, stage)).loaded & NEVER
    assert bench.store.has(paths.round_metrics(stage.key, 1)), "it did judge"


def test_steps_beside_the_rounds(tmp_path: Path) -> None:
    finished = run_tiny(tmp_path, *ONE_STAGE)
    values = to_values(tiny_spec(tmp_path, *ONE_STAGE))
    store, place = finished.store.uri, Place(device="cpu")
    inspect = InspectTask(store=store, run_id="another", client=CLIENTS[0], spec=values, place=place)
    assert not run_step("inspect-client", inspect).loaded & (NEVER | {"torch"})
    prepare = PrepareTask(store=store, run_id="another", spec=values, place=place)
    assert not run_step("prepare", prepare).loaded & NEVER
    assert finished.store.has(paths.initial("another")), "it did draw what coordinators then need no torch for"
    finish = RunTask(store=store, run_id=finished.run.run_id, place=place)
    assert not run_step("finish", finish).loaded & (NEVER - {"matplotlib"}), "it draws"
