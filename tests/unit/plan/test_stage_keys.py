"""Laws of a stage's key: it changes with all that decides the result, and with nothing else."""

from __future__ import annotations

import pytest

from lwfed.plan.stages import DataPlan, StagePlan, plan_stages, stage_key
from lwfed.spec.base import LATER
from lwfed.spec.load import build_spec
from tests.tiny import DEPTHS, VALUES

VERSIONS = {"input_digest": "", "code_version": "c", "data_version": "d"}


def keys(*overrides: str, depths: dict[str, int] | None = None, **versions: str) -> list[str]:
    plans = plan_stages(build_spec(VALUES, overrides=overrides), depths=depths or DEPTHS)
    return [stage_key(plan, **{**VERSIONS, **versions}) for plan in plans]


@pytest.mark.parametrize(
    "override",
    [
        "name=other", "launch={kind: subprocess, parallel: 4, retries: 3, device: cpu}", "launch.device=auto",
        "store.uri=/elsewhere", "store.keep_rounds=0", "tracking={uri: 'http://x', experiment: y, register_as: z}",
        "data.workers=7", "federation.round_timeout_s=5",
    ],
)  # fmt: skip
def test_a_key_does_not_change_with_where_and_how_fast(override: str) -> None:
    assert keys(override) == keys()


def test_a_key_does_not_change_with_the_place_of_the_data() -> None:
    advance = (
        "data={source: advance, root: /a}",
        "model.encoders={image: {family: vit, arch: x}, audio: {family: ast}}",
    )
    depths = {"image": 2, "audio": 2}
    assert keys(*advance, depths=depths) == keys(*advance, "data.root=/b", depths=depths)
    assert keys(*advance, depths=depths) != keys(*advance, "data.test_fraction=0.5", depths=depths)


def test_a_key_does_not_change_with_the_settings_of_a_source_that_is_not_used() -> None:
    assert keys("data.test_fraction=0.5") == keys()


@pytest.mark.parametrize(
    ("kind", "option", "default"),
    [
        ("contrastive", "learnable_temperature: true", "learnable_temperature: false"),
        ("contrastive", "alignment: {weight: 1}", "alignment: null"),
        ("supervised", "label_smoothing: 0.1", "label_smoothing: 0"),
        ("supervised", "class_weights: balanced", "class_weights: null"),
        ("supervised", "class_weights: [1, 2]", "class_weights: null"),
        ("supervised", "fusion: concat_sum", "fusion: concat"),
    ],
)
def test_an_option_of_the_objective_is_part_of_the_plans_that_use_it(kind: str, option: str, default: str) -> None:
    used, unused, without = (f"model.objective={{kind: {kind}{rest}}}" for rest in (f", {option}", f", {default}", ""))
    assert keys(unused) == keys(without) and not set(keys(used)) & set(keys(without))
    for override in (used, without):
        plan = plan_stages(build_spec(VALUES, overrides=[override]), depths=DEPTHS)[0]
        written = plan.model_dump(mode="json")
        assert StagePlan.model_validate(written) == plan
        options = {name for name, field in type(plan.model.objective).model_fields.items() if LATER in field.metadata}
        assert (options and not options & written["model"]["objective"].keys()) or override == used


def test_a_data_plan_names_the_data_whatever_their_place() -> None:
    spec = build_spec(VALUES)
    plan = plan_stages(spec, depths=DEPTHS)[0].data
    written = plan.model_dump(mode="json")
    assert written["shapes"] == spec.data.own["shapes"].model_dump() and "test_fraction" not in written
    for values in (
        written,
        {**written, "test_fraction": None},
    ):  # plans used to have a null for the other sources' keys
        assert DataPlan.model_validate(values).at(root=None, workers=0) == spec.data


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "strategy=progressive", "stages.rounds=[3,2]", "data.augment=true", "data.shapes.train=30",
        "data.on_bad_example=skip", "model.encoders.text.max_tokens=32", "model.encoders.image.config.num_heads=4",
        "model.projection.dropout=0.2", "model.objective.temperature=0.1", "training.batch_size=6",
        "training.learning_rate=1e-3", "training.learning_rates.projection=1e-3", "training.local_epochs=2",
        "training.local_steps=3", "training.proximal_mu=0.1", "training.clip_norm=1", "training.precision=bf16",
        "training.threads=2", "training.weight_decay=0.1", "training.gradient_accumulation=2",
        "federation.num_clients=3", "federation.partition={kind: dirichlet, alpha: 1}", "federation.fraction_fit=0.5",
        "federation.min_fit_clients=1", "federation.server.kind=fedadam", "federation.server.eta=0.5",
        "evaluation.holdout_fraction=0.2", "evaluation.every=2",
    ],
)  # fmt: skip
def test_a_key_changes_with_what_decides_the_result(override: str) -> None:
    assert keys(override)[0] != keys()[0]


def test_a_key_changes_with_devices_because_sums_are_taken_apart() -> None:
    assert keys("launch={kind: subprocess, devices: 2}")[0] != keys()[0]


@pytest.mark.parametrize("version", ["input_digest", "code_version", "data_version"])
def test_a_key_changes_with_input_code_and_data(version: str) -> None:
    assert keys(**{version: "x"})[0] != keys()[0]


def test_each_stage_has_a_key_and_a_later_change_leaves_the_earlier_ones() -> None:
    first, second = keys()
    assert first != second and len(first) == 64
    later = keys("stages.rounds=[2,3]")
    assert later[0] == first and later[1] != second
