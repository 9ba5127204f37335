"""Laws of gates in whole runs: the stop is the same however often the run is stopped, and wherever its clients run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.launch.subprocess import Subprocess
from lwfed.report.series import stages_of
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.store.manifest import block_key
from lwfed.store.protocol import Store
from lwfed.types.errors import SpecError
from tests.tiny import GATED, Finished, Stopped, prepared, run_tiny, stop_at, tiny_spec

RUN = Options(run_id="again")


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_tiny(tmp_path_factory.mktemp("gated"), *GATED)


def ended(done: Finished) -> list[tuple[int, int]]:
    """Each stage's number of rounds, and the round that is its result."""
    return [(stage["rounds"], stage["result_round"]) for stage in done.summary["stages"]]


def test_a_stage_ends_early_and_its_result_is_its_best_round(gated: Finished) -> None:
    values = [[r["metrics"]["validation/t2i/R@1"] for r in gated.reported("round") if r["stage"] == s] for s in (1, 2)]
    for stage, ((rounds, result), found) in enumerate(zip(ended(gated), values, strict=True), start=1):
        assert len(found) == rounds < gated.plans[stage - 1].rounds and result == rounds - 1
        assert found[result - 1] == max(found)
        assert gated.checkpoint(stage).digest == gated.checkpoint(stage, result).digest
        assert gated.checkpoint(stage).digest != gated.checkpoint(stage, rounds).digest
        assert (
            gated.summary["stages"][stage - 1]["metrics"]
            == gated.reported("round")[sum(len(v) for v in values[: stage - 1]) + result - 1]["metrics"]
        )


def test_rounds_are_counted_as_they_ran(gated: Finished) -> None:
    records = gated.reported("round")
    assert [record["global_round"] for record in records] == list(range(1, len(records) + 1))
    stages, rounds = runs.history(gated.store, runs.read_run(gated.store, gated.run.run_id))
    assert [(s.first, s.last) for s in stages_of(gated.run, stages, rounds)] == [
        (1, stages[0].rounds), (stages[0].rounds + 1, len(records))
    ]  # fmt: skip
    assert [stage.last_round for stage in stages] == [stages[0].rounds, len(records)]


def test_the_next_stage_starts_from_the_chosen_round(gated: Finished) -> None:
    result, start = gated.checkpoint(1, ended(gated)[0][1]), gated.checkpoint(2, 0)
    assert {unit: start.blocks[unit] for unit in result.blocks} == result.blocks


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_best_round_is_kept(gated: Finished, tmp_path: Path, keep: int) -> None:
    done = run_tiny(tmp_path, *GATED, "stages.gate.patience=2", f"store.keep_rounds={keep}")
    for stage, (rounds, result) in enumerate(ended(done), start=1):
        for number in range(1, rounds + 1):
            trained = [done.checkpoint(stage, number).blocks[unit] for unit in done.plans[stage - 1].trained]
            assert all(done.store.has(block_key(block)) == (number == result) for block in trained), (stage, number)


@pytest.mark.parametrize(
    ("kind", "count"), [("round", 1), ("aggregating", 2), ("round", 2), ("stage", 1), ("round", 3), ("client_done", 5)]
)
def test_stopped_around_a_gates_stop_a_run_ends_in_the_same_digest(
    gated: Finished, tmp_path: Path, kind: str, count: int
) -> None:
    with pytest.raises(Stopped):
        run_tiny(tmp_path, *GATED, options=RUN, emit=stop_at(kind, count))
    done = run_tiny(tmp_path, *GATED, options=RUN)
    assert (done.digest, done.keys, ended(done)) == (gated.digest, gated.keys, ended(gated))


def test_killed_before_the_stage_is_committed_it_ends_as_the_same_round(gated: Finished, tmp_path: Path) -> None:
    run_tiny(tmp_path, *GATED, options=RUN)
    store = LocalStore(tmp_path)
    for item in runs.read_run(store, "again").stages:
        store.delete(paths.stage_record(item.key))
        store.delete(paths.stage_checkpoint(item.key))
    store.delete(paths.summary("again"))
    done = run_tiny(tmp_path, *GATED, options=RUN)
    assert (done.digest, ended(done)) == (gated.digest, ended(gated)) and not done.reported("client_done")


def test_reused_a_gated_stage_is_the_same(gated: Finished, tmp_path: Path) -> None:
    first = run_tiny(tmp_path, *GATED)
    again = run_tiny(tmp_path, *GATED, options=RUN)
    assert (again.digest, ended(again)) == (first.digest, ended(first)) == (gated.digest, ended(gated))
    assert all(stage["reused"] for stage in again.summary["stages"]) and not again.reported("client_done")
    assert [r["global_round"] for r in again.reported("round")] == [r["global_round"] for r in gated.reported("round")]


def test_the_last_round_is_evaluated_on_clients_too(tmp_path: Path) -> None:
    options = ("evaluation.federated_every=5", "evaluation.holdout_fraction=0.25", "data.shapes.train=32")
    done = run_tiny(tmp_path, *GATED, *options)
    for stage, (rounds, _) in enumerate(ended(done), start=1):
        records = [record for record in done.reported("round") if record["stage"] == stage]
        evaluated = [r["round"] for r in records if any(name.startswith("federated/") for name in r["metrics"])]
        assert evaluated == sorted({*range(5, rounds + 1, 5), rounds})


@pytest.mark.slow
def test_in_processes_of_their_own_clients_end_the_stage_alike(gated: Finished, tmp_path: Path) -> None:
    def launcher(store: Store) -> Subprocess:
        return Subprocess(store, parallel=2, devices=1, retries=0)

    done = run_tiny(tmp_path, *GATED, launcher=launcher)
    assert (done.digest, done.keys, ended(done)) == (gated.digest, gated.keys, ended(gated))


def test_a_gate_without_validation_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"stages\.gate") as caught:
        prepared(tiny_spec(tmp_path, "stages.gate={}"), store=LocalStore(tmp_path))
    assert "data.validation_fraction" in caught.value.remedy
