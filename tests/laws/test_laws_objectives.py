"""Laws of the objectives' options: what they add is trained, exchanged and cached like the rest, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from lwfed.objectives.supervised import balanced_weights
from lwfed.run.tasks import Place
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import CheckpointError, SpecError
from lwfed.types.tensors import unit_of
from tests.laws.test_laws_costs import OBJECTIVES
from tests.laws.test_laws_prefix import KEEP
from tests.tiny import ONE_STAGE, prepared, run_tiny, tensors_of, tiny_spec

OPTIONS = [*OBJECTIVES][2:]
PLAIN = "model.projection.dropout=0"
SUPERVISED = "kind: supervised, hidden: 12, dropout: 0"


@pytest.mark.parametrize("objective", OPTIONS)
def test_with_one_stage_all_strategies_are_one(tmp_path: Path, objective: str) -> None:
    chosen = (*ONE_STAGE, OBJECTIVES[objective])
    assert len({run_tiny(tmp_path / s, *chosen, f"strategy={s}").digest for s in ("layerwise", "end_to_end")}) == 1


@pytest.mark.parametrize("objective", OPTIONS)
def test_encoded_and_from_cached_outputs_it_costs_what_the_ledger_says(tmp_path: Path, objective: str) -> None:
    encoded = ("exchange.upload=int8", "exchange.download=int8", KEEP, OBJECTIVES[objective])
    done = run_tiny(tmp_path / "a", *encoded)
    for record in done.reported("round"):
        cost = done.run.predicted[record["stage"] - 1]
        for metrics in record["clients"].values():
            assert metrics["bytes_up"] == cost["upload_bytes"]
            assert metrics["bytes_down"] == cost["snapshot_bytes" if record["round"] == 1 else "change_bytes"]
    assert done.plans[1].levers.views
    kept, computed = (
        run_tiny(tmp_path / lever, f"levers.prefix_cache={lever}", OBJECTIVES[objective])
        for lever in ("always", "never")
    )
    losses = [[r["metrics"]["train/loss"] for r in run.reported("round")] for run in (kept, computed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("strategy", ["layerwise", "progressive", "end_to_end"])
def test_a_learnable_temperature_is_trained_and_exchanged_in_every_stage(tmp_path: Path, strategy: str) -> None:
    decay = ("training.weight_decay=0.1", "training.learning_rates={temperature: 0.01}", f"strategy={strategy}")
    done = run_tiny(tmp_path, *decay, OBJECTIVES["learnable"])
    logs = [tensors_of(done.store, done.checkpoint(1, 0))["temperature.log"]]
    torch.testing.assert_close(logs[0].exp(), torch.tensor(0.07))
    for stage, plan in enumerate(done.plans, start=1):
        assert "temperature" in plan.trained
        assert plan.rates["temperature"].model_dump() == {"learning_rate": 0.01, "weight_decay": 0.0}
        logs.append(tensors_of(done.store, done.checkpoint(stage))["temperature.log"])
        reported = done.summary["stages"][stage - 1]["metrics"]["test/temperature"]
        assert reported == pytest.approx(logs[-1].exp().item())
        assert done.run.predicted[stage - 1]["parts"]["temperature"]["exchanged_params"] == 1
    assert len({log.item() for log in logs}) == len(logs), "every stage changes it"


def test_a_learnable_temperature_is_a_unit_like_any_other(tmp_path: Path) -> None:
    learnt, fixed = (run_tiny(tmp_path / o, OBJECTIVES[o]) for o in ("learnable", "contrastive"))
    for one, other in zip(learnt.plans, fixed.plans, strict=True):
        assert set(one.present) - set(other.present) == {"temperature"}
        assert other.rates.keys() == one.rates.keys() - {"temperature"}
    names = tensors_of(learnt.store, learnt.checkpoint(1, 0)).keys()
    assert {name for name in names if unit_of(name) == "temperature"} == {"temperature.log"}


def test_alignment_is_nothing_before_the_first_step_and_counts_after_it(tmp_path: Path) -> None:
    plain = run_tiny(tmp_path / "plain", OBJECTIVES["contrastive"], PLAIN)
    aligned = run_tiny(tmp_path / "aligned", "model.objective={temperature: 0.07, alignment: {weight: 40}}", PLAIN)
    ours, theirs = (run.reported("round")[0]["clients"]["client-000"] for run in (aligned, plain))
    assert ours["loss_first"] == pytest.approx(theirs["loss_first"], abs=1e-5)
    assert ours["loss"] > theirs["loss"] + 1e-3
    assert aligned.checkpoint(1).blocks.keys() == plain.checkpoint(1).blocks.keys(), "received heads are not sent"


def test_balanced_classes_are_counted_from_what_clients_train_on(tmp_path: Path) -> None:
    shares = ("evaluation={holdout_fraction: 0.2, federated_every: 1}", "data.validation_fraction=0.2")
    done = run_tiny(tmp_path / "a", f"model.objective={{{SUPERVISED}, class_weights: balanced}}", *shares)
    stage = done.bench.stage(done.keys[0])
    held = [done.bench.share(stage, Place(), client)[0] for client in ("client-000", "client-001")]
    counts = Counter(example.label for share in held for example in share)
    expected = [counts[label] for label in range(done.run.num_classes or 0)]
    assert done.run.data.class_counts == expected == list(stage.class_counts) and sum(expected) == 16
    listed = json.dumps(balanced_weights(expected))
    other = run_tiny(tmp_path / "b", f"model.objective={{{SUPERVISED}, class_weights: {listed}}}", *shares)
    assert other.digest == done.digest and other.run.data.class_counts == []
    assert run_tiny(tmp_path / "c", f"model.objective={{{SUPERVISED}}}", *shares).digest != done.digest


def test_a_smoothed_label_changes_training_and_not_the_reported_loss(tmp_path: Path) -> None:
    smooth, plain = (
        run_tiny(tmp_path / str(e), f"model.objective={{{SUPERVISED}, label_smoothing: {e}}}", PLAIN, *ONE_STAGE)
        for e in (0.9, 0)
    )
    first, same = (run.reported("round")[0]["clients"]["client-000"]["loss_first"] for run in (smooth, plain))
    assert first != same and smooth.digest != plain.digest
    metrics = smooth.summary["metrics"]
    assert metrics["test/loss"] == pytest.approx(plain.summary["metrics"]["test/loss"], rel=0.2)


def test_weights_that_do_not_fit_the_classes_are_refused(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, f"model.objective={{{SUPERVISED}, class_weights: [1, 2]}}")
    with pytest.raises(SpecError, match="class_weights"):
        prepared(spec, store=LocalStore(tmp_path))


def test_a_stage_without_its_counts_is_damaged(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, OBJECTIVES["attention"])
    ref = paths.stage_plan(done.keys[0])
    values = done.store.read_ref(ref)
    assert values is not None
    from lwfed.round.losses import class_weights_of

    for counts in ([], [0] * len(values["class_counts"]), ["1"], 3):
        done.store.write_ref(ref, {**values, "class_counts": counts})
        done.bench.stage.cache_clear()
        with pytest.raises(CheckpointError):
            class_weights_of(done.bench.stage(done.keys[0]), device=torch.device("cpu"))
