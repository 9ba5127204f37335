"""Laws of a client's step: what it commits is what it should have trained, whoever asks and however often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lwfed.round.runtime import deterministic
from lwfed.round.train_client import parameter_groups, train_client
from lwfed.round.workbench import Workbench
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.manifest import block_key
from lwfed.types.errors import CheckpointError, DivergedError
from lwfed.types.tensors import unit_of
from tests.tiny import begun, client_task, run_tiny, tensor_digests, update_tensors

FIRST = "client-000"


def test_an_update_does_not_depend_on_who_trained_before_in_the_same_process(tmp_path: Path) -> None:
    """Nothing leaks from client to client: not weights, not generators, not the order."""
    digests = []
    for folder, order in (("a", ("client-000", "client-001")), ("b", ("client-001", "client-000"))):
        bench, stage, _ = begun(tmp_path / folder)
        digests.append({c: train_client(client_task(bench, stage, c), bench=bench)["digest"] for c in order})
        torch.manual_seed(len(digests))
    assert digests[0] == digests[1]
    assert len(set(digests[0].values())) == 2, "and clients differ"


def test_an_update_does_not_depend_on_the_place(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    digests = set()
    for place in ({}, {"workers": 1}, {"cache": str(tmp_path / "cache")}):
        clear(bench, stage.key)
        with deterministic(threads=2):  # the step sets its own
            digests.add(train_client(client_task(Workbench(bench.store), stage, FIRST, **place), bench=bench)["digest"])
    assert len(digests) == 1


def test_a_committed_update_is_kept(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    task = client_task(bench, stage, FIRST)
    steps: list[int] = []
    first = train_client(task, bench=bench, on_step=lambda step, total, loss: steps.append(step))
    assert steps == [1, 2], "12 examples in batches of 8"
    assert train_client(task, bench=bench, on_step=lambda *told: steps.append(99)) == first
    assert 99 not in steps
    assert bench.store.read_ref(paths.update(stage.key, 1, FIRST)) == first


def test_an_update_holds_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, "store.keep_rounds=0", "stages.rounds=[1,1]")
    bench = Workbench(done.store)
    stage = bench.stage(done.keys[1])
    clear(bench, stage.key)
    update = train_client(client_task(bench, stage, FIRST), bench=bench)
    assert set(update["blocks"]) == set(stage.plan.trained)
    tensors = update_tensors(bench, stage, FIRST)
    assert {unit_of(name) for name in tensors} == set(stage.plan.trained)
    start = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 0))
    assert start is not None
    moved = {name for name in tensors if digest_in(update, name) != tensor_digests(start)[name]}
    assert all(name in moved for name in tensors if name.endswith("num_batches_tracked"))
    assert {unit_of(name) for name in moved} == set(stage.plan.trained)
    metrics = update["metrics"]
    assert metrics["num_examples"] == update["num_examples"] == 12
    assert metrics["steps"] == 2 and metrics["loss"] > 0 and metrics["peak_rss_bytes"] > 2**20


def test_rates_reach_the_right_parameters(tmp_path: Path) -> None:
    bench, stage, _ = begun(
        tmp_path,
        "training.learning_rates={image: 1e-1, text: 1e-2, projection: 1e-3}",
        "training.weight_decays.text=0.5",
    )
    groups = parameter_groups(bench.skeleton(stage.key), trained=stage.plan.trained, rates=stage.plan.rates)
    by_name = {id(p): name for name, p in bench.skeleton(stage.key).named_parameters()}
    found = {by_name[id(p)]: rates for members, rates in groups for p in members}
    assert found.keys() == set(by_name.values()), "in stage 1 every parameter is in one group"
    assert sum(len(members) for members, _ in groups) == len(found)
    for name, rates in found.items():
        group = "projection" if ".projection." in name else name.split(".")[0]
        base = {"image": 1e-1, "text": 1e-2, "projection": 1e-3}[group]
        assert rates.learning_rate == base
        assert rates.weight_decay == (0.5 if group == "text" else 0.0)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_short_last_batch_is_accumulated_in_fewer_parts(tmp_path: Path, parts: int) -> None:
    """12 examples: a batch of 8 and one of 4, and BatchNorm wants two examples a part. 11: one of 3."""
    for folder, train in (("even", 24), ("odd", 22)):
        bench, stage, _ = begun(
            tmp_path / folder, f"training.gradient_accumulation={parts}", f"data.shapes.train={train}"
        )  # fmt: skip
        update = train_client(client_task(bench, stage, FIRST), bench=bench)
        assert update["metrics"]["steps"] == 2


def test_a_client_with_fewer_examples_than_a_batch_trains_on_all_of_them(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "data.shapes.train=6", "training.batch_size=64")
    metrics = train_client(client_task(bench, stage, FIRST), bench=bench)["metrics"]
    assert (metrics["num_examples"], metrics["steps"], metrics["step_flops"]["batch"]) == (3, 1, 3)


@pytest.mark.parametrize(("override", "steps"), [("local_epochs=3", 6), ("local_steps=5", 5), ("local_steps=1", 1)])
def test_epochs_and_steps(tmp_path: Path, override: str, steps: int) -> None:
    bench, stage, _ = begun(tmp_path, f"training.{override}")
    assert train_client(client_task(bench, stage, FIRST), bench=bench)["metrics"]["steps"] == steps


def test_only_the_first_round_is_measured_and_that_changes_nothing_else(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, "stages.rounds=[2,1]")
    records = done.reported("round")
    measured = [[client for client, one in record["clients"].items() if "step_flops" in one] for record in records]
    assert measured == [[FIRST], [], [FIRST]], "one client for all"


def test_with_length_buckets_the_measured_step_is_the_longest(tmp_path: Path) -> None:
    """Three batches of four: a step on any of them needs no more memory, so neither does the first without buckets."""
    found: dict[bool, list[int]] = {}
    for buckets in (False, True):
        bench, stage, _ = begun(
            tmp_path / str(buckets), f"data.length_buckets={str(buckets).lower()}", "training.batch_size=4"
        )
        updates = [train_client(client_task(bench, stage, client), bench=bench) for client in (FIRST, "client-001")]
        found[buckets] = [update["metrics"]["activations_bytes"] for update in updates]
    assert found[True] != found[False]
    assert all(one >= other for one, other in zip(found[True], found[False], strict=True))


def test_a_diverging_client_says_which_examples(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "training.learning_rate=1e30", "training.local_epochs=4")
    with pytest.raises(DivergedError) as caught:
        train_client(client_task(bench, stage, FIRST), bench=bench)
    assert "client-000" in str(caught.value) and "training.learning_rate" in str(caught.value)
    assert not bench.store.has(paths.update(stage.key, 1, FIRST)), "nothing is committed"


def test_dropout_is_seeded_by_round_and_client_and_does_drop(tmp_path: Path) -> None:
    losses = {}
    for dropout in ("0.0", "0.4"):
        bench, stage, _ = begun(tmp_path / dropout, f"model.projection.dropout={dropout}")
        losses[dropout] = train_client(client_task(bench, stage, FIRST), bench=bench)["metrics"]["loss_first"]
        assert len({stage.plan.round_seed(r, c, "dropout") for r in (1, 2) for c in (FIRST, "client-001")}) == 4
    assert losses["0.0"] != losses["0.4"]


@pytest.mark.parametrize("loss", ["checkpoint", "block"])
def test_a_model_that_is_not_there_is_named(tmp_path: Path, loss: str) -> None:
    bench, stage, _ = begun(tmp_path)
    ref = paths.round_checkpoint(stage.key, 0)
    checkpoint = read_checkpoint(bench.store, ref)
    assert checkpoint is not None
    bench.store.delete(ref if loss == "checkpoint" else block_key(checkpoint.blocks["text.stem"]))
    with pytest.raises(CheckpointError) as caught:
        train_client(client_task(bench, stage, FIRST), bench=bench)
    assert caught.value.remedy
    with pytest.raises(CheckpointError, match=r"rounds/006/checkpoint\.json is not committed"):
        train_client(client_task(bench, stage, FIRST, server_round=7), bench=bench)


def test_a_damaged_block_is_noticed_before_training(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    checkpoint = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 0))
    assert checkpoint is not None
    path = bench.store.fetch(block_key(checkpoint.blocks["image.blocks.0"]))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is corrupted"):
        train_client(client_task(bench, stage, FIRST), bench=bench)


def test_a_damaged_plan_is_noticed(tmp_path: Path) -> None:
    """A flipped digit of a rate would train another model under the same key."""
    bench, stage, _ = begun(tmp_path)
    path = bench.store.fetch(paths.stage_plan(stage.key))
    text = path.read_text()
    path.write_text(text.replace('"temperature": 0.07', '"temperature": 0.08'))
    assert path.read_text() != text
    with pytest.raises(CheckpointError, match=r"plan.json is damaged"):
        train_client(client_task(bench, stage, FIRST), bench=Workbench(bench.store))


def clear(bench: Workbench, key: str) -> None:
    """Removes what client-000 sent in round 1."""
    for name in list(bench.store.list(paths.updates(key, 1, FIRST) + "/")):
        bench.store.delete(name)


def digest_in(update: dict[str, Any], name: str) -> str:
    return str(update["blocks"][unit_of(name)]["tensors"][name]["digest"])
