"""Laws of clients whose data lack a modality: they send what they have, and each tensor counts the examples it saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lwfed.launch.in_process import InProcess
from lwfed.launch.subprocess import Subprocess
from lwfed.round.aggregate_round import aggregate_round
from lwfed.run import runs
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.types.errors import CheckpointError, SpecError
from lwfed.types.tensors import unit_of
from tests.holes import LACKS, OBJECTIVES, on, write_holes
from tests.tiny import Finished, accept, begun, round_task, run_tiny, tensors_of, update_tensors

NORTH, SOUTH = "client-000", "client-001"
SILENT = ["audio"] * 15 + [LACKS[n % len(LACKS)] for n in range(15)]
"""No row of the north has a sound; of the south's some lack one thing or another."""


def settings(folder: Path, *overrides: str) -> tuple[str, ...]:
    if not (folder / "data").exists():
        write_holes(folder / "data", lacks=SILENT)
    return on(folder / "data", *overrides)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_tensor_is_the_mean_over_the_examples_that_reached_it(tmp_path: Path, objective: str) -> None:
    bench, stage, _ = begun(tmp_path / "store", *settings(tmp_path, *OBJECTIVES[objective]))
    root = str(tmp_path / "data")
    assert stage.plan.lacks == {NORTH: ("audio",)}
    updates = accept(bench, stage, [NORTH, SOUTH], root=root)
    counts = {client: update["metrics"]["examples"] for client, update in updates.items()}
    assert counts[NORTH] == {"audio": 0} and set(counts[SOUTH]) == {"audio", "image", "text"}
    aggregate_round(round_task(bench, stage, root=root), bench=bench)
    checkpoint = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 1))
    assert checkpoint is not None
    sent = {client: update_tensors(bench, stage, client) for client in (NORTH, SOUTH)}
    assert {unit_of(name).partition(".")[0] for name in sent[NORTH]} >= {"image", "text"}
    assert not any(name.startswith("audio.") for name in sent[NORTH])
    for name, value in tensors_of(bench.store, checkpoint).items():
        if not value.is_floating_point():
            continue
        weights = {
            c: counts[c].get(name.partition(".")[0], updates[c]["num_examples"]) for c in sent if name in sent[c]
        }
        total = sum(weight * sent[client][name].numpy().astype(np.float64) for client, weight in weights.items())
        assert np.allclose(value.numpy(), total / sum(weights.values()), rtol=1e-6, atol=1e-9), name


class Forgetful(InProcess):
    holds_model = False

    def _begin_fold(self, tasks: Sequence[object]) -> None:
        return None


@pytest.mark.parametrize("exchange", [(), ("exchange.upload=int8", "exchange.download=int8")], ids=["fp32", "int8"])
def test_it_ends_alike_however_it_is_run(tmp_path: Path, exchange: tuple[str, ...]) -> None:
    chosen = settings(
        tmp_path, "stages.rounds=[2,2]", "evaluation.federated_every=1", "evaluation.holdout_fraction=0.25", *exchange
    )
    done = run_tiny(tmp_path / "a", *chosen)
    assert run_tiny(tmp_path / "b", *chosen, launcher=Forgetful).digest == done.digest
    if not exchange:
        others = run_tiny(
            tmp_path / "c", *chosen, launcher=lambda store: Subprocess(store, parallel=2, devices=1, retries=0)
        )
        assert others.digest == done.digest and others.summary["metrics"] == done.summary["metrics"]
    last = done.reported("round")[-1]
    assert "failed_evaluations" not in last and last["metrics"]["federated/loss"] > 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("lacking")
    return run_tiny(folder / "store", *settings(folder, "levers.prefix_cache=always"))


def test_the_ledger_prices_what_such_a_client_moves(finished: Finished) -> None:
    for stage, (plan, predicted) in enumerate(zip(finished.plans, finished.run.predicted, strict=True), start=1):
        assert list(predicted["kinds"]) == ["clients", "clients without audio"]
        for record in (one for one in finished.reported("round") if one["stage"] == stage):
            for client, metrics in record["clients"].items():
                cost = predicted["kinds"][plan.work_of(client).kind]
                assert metrics["bytes_up"] == cost["upload_bytes"] and metrics["bytes_down"] == cost["snapshot_bytes"]
                if record["round"] == 1:
                    assert metrics["bytes_down_frozen"] == cost["newly_frozen_bytes"]
                    assert metrics["gradients_bytes"] == cost["gradients_bytes"], "each is the only one of its kind"


def test_the_run_tells_who_lacks_what(finished: Finished) -> None:
    lacks = finished.run.data.lacks
    assert lacks[NORTH] == {"audio": finished.run.data.clients[NORTH]} and set(lacks[SOUTH]) == {
        "audio",
        "image",
        "text",
    }
    assert runs.lacked(finished.run.data) == {NORTH: ("audio",)}


def test_a_gap_that_the_plan_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    for what, spoil in (
        ("lacks image.projection", "image.projection"),
        ("has audio.norm, which client-000", "audio.norm"),
    ):
        folder = tmp_path / spoil
        bench, stage, _ = begun(folder / "store", *settings(folder))
        root = str(folder / "data")
        accept(bench, stage, [NORTH, SOUTH], root=root)
        ref = paths.update(stage.key, 1, NORTH)
        update = bench.store.read_ref(ref)
        other = bench.store.read_ref(paths.update(stage.key, 1, SOUTH))
        assert update is not None and other is not None
        if spoil in update["blocks"]:
            del update["blocks"][spoil]
        else:
            update["blocks"][spoil] = other["blocks"][spoil]
        bench.store.write_ref(ref, update)
        with pytest.raises(CheckpointError, match=what):
            aggregate_round(round_task(bench, stage, root=root), bench=bench)


def test_a_modality_may_need_a_quorum(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"round 1 of stage 1 will have 1 update\(s\) of audio.stem and needs 2"):
        run_tiny(tmp_path / "a", *settings(tmp_path), "federation.modality_quorum={audio: 2}")
    kept = run_tiny(
        tmp_path / "b", *settings(tmp_path), "federation.modality_quorum={audio: 2}", "federation.unsent=keep"
    )
    for record in kept.reported("round"):
        assert record["kept_units"] and all(unit.startswith("audio.") for unit in record["kept_units"])
    start, end = kept.checkpoint(1, 0), kept.checkpoint(1)
    assert all((start.blocks[unit] == end.blocks[unit]) is unit.startswith("audio.") for unit in start.blocks)


@pytest.mark.parametrize("prefix_cache", ["always", "never"])
def test_one_example_of_a_modality_is_as_none(tmp_path: Path, prefix_cache: str) -> None:
    """It is too few to train, so its encoder is neither fetched nor built, whether outputs are cached or not."""
    single = ["audio"] * 15 + [LACKS[n % len(LACKS)] for n in range(15)]
    single[0] = ""
    write_holes(tmp_path / "data", lacks=single)
    done = run_tiny(tmp_path / "store", *settings(tmp_path, f"levers.prefix_cache={prefix_cache}"))
    lacked = done.run.data.lacks[NORTH]
    assert lacked == {"audio": done.run.data.clients[NORTH] - 1} and done.plans[0].lacks == {NORTH: ("audio",)}
    assert all("failed" not in record or not record["failed"] for record in done.reported("round"))
    assert all(set(record["clients"]) == {NORTH, SOUTH} for record in done.reported("round"))


def test_parts_of_clients_are_not_sampled_by_size(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"by_size, and \d+ of \d+ examples of client-00\d lack"):
        run_tiny(tmp_path / "a", *settings(tmp_path), "federation.sampling=by_size")
