"""Laws of the server's step: it commits once, refuses what does not fit, and evaluates when it is due."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.round.aggregate_round import aggregate_round
from lwfed.round.workbench import Workbench
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.manifest import Block
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import TensorSpec
from tests.tiny import accept, begun, round_task, run_tiny

CLIENTS = ("client-000", "client-001")


def test_a_committed_round_is_not_aggregated_again(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    accept(bench, stage, CLIENTS)
    task = round_task(bench, stage)
    digest = aggregate_round(task, bench=bench)
    for key in list(bench.store.list(f"{paths.round_folder(stage.key, 1)}/updates/")):
        bench.store.delete(key)
    assert aggregate_round(task, bench=Workbench(bench.store)) == digest
    found = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 1))
    assert found is not None and found.digest == digest


def test_a_fresh_process_ends_in_the_same_digest(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    accept(bench, stage, CLIENTS)
    digest = aggregate_round(round_task(bench, stage), bench=bench)
    bench.store.delete(paths.round_checkpoint(stage.key, 1))
    assert aggregate_round(round_task(bench, stage), bench=Workbench(bench.store)) == digest


def test_without_an_accepted_set_there_is_nothing_to_do(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    with pytest.raises(CheckpointError, match="has no accepted set") as caught:
        aggregate_round(round_task(bench, stage), bench=bench)
    assert "--run-id" in caught.value.remedy
    assert not bench.store.has(paths.round_checkpoint(stage.key, 1))


@pytest.mark.parametrize("damage", ["file gone", "file wrong", "update gone", "other update", "a tensor too few"])
def test_an_update_that_is_not_what_was_accepted_is_refused(tmp_path: Path, damage: str) -> None:
    bench, stage, _ = begun(tmp_path)
    accept(bench, stage, CLIENTS)
    ref = paths.update(stage.key, 1, "client-001")
    folder = bench.store.fetch(ref).parent
    file = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    update = bench.store.read_ref(ref)
    assert update is not None
    if damage == "file gone":
        file.unlink()
    elif damage == "file wrong":
        content = bytearray(file.read_bytes())
        content[-3] ^= 4
        file.write_bytes(content)
    elif damage == "update gone":
        bench.store.delete(ref)
    elif damage == "other update":
        bench.store.write_ref(ref, {**update, "digest": "0" * 64})
    else:
        block = update["blocks"]["image.norm"]
        del block["tensors"]["image.norm.bias"]
        rest = {n: (i["digest"], TensorSpec(tuple(i["shape"]), i["dtype"])) for n, i in block["tensors"].items()}
        update["blocks"]["image.norm"] = Block(rest).to_values()
        bench.store.write_ref(ref, update)
    with pytest.raises(CheckpointError):
        aggregate_round(round_task(bench, stage), bench=bench)
    assert not bench.store.has(paths.round_checkpoint(stage.key, 1)), "nothing is committed"


@pytest.mark.parametrize(("every", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_rounds_are_evaluated_when_it_is_due_and_at_the_end(tmp_path: Path, every: int, evaluated: list[int]) -> None:
    done = run_tiny(tmp_path, "stages.rounds=[5,0]", f"evaluation.every={every}", "training.local_steps=1")
    rounds = done.reported("round")
    assert [r["round"] for r in rounds if "test/loss" in r["metrics"]] == evaluated
    assert all("train/loss" in r["metrics"] for r in rounds)


def test_judging_less_often_changes_no_weight(tmp_path: Path) -> None:
    digests = {run_tiny(tmp_path / str(n), "stages.rounds=[2,1]", f"evaluation.every={n}").digest for n in (1, 3)}
    assert len(digests) == 1


def test_clients_evaluate_on_what_they_held_out(tmp_path: Path) -> None:
    done = run_tiny(
        tmp_path, "stages.rounds=[3,0]", "evaluation.holdout_fraction=0.4", "evaluation.federated_every=2",
        "training.local_steps=1",
    )  # fmt: skip
    rounds = done.reported("round")
    evaluated = [r["round"] for r in rounds if any(name.startswith("federated/") for name in r["metrics"])]
    assert evaluated == [2, 3]
    assert done.run.data.clients == {"client-000": 7, "client-001": 7}, "5 of 12 are held out"
    part = done.store.read_ref(paths.client_evaluation(done.keys[0], 3, "client-000"))
    assert part is not None and part["num_examples"] == 5
    assert rounds[-1]["metrics"]["federated/t2i/R@50"] == 1.0, "fewer candidates than 50"
