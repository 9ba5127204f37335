"""Laws of many modalities: each has its own schedule of blocks, and one may have finished while others grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lwfed.data.prefix_inputs import Inputs
from lwfed.models.build import skeleton
from lwfed.round.draws import drawn_in
from lwfed.run.tasks import Place
from lwfed.types.errors import SpecError
from lwfed.types.tensors import unit_of
from tests.laws.test_laws_costs import first_batch, price
from tests.laws.test_laws_prefix import prefix_metrics
from tests.tiny import Finished, measured_of, run_tiny, tensor_digests, tiny_spec

AUDIO = (
    "model.encoders.audio={family: ast, config: {hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 2, "
    "intermediate_size: 32, max_length: 32, num_mel_bins: 32, patch_size: 8, frequency_stride: 8, time_stride: 8}}"
)
DEEPER = "model.encoders.image.config={img_size: 16, patch_size: 8, embed_dim: 16, depth: 4, num_heads: 2}"
BLOCKS = {"image": (2, 2, 0), "text": (1, 0, 1), "audio": (1, 1, 1)}
SCHEDULES = tuple(f"model.encoders.{m}.blocks_per_stage={list(blocks)}" for m, blocks in BLOCKS.items())
THREE = (AUDIO, DEEPER, *SCHEDULES, "stages.rounds=[1, 1, 1]")
SUPERVISED = "model.objective={kind: supervised, hidden: 12}"
KEEP = "levers.prefix_cache=always"
TASKS = ("a2i", "a2t", "i2a", "i2t", "t2a", "t2i")


@pytest.fixture(scope="module")
def contrastive(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_tiny(tmp_path_factory.mktemp("contrastive"), *THREE, KEEP)


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_tiny(tmp_path_factory.mktemp("supervised"), *THREE, SUPERVISED)


def test_each_modality_has_its_own_schedule(contrastive: Finished) -> None:
    for stage, plan in enumerate(contrastive.plans):
        assert plan.depth == {m: sum(blocks[: stage + 1]) for m, blocks in BLOCKS.items()}
        assert plan.cut == {m: sum(blocks[:stage]) for m, blocks in BLOCKS.items()}
        assert plan.model.modalities == ("audio", "image", "text")
        grown = {unit.split(".")[0] for unit in plan.appended if ".blocks." in unit}
        assert grown == {m for m, blocks in BLOCKS.items() if blocks[stage]}
        assert {f"{m}.projection" for m in BLOCKS} <= set(plan.trained)


def test_every_pair_is_embedded_and_evaluated(contrastive: Finished, supervised: Finished) -> None:
    metrics = contrastive.summary["metrics"]
    assert {f"test/{task}/R@1" for task in TASKS} <= metrics.keys()
    assert all(0 <= metrics[f"test/{task}/R@10"] <= 1 for task in TASKS)
    assert 0 <= supervised.summary["metrics"]["test/accuracy"] <= 1
    assert supervised.plans[0].present[-1] == "prediction"


@pytest.mark.parametrize("kind", ["contrastive", "supervised"])
def test_a_modality_that_has_finished_keeps_its_blocks_and_trains_its_head(
    kind: str, request: pytest.FixtureRequest
) -> None:
    done: Finished = request.getfixturevalue(kind)
    before, after = (tensor_digests(done.checkpoint(stage)) for stage in (2, 3))
    images = {unit_of(name) for name in after if name.startswith("image.") and before.get(name) == after[name]}
    frozen = {"image.stem", *(f"image.blocks.{i}" for i in range(4))}
    assert frozen <= images and frozen <= set(done.plans[2].frozen)
    assert "image.projection" not in images and "image.norm" not in images
    assert all(before[name] == after[name] for name in before if unit_of(name) in done.plans[2].frozen)


@pytest.mark.parametrize("kind", ["contrastive", "supervised"])
def test_costs_are_the_ledgers(kind: str, request: pytest.FixtureRequest) -> None:
    done: Finished = request.getfixturevalue(kind)
    for stage, (plan, cost) in enumerate(zip(done.plans, done.run.predicted, strict=True), start=1):
        module = skeleton(plan.model, depth=plan.depth, num_classes=done.run.num_classes)
        assert cost["present_params"] == sum(p.numel() for p in module.parameters())
        measured = done.summary["stages"][stage - 1]["ledger"]["measured"]
        assert measured["bytes_up"] == cost["upload_bytes"] and measured["bytes_down"] == cost["download_bytes"]
        record = next(record for record in done.reported("round") if record["stage"] == stage)
        for client, metrics in measured_of(record).items():
            batch = first_batch(done, stage, client)
            size, length = batch.inputs["text"]["ids"].shape
            exact = price(done, stage, tokens=length)
            pairs = 3 if kind == "contrastive" else 0
            loss = pairs * 2 * (2 * size * size * plan.model.projection.out)
            step = metrics["step_flops"]
            assert step["forward"] == pytest.approx(size * exact.forward_flops + loss, rel=0.02)
            assert step["backward"] == pytest.approx(size * exact.backward_flops + 2 * loss, rel=0.02)
            assert metrics["peak_tensor_bytes"] == pytest.approx(exact.peak_bytes, rel=0.10)


def test_the_cache_holds_the_frozen_blocks_of_each(contrastive: Finished) -> None:
    """Text has no new block at stage 2, so its outputs are kept; the captions that only stage 3 draws join them."""
    bench, stages = contrastive.bench, [contrastive.bench.stage(key) for key in contrastive.keys]
    for client, metrics in contrastive.reported("round")[2]["clients"].items():
        examples, _ = bench.share(stages[2], Place(device="cpu"), client)
        texts = Inputs("text", tuple(examples), bench.inputs(stages[2]), stages[2].plan.seed, False, 5)
        before, now = (set(drawn_in(stage.plan, (1,), inputs=texts)) for stage in stages[1:])
        assert metrics["prefix_filled"] == {"audio": {"2": 12}, "image": {"3": 12}, "text": {"0": len(now - before)}}
        assert set(metrics["prefix"].values()) == {"filled"}
    computed = prefix_metrics(contrastive, 1)
    assert not any("prefix" in metrics for metrics in computed)


def test_the_cache_changes_the_loss_only_by_rounding(contrastive: Finished, tmp_path: Path) -> None:
    computed = run_tiny(tmp_path, *THREE, "levers.prefix_cache=never")
    losses = [[r["metrics"]["train/loss"] for r in done.reported("round")] for done in (contrastive, computed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("objective", [(), (SUPERVISED,)])
def test_with_one_stage_all_strategies_are_one(tmp_path: Path, objective: tuple[str, ...]) -> None:
    whole = tuple(f"model.encoders.{m}.blocks_per_stage={sum(blocks)}" for m, blocks in BLOCKS.items())
    runs: list[Any] = [
        run_tiny(tmp_path / s, AUDIO, DEEPER, *whole, "stages.rounds=[1]", *objective, f"strategy={s}")
        for s in ("layerwise", "progressive", "end_to_end")
    ]
    assert len({done.digest for done in runs}) == 1


def test_a_schedule_that_does_not_fit_is_refused_by_name() -> None:
    short = "model.encoders.audio.blocks_per_stage=[1, 1]"
    with pytest.raises(SpecError, match=r"model\.encoders\.audio\.blocks_per_stage.* has 2 entries for 3 stages"):
        tiny_spec("x", *THREE, short)
    late = "model.encoders.audio.blocks_per_stage=[0, 1, 2]"
    with pytest.raises(SpecError, match="the first stage needs at least one block"):
        tiny_spec("x", *THREE, late)
    for wrong in ("model.encoders.smell={family: ast}", "model.encoders.accelerometer={family: ast}"):
        with pytest.raises(SpecError, match="the family ast encodes `audio`, not"):
            tiny_spec("x", wrong)
    with pytest.raises(SpecError, match="encodes `accelerometer` or `gyroscope` or `series`, not `image`"):
        tiny_spec("x", "model.encoders.image={family: timeseries}")
    with pytest.raises(SpecError, match="the shapes data have no gyroscope"):
        tiny_spec("x", "model.encoders.gyroscope={family: timeseries}")
