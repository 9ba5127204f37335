"""Laws of gates by movement in whole runs: what is recorded is the movement, and the stop follows from it alone."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.cli.tables import rounds_table
from lwfed.formats import metric_title
from lwfed.launch.subprocess import Subprocess
from lwfed.models.build import tensor_specs
from lwfed.plan.gates import EFFECTIVE_MOVEMENT, UPDATE_NORM
from lwfed.report.series import panels_of
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.store.manifest import block_key
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import unit_of
from tests.tiny import MOVING, VALUES, Finished, Stopped, prepared, run_tiny, stop_at, tensors_of, tiny_spec

RUN = Options(run_id="again")
THRESHOLD, WINDOW = 0.58, 3


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_tiny(tmp_path_factory.mktemp("moved"), *MOVING, "store.keep_rounds=0")


def ended(done: Finished) -> list[tuple[int, int]]:
    """Each stage's number of rounds, and the round that is its result."""
    return [(stage["rounds"], stage["result_round"]) for stage in done.summary["stages"]]


def metrics_of(done: Finished, stage: int) -> list[dict[str, float]]:
    return [record["metrics"] for record in done.reported("round") if record["stage"] == stage]


@pytest.mark.parametrize("stage", [1, 2])
def test_each_round_records_the_movement_of_its_trained_parameters(moved: Finished, stage: int) -> None:
    plan, metrics = moved.plans[stage - 1], metrics_of(moved, stage)
    specs = tensor_specs(moved.bench.skeleton(moved.keys[stage - 1]))
    names = [name for name, spec in specs.items() if unit_of(name) in plan.trained and not spec.buffer]
    models = [
        torch.cat([tensors[name].double().flatten() for name in names])
        for number in range(len(metrics) + 1)
        for tensors in [tensors_of(moved.store, moved.checkpoint(stage, number))]
    ]
    updates = [after - before for before, after in pairwise(models)]
    for number, values in enumerate(metrics, start=1):
        assert math.isclose(values[UPDATE_NORM], float(updates[number - 1].abs().sum()), rel_tol=1e-12)
        assert (EFFECTIVE_MOVEMENT in values) is (number >= WINDOW)
        if number >= WINDOW:
            window = torch.stack(updates[number - WINDOW : number])
            expected = float(window.sum(0).abs().sum() / window.abs().sum())
            assert math.isclose(values[EFFECTIVE_MOVEMENT], expected, rel_tol=1e-12)


def test_a_stage_ends_at_the_first_round_below_the_threshold_or_its_last(moved: Finished) -> None:
    """Which rounds these are depends on the processor's rounding; at least one stage ends early."""
    early = 0
    for stage, (rounds, result) in enumerate(ended(moved), start=1):
        found = [values[EFFECTIVE_MOVEMENT] for values in metrics_of(moved, stage)[WINDOW - 1 :]]
        assert WINDOW <= rounds <= moved.plans[stage - 1].rounds and result == rounds
        assert min(found[:-1], default=THRESHOLD) >= THRESHOLD
        assert found[-1] < THRESHOLD or rounds == moved.plans[stage - 1].rounds
        early += rounds < moved.plans[stage - 1].rounds
        assert moved.checkpoint(stage).digest == moved.checkpoint(stage, rounds).digest
    assert early


def test_the_rounds_that_a_gate_reads_are_kept_while_it_reads_them(moved: Finished, tmp_path: Path) -> None:
    done = run_tiny(tmp_path, *MOVING, "store.keep_rounds=1")
    assert (done.digest, done.keys, ended(done)) == (moved.digest, moved.keys, ended(moved))
    for stage, (rounds, result) in enumerate(ended(done), start=1):
        for number in range(1, rounds + 1):
            trained = [done.checkpoint(stage, number).blocks[unit] for unit in done.plans[stage - 1].trained]
            assert all(done.store.has(block_key(block)) == (number == result) for block in trained), (stage, number)


def test_the_last_round_is_evaluated_whenever_it_comes(moved: Finished, tmp_path: Path) -> None:
    done = run_tiny(tmp_path, *MOVING, "evaluation.every=4")
    assert done.digest == moved.digest
    for stage, (rounds, _) in enumerate(ended(done), start=1):
        evaluated = [n for n, values in enumerate(metrics_of(done, stage), start=1) if "test/loss" in values]
        assert evaluated == sorted({*range(4, rounds + 1, 4), rounds})
        assert done.summary["stages"][stage - 1]["metrics"]["test/loss"] > 0


@pytest.mark.parametrize(("kind", "count"), [("aggregating", 6), ("round", 6), ("stage", 1), ("client_done", 15)])
def test_stopped_around_a_gates_stop_a_run_ends_in_the_same_digest(
    moved: Finished, tmp_path: Path, kind: str, count: int
) -> None:
    with pytest.raises(Stopped):
        run_tiny(tmp_path, *MOVING, "store.keep_rounds=1", options=RUN, emit=stop_at(kind, count))
    done = run_tiny(tmp_path, *MOVING, "store.keep_rounds=1", options=RUN)
    assert (done.digest, done.keys, ended(done)) == (moved.digest, moved.keys, ended(moved))
    recorded = [record["metrics"] for record in done.reported("round")]
    assert recorded == [record["metrics"] for record in moved.reported("round")]


@pytest.mark.slow
def test_in_processes_of_their_own_clients_end_the_stage_alike(moved: Finished, tmp_path: Path) -> None:
    def launcher(store: Store) -> Subprocess:
        return Subprocess(store, parallel=2, devices=1, retries=0)

    done = run_tiny(tmp_path, *MOVING, launcher=launcher)
    assert (done.digest, done.keys, ended(done)) == (moved.digest, moved.keys, ended(moved))
    assert [metrics_of(done, stage) for stage in (1, 2)] == [metrics_of(moved, stage) for stage in (1, 2)]


def test_reused_a_gated_stage_is_the_same(moved: Finished, tmp_path: Path) -> None:
    first = run_tiny(tmp_path, *MOVING)
    again = run_tiny(tmp_path, *MOVING, options=RUN)
    assert (again.digest, ended(again)) == (first.digest, ended(first)) == (moved.digest, ended(moved))
    assert all(stage["reused"] for stage in again.summary["stages"]) and not again.reported("client_done")


@pytest.mark.parametrize(
    "options",
    [
        ("exchange={upload: bf16, download: int8}",),
        ("federation.server={kind: fedadam}",),
        (
            "federation={num_clients: 3, fraction_fit: 0.34, min_fit_clients: 1, modality_quorum: {image: 2}}",
            "federation.unsent=keep",
        ),
    ],
)
def test_the_movement_is_that_of_the_published_model(tmp_path: Path, options: tuple[str, ...]) -> None:
    """However updates travel, whatever the server's step and whoever sends: between models that clients start from."""
    done = run_tiny(tmp_path, *MOVING, *options, "store.keep_rounds=0")
    key, (first, second) = done.keys[0], (tensors_of(done.store, done.checkpoint(1, n)) for n in (0, 1))
    specs = tensor_specs(done.bench.skeleton(key))
    names = [name for name in specs if unit_of(name) in done.plans[0].trained and not specs[name].buffer]
    expected = math.fsum(float((second[name].double() - first[name].double()).abs().sum()) for name in names)
    assert math.isclose(metrics_of(done, 1)[0][UPDATE_NORM], expected, rel_tol=1e-12)


def test_a_record_that_lacks_what_the_gate_reads_is_named(tmp_path: Path) -> None:
    def stop(name: str, values: dict[str, Any]) -> None:
        if name == "round" and values["round"] == 4:
            raise Stopped

    with pytest.raises(Stopped):
        run_tiny(tmp_path, *MOVING, options=RUN, emit=stop)
    store = LocalStore(tmp_path)
    key = runs.read_run(store, "again").stages[0].key
    record = store.read_ref(paths.round_metrics(key, 3))
    assert record is not None
    del record["metrics"][UPDATE_NORM]
    store.write_ref(paths.round_metrics(key, 3), record)
    with pytest.raises(CheckpointError, match=UPDATE_NORM):
        run_tiny(tmp_path, *MOVING, options=RUN)


def test_reports_and_tables_show_it(moved: Finished) -> None:
    _, rounds = runs.history(moved.store, runs.read_run(moved.store, moved.run.run_id))
    panel = next(panel for panel in panels_of(rounds) if panel.key == "movement")
    numbers = [record.global_round for record in rounds if record.round >= WINDOW]
    assert panel.share and [number for number, _ in panel.series[0].points] == numbers
    title = metric_title(EFFECTIVE_MOVEMENT)
    assert title in [column.header for column in rounds_table(rounds).columns]


def test_a_plan_says_at_most(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(VALUES))
    gate = ["-o", "stages.gate={kind: movement, window: 2}"]
    ended = CliRunner().invoke(app, ["plan", str(path), *gate])
    assert ended.exit_code == 0 and "the most" in ended.stdout and "over 2 rounds is below 0.5" in ended.stdout
    plans = [
        json.loads(CliRunner().invoke(app, ["plan", str(path), *extra, "--json"]).stdout.splitlines()[-1])
        for extra in ([], gate)
    ]
    assert [plan.pop("at_most") for plan in plans] == [False, True]
    assert plans[0] == plans[1], "a gate costs a client nothing"


def test_it_needs_no_validation_data(tmp_path: Path) -> None:
    run = prepared(tiny_spec(tmp_path, *MOVING), store=LocalStore(tmp_path))
    assert not run.data.num_validation
