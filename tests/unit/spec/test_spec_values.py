"""Laws of reading a spec: numbers as people write them, other tools' names, overrides, presets, and a round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lwfed.cost.architectures import architectures_of
from lwfed.cost.ledger import stage_costs
from lwfed.plan.stages import plan_stages
from lwfed.plan.units import units_of
from lwfed.spec.load import build_spec, load_spec, preset_names, to_values
from lwfed.spec.run import RunSpec
from lwfed.steps.prepare import count_architecture
from tests.tiny import VALUES


def from_file(folder: Path, text: str, *overrides: str) -> RunSpec:
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return load_spec(str(path), overrides=overrides)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4", "+1e-4", ".1e-3", "10e-5"])
def test_numbers_are_read_as_people_write_them(tmp_path: Path, text: str) -> None:
    written = from_file(tmp_path, f"training: {{learning_rate: {text}}}")
    given = build_spec({}, overrides=[f"training.learning_rate={text}"])
    assert written.training.learning_rate == given.training.learning_rate == pytest.approx(1e-4)


def test_a_small_number_is_a_number_in_free_tables_too(tmp_path: Path) -> None:
    """An encoder's `config` has no types of its own: what YAML reads is what the library gets."""
    encoders = (
        "model: {encoders: {text: {family: distilbert, config: {layer_norm_eps: 1e-6}}, image: {family: vit, arch: x}}}"
    )
    assert from_file(tmp_path, encoders).model.encoders["text"].config == {"layer_norm_eps": 1e-6}
    given = build_spec(VALUES, overrides=["model.encoders.text.config.layer_norm_eps=1e-6"])
    assert given.model.encoders["text"].config["layer_norm_eps"] == 1e-6


def test_text_that_looks_a_little_like_a_number_stays_text(tmp_path: Path) -> None:
    assert from_file(tmp_path, "name: e2e").name == "e2e"
    assert from_file(tmp_path, "name: 1e-4-run").name == "1e-4-run"
    assert build_spec({}, overrides=["name=3e"]).name == "3e"


@pytest.mark.parametrize(
    ("given", "section", "key", "value"),
    [
        ({"partition": {"kind": "dirichlet", "beta": 0.3}}, "partition", "alpha", 0.3),
        ({"partition": {"kind": "dirichlet", "alpha": 0.3}}, "partition", "alpha", 0.3),
        ({"fraction_train": 0.5}, None, "fraction_fit", 0.5),
        ({"fraction_fit": 0.5}, None, "fraction_fit", 0.5),
        ({"min_train_nodes": 3}, None, "min_fit_clients", 3),
        ({"min_available_nodes": 3}, None, "min_available_clients", 3),
    ],
)
def test_other_tools_names_are_understood(given: dict[str, Any], section: str | None, key: str, value: Any) -> None:
    federation = build_spec({"federation": given}).federation
    assert getattr(federation if section is None else getattr(federation, section), key) == value


def test_overrides_reach_into_tables_and_make_them() -> None:
    spec = build_spec(
        VALUES,
        overrides=[
            "model.encoders.image.config.depth=4",
            "training.learning_rates.image=[1e-3, 1e-4]",
            "federation.partition={kind: dirichlet, alpha: 0.5}",
            "federation.partition.min_size=4",
            "stages.rounds=[1, 0]",
            "tracking.uri=null",
            "data.augment=true",
            "training.batch_size=6",
            "training.batch_size=4",
        ],
    )
    assert spec.model.encoders["image"].config["depth"] == 4
    assert spec.model.encoders["image"].config["embed_dim"] == 16, "its neighbours stand"
    assert spec.training.learning_rates == {"image": (1e-3, 1e-4)}
    assert (spec.federation.partition.alpha, spec.federation.partition.min_size) == (0.5, 4)
    assert spec.stages.rounds == (1, 0) and spec.tracking.uri is None and spec.data.augment is True
    assert spec.training.batch_size == 4, "the last one counts"
    assert VALUES["model"]["encoders"]["image"]["config"]["depth"] == 2, "the values given are left alone"


def test_an_override_may_hold_an_equals_sign() -> None:
    assert build_spec({}, overrides=["tracking.uri=http://x/?a=b"]).tracking.uri == "http://x/?a=b"


def test_every_key_has_a_default() -> None:
    assert build_spec({}) == RunSpec()
    assert build_spec({"model": {"objective": {"temperature": 0.1}}}).model.objective.kind == "contrastive"
    assert build_spec({"name": "x", "strategy": "progressive", "seed": 3}).federation.num_clients == 10


def test_a_spec_is_frozen() -> None:
    spec = RunSpec()
    with pytest.raises(ValidationError):
        spec.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("clients", [1, 2, 3])
def test_values_are_complete_and_read_back_as_the_same_spec(clients: int) -> None:
    """What a run writes down must be read again, defaults and all."""
    for values in ({"federation": {"num_clients": clients}}, {**VALUES, "federation": {"num_clients": clients}}):
        spec = build_spec(values)
        text = json.dumps(to_values(spec))
        assert build_spec(json.loads(text)) == spec
        assert to_values(build_spec(json.loads(text))) == to_values(spec)
        assert spec.federation.quorum == min(2, clients)


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_plan_and_are_priced(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name, "a run is named after its preset"
    assert build_spec(json.loads(json.dumps(to_values(spec)))) == spec
    architectures = architectures_of(spec.model, folder=None, count=count_architecture)
    depths = {modality: item.depth for modality, item in architectures.items()}
    plans = plan_stages(spec, depths=depths)
    assert plans[-1].present == units_of(spec.model, depths)
    assert sum(plan.rounds for plan in plans) == sum(spec.stages.rounds)
    costs = stage_costs(plans, architectures=architectures, num_classes=13)
    assert all(cost.peak_bytes > cost.weights_bytes > 0 for cost in costs)


def test_presets_of_one_experiment_differ_in_their_strategy_alone() -> None:
    names = preset_names()
    for base in {name.removesuffix("-layerwise") for name in names if name.endswith("-layerwise")}:
        specs = [load_spec(f"{base}-{s}") for s in ("layerwise", "progressive", "end-to-end") if f"{base}-{s}" in names]
        alike = [to_values(spec) | {"name": None, "strategy": None} for spec in specs]
        assert all(values["model"] == alike[0]["model"] for values in alike)
        assert all(values["data"] == alike[0]["data"] for values in alike)
        assert len({spec.strategy for spec in specs}) == len(specs)


def test_a_part_of_a_default_encoder_can_be_changed() -> None:
    spec = build_spec({"name": "three-lines"}, overrides=["model.encoders.image.blocks_per_stage=3"])
    assert spec.model.encoders["image"].blocks_per_stage == 3
    assert spec.model.encoders["image"].arch and set(spec.model.encoders) == {"image", "text"}


def test_another_tools_name_overrides_a_complete_spec() -> None:
    complete = to_values(build_spec({}))
    assert build_spec(complete, overrides=["federation.min_train_nodes=3"]).federation.min_fit_clients == 3
