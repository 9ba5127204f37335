"""Laws of presets and their variants: true to the paper's tables, each reached by one name, and refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.plan.stages import StagePlan, learning_rates, plan_stages
from lwfed.spec.load import build_spec, load_spec, preset_names, to_values
from lwfed.spec.run import RunSpec
from lwfed.spec.variants import all_variants, variant_names
from lwfed.types.errors import NotFoundError, SpecError

COCO = {
    "image": (1e-7, 1e-7, 1e-7, 5e-6, 3e-5, 5e-5),
    "text": (1e-7, 1e-7, 1e-7, 1e-5, 3e-5, 5e-5),
    "projection": (3e-4,) * 6,
}
ADVANCE = {
    "image": (1e-7, 1e-7, 1e-7, 5e-7, 1e-6, 5e-6),
    "audio": (1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 3e-5),
    "projection": (1e-4,) * 6,
    "prediction": (1e-4,) * 6,
}
"""Module group -> the paper's base rate at each stage."""
DEPTHS = {"image": 12, "text": 6, "audio": 6}


def plans_of(spec: RunSpec) -> tuple[StagePlan, ...]:
    return plan_stages(spec, depths={modality: DEPTHS[modality] for modality in spec.model.modalities})


@pytest.mark.parametrize("kind", ["layerwise", "layerwise-lean", "progressive", "end-to-end"])
@pytest.mark.parametrize(("data", "base"), [("coco", COCO), ("advance", ADVANCE)])
def test_presets_have_the_papers_rates_and_weight_decays(
    data: str, base: dict[str, tuple[float, ...]], kind: str
) -> None:
    spec = load_spec(f"{data}-{kind}")
    plans = plans_of(spec)
    stages = [6] if kind == "end-to-end" else range(1, 7)
    factor = {"coco": 32, "advance": 16}[data] / 256
    assert learning_rates(plans) == {
        group: pytest.approx(tuple(rates[stage - 1] * factor for stage in stages)) for group, rates in base.items()
    }
    for plan in plans:
        assert {group: rates.weight_decay for group, rates in plan.rates.items()} == {
            group: 1e-6 if group == "projection" else 1e-2 for group in base
        }


def test_the_rates_of_the_last_stage_are_those_that_the_paper_ran() -> None:
    coco, advance = (learning_rates(plans_of(load_spec(f"{data}-progressive"))) for data in ("coco", "advance"))
    assert [coco[group][-1] for group in ("image", "text", "projection")] == pytest.approx([6.25e-6, 6.25e-6, 3.75e-5])
    assert advance["image"][-1] == pytest.approx(3.125e-7) and advance["audio"][-1] == pytest.approx(1.875e-6)
    assert load_spec("coco-layerwise@batch-1024").training.batch_size / 256 == 4


@pytest.mark.parametrize("data", ["coco", "advance"])
def test_final_norms_are_fresh_and_trained_in_every_stage(data: str) -> None:
    spec = load_spec(f"{data}-layerwise")
    norms = {f"{m}.norm" for m, encoder in spec.model.encoders.items() if encoder.fresh_norm}
    assert norms == ({"image.norm"} if data == "coco" else {"image.norm", "audio.norm"})
    assert all(norms <= set(plan.trained) for plan in plans_of(spec))
    assert all(encoder.weights is None for encoder in spec.model.encoders.values())


@pytest.mark.parametrize("name", variant_names())
def test_a_variant_is_its_preset_with_its_keys_changed(name: str) -> None:
    preset, variant = name.split("@")
    (changes,) = [
        group.variants[variant] for group in all_variants() if preset in group.of and variant in group.variants
    ]
    spec = load_spec(name)
    assert spec != load_spec(preset, overrides=[f"name={spec.name}"]), "a variant that changes nothing is none"
    overrides = [f"name={spec.name}", *(f"{key}={value}" for key, value in changes.items())]
    assert to_values(spec) == to_values(load_spec(preset, overrides=overrides))
    assert spec.name == f"{preset}-{variant}"


def test_every_group_names_presets_that_are_there_and_each_variant_once() -> None:
    assert {preset for group in all_variants() for preset in group.of} <= set(preset_names())
    assert len(variant_names()) == len(set(variant_names()))
    assert not set(variant_names()) & set(preset_names())


def test_variants_of_several_groups_are_joined_in_any_order() -> None:
    joined = load_spec("advance-layerwise@alpha-0.05@90_lh10_lr@40-clients-10-active", overrides=["seed=3"])
    again = load_spec("advance-layerwise@40-clients-10-active@90_lh10_lr@alpha-0.05", overrides=["seed=3"])
    assert joined.federation.partition.alpha == 0.05 and joined.federation.fraction_fit == 0.25 and joined.seed == 3
    assert joined.stages.rounds == (0, 0, 0, 10, 30, 50)
    assert to_values(joined) | {"name": None} == to_values(again) | {"name": None}
    long = load_spec("advance-end-to-end@alpha-0.05@90_lh10_lr@40-clients-10-active@image-64@hidden-1024@out-1024")
    assert len(long.name) == 60


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("coco-layerwise@90_lh10", "coco-layerwise@90_lh10_lr"),
        ("coco-layerwse@90_lh10_lr", "coco-layerwise@90_lh10_lr"),
        ("advance-layerwise@40-clients@alpha-.05", "advance-layerwise@alpha-0.05"),
        ("coco-progressive@eligible-0.9", "coco-progressive@eligible-0.8"),
        ("shapes-layerwise@batch-64", "shapes-layerwise"),
        ("coco-layerwise@", "90_lh10_lr"),
        ("coco-layerwise@eligible-0.5", "variants"),
    ],
)
def test_an_unknown_variant_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        load_spec(name)
    assert nearest in caught.value.remedy


@pytest.mark.parametrize("name", ["coco-layerwise@batch-64@batch-128", "coco-layerwise@batch-64@batch-64"])
def test_two_variants_of_one_group_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="`batch-64` and "):
        load_spec(name)


def test_a_file_may_have_the_mark_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "me@home.yaml"
    path.write_text("name: mine", encoding="utf-8")
    assert load_spec(str(path)).name == "mine"


@pytest.mark.parametrize(("fraction", "clients", "eligible"), [(0.8, 10, 8), (0.7, 10, 7), (0.3, 40, 12), (1.0, 3, 3)])
def test_the_first_clients_take_part(fraction: float, clients: int, eligible: int) -> None:
    spec = build_spec({"federation": {"num_clients": clients, "eligible_fraction": fraction}})
    cohort = plan_stages(spec, depths={"image": 12, "text": 6})[0].cohort
    assert spec.federation.eligible == eligible == len(cohort.clients)
    assert cohort.clients[-1] == f"client-{eligible - 1:03d}" and cohort.num_clients == clients


@pytest.mark.parametrize(
    "federation",
    [
        {"eligible_fraction": 0},
        {"eligible_fraction": 1.5},
        {"eligible_fraction": "half"},
        {"eligible_fraction": 0.05, "num_clients": 10},
        {"eligible_fraction": 0.5, "num_clients": 10, "min_fit_clients": 6},
        {"eligible_fraction": 0.5, "num_clients": 10, "min_available_clients": 6},
        {"partition": {"kind": "contiguous", "alpha": 0.5}},
    ],
)
def test_clients_that_cannot_be_are_refused(federation: dict[str, object]) -> None:
    key = next(key for key in ("alpha", *reversed(federation)) if key in str(federation) and key != "num_clients")
    with pytest.raises(SpecError, match=key):
        build_spec({"federation": federation})


def test_a_fresh_norm_needs_a_final_norm() -> None:
    with pytest.raises(SpecError, match="fresh_norm"):
        build_spec({}, overrides=["model.encoders.text.fresh_norm=true"])


def test_plans_that_do_not_use_later_keys_stay_as_they_were() -> None:
    def values(*overrides: str) -> dict[str, object]:
        spec = build_spec({}, overrides=overrides)
        return plan_stages(spec, depths={"image": 12, "text": 6})[0].model_dump(mode="json")

    assert "eligible" not in str(values()) and "fresh_norm" not in str(values())
    assert values("model.encoders.image.fresh_norm=true") == values(), "without weights every norm is fresh"
    assert "fresh_norm" in str(values("model.encoders.image.fresh_norm=true", "model.encoders.image.weights=x/y"))
    used = values("federation.eligible_fraction=0.5")
    assert used != values() and StagePlan.model_validate(used).model_dump(mode="json") == used
