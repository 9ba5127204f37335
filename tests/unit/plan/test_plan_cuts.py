"""Laws of the plan: what is present, trained and cut at each stage, and at which rates."""

from __future__ import annotations

from typing import Any

import pytest

from lwfed.plan.stages import StagePlan, learning_rates, plan_stages
from lwfed.plan.strategies import stage_rounds
from lwfed.plan.units import group_of, units_of
from lwfed.spec.load import build_spec
from lwfed.types.errors import SpecError
from tests.tiny import DEPTHS, VALUES

DEEP = {"image": 12, "text": 6}
PAPER = {"name": "paper", "stages": {"rounds": [15] * 6}}
"""The defaults: ViT with two blocks a stage, DistilBERT with one."""
SUPERVISED = {
    "data": {"source": "advance", "root": "/x"},
    "model": {
        "encoders": {"image": {"family": "vit", "arch": "x", "blocks_per_stage": 2}, "audio": {"family": "ast"}},
        "objective": {"kind": "supervised"},
    },
    "stages": {"rounds": [1, 1, 1]},
}


def plans(values: dict[str, Any], *overrides: str, depths: dict[str, int] | None = None) -> tuple[StagePlan, ...]:
    return plan_stages(build_spec(values, overrides=overrides), depths=depths or DEEP)


def test_layerwise_trains_the_new_blocks_and_the_heads() -> None:
    stages = plans(PAPER)
    assert len(stages) == 6
    first, third = stages[0], stages[2]
    assert first.trained == first.present == first.appended and first.cut == {"image": 0, "text": 0}
    assert "image.stem" in first.trained and "text.stem" in first.trained, "the stem is trained in stage 1"
    assert third.trained == (
        "image.blocks.4", "image.blocks.5", "image.norm", "image.projection", "text.blocks.2", "text.projection"
    )  # fmt: skip
    assert third.appended == ("image.blocks.4", "image.blocks.5", "text.blocks.2")
    assert third.cut == {"image": 4, "text": 2} and third.depth == {"image": 6, "text": 3}
    assert third.frozen == (
        "image.stem", *(f"image.blocks.{i}" for i in range(4)), "text.stem", "text.blocks.0", "text.blocks.1"
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["layerwise", "progressive", "end_to_end"])
@pytest.mark.parametrize("values", [PAPER, SUPERVISED])
def test_laws_of_every_stage(strategy: str, values: dict[str, Any]) -> None:
    depths = {"image": 6, "audio": 3} if values is SUPERVISED else DEEP
    stages = plans(values, f"strategy={strategy}", depths=depths)
    spec = build_spec(values, overrides=[f"strategy={strategy}"])
    before: set[str] = set()
    for stage in stages:
        present, trained = set(stage.present), set(stage.trained)
        assert len(stage.present) == len(present) and trained <= present
        assert set(stage.frozen) | trained == present and not set(stage.frozen) & trained
        assert set(stage.appended) == present - before and before <= present, "blocks are only added"
        assert stage.present == units_of(spec.model, stage.depth)
        order = {unit: n for n, unit in enumerate(stage.present)}
        assert list(stage.trained) == sorted(stage.trained, key=order.__getitem__)
        for modality, cut in stage.cut.items():
            prefix = {f"{modality}.stem", *(f"{modality}.blocks.{i}" for i in range(cut))} if cut else set()
            assert prefix == {unit for unit in stage.frozen if unit.startswith(f"{modality}.")}
        assert all(unit in trained for unit in present if unit.endswith(("projection", "prediction", "norm")))
        assert set(stage.rates) == {group_of(unit) for unit in trained}
        before = present
    assert stages[-1].present == units_of(spec.model, depths)
    assert [s.first_round for s in stages] == [1 + sum(p.rounds for p in stages[:n]) for n in range(len(stages))]


def test_end_to_end_is_one_stage_of_all_rounds() -> None:
    (stage,) = plans(PAPER, "strategy=end_to_end", "stages.rounds=[0,0,4,8,10,14]")
    assert (stage.rounds, stage.num_stages, stage.depth) == (36, 1, DEEP)
    assert stage.trained == stage.present
    assert stage_rounds("end_to_end", [1, 2, 3]) == (6,) and stage_rounds("layerwise", [1, 2, 3]) == (1, 2, 3)


def test_progressive_trains_everything_that_is_present() -> None:
    for stage in plans(PAPER, "strategy=progressive"):
        assert stage.trained == stage.present and not stage.frozen


def test_blocks_may_be_shared_out_unevenly_and_a_modality_may_pause() -> None:
    stages = plans(VALUES, "model.encoders.image.blocks_per_stage=[2,0]", depths=DEPTHS)
    assert [stage.depth for stage in stages] == [{"image": 2, "text": 1}, {"image": 2, "text": 2}]
    assert stages[1].cut == {"image": 2, "text": 1}
    assert [u for u in stages[1].trained if u.startswith("image")] == ["image.norm", "image.projection"]


@pytest.mark.parametrize("blocks", ["1", "3", "[1,2,2,2,2,2]"])
def test_cuts_that_do_not_fit_the_encoder_are_refused(blocks: str) -> None:
    with pytest.raises(SpecError) as caught:
        plans(PAPER, "model.encoders.image={family: vit, arch: x}", "model.encoders.text.family=distilbert",
              f"model.encoders.image.blocks_per_stage={blocks}")  # fmt: skip
    message = str(caught.value)
    assert "`model.encoders.image.blocks_per_stage` appends" in message and "the encoder has 12" in message
    assert "make them sum to 12" in message


@pytest.mark.parametrize(("scaling", "factor"), [("null", 1), ("{reference_batch: 256}", 64 / 256), ("{}", 64 / 256)])
def test_rates_are_absolute_unless_scaled_and_are_set_by_group_and_stage(scaling: str, factor: float) -> None:
    stages = plans(
        PAPER, "training.batch_size=64", "training.learning_rate=1e-3", "training.weight_decay=0.1",
        "training.learning_rates={image: 2e-3, projection: [1, 2, 3, 4, 5, 6]}",
        "training.weight_decays={text: 0.5, projection: 0}", f"training.rate_scaling={scaling}",
    )  # fmt: skip
    for number, stage in enumerate(stages, start=1):
        assert stage.rates["image"].learning_rate == 2e-3 * factor
        assert stage.rates["text"].learning_rate == 1e-3 * factor
        assert stage.rates["projection"].learning_rate == number * factor
        decays = {group: rates.weight_decay for group, rates in stage.rates.items()}
        assert decays == {"image": 0.1, "text": 0.5, "projection": 0.0}
    assert learning_rates(stages)["projection"] == tuple(number * factor for number in range(1, 7))


@pytest.mark.parametrize(
    ("unit", "group"),
    [("image.stem", "image"), ("image.blocks.3", "image"), ("image.norm", "image"), ("text.projection", "projection"),
     ("prediction", "prediction")],
)  # fmt: skip
def test_groups_of_units(unit: str, group: str) -> None:
    assert group_of(unit) == group


def test_a_plan_is_written_and_read_without_loss() -> None:
    for stage in plans(PAPER):
        assert StagePlan.model_validate_json(stage.model_dump_json()) == stage


def test_round_seeds_are_all_different() -> None:
    stages = plans(PAPER)
    seeds = [stage.round_seed(r, who) for stage in stages for r in range(1, 4) for who in ("cohort", "client-000")]
    assert len(set(seeds)) == len(seeds)
    other = plans(PAPER, "seed=1")
    assert other[0].round_seed(1, "cohort") != stages[0].round_seed(1, "cohort")
