"""Stored specs keep the meaning that they had: version 0.1 scaled rates by batch / 256 and did not say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lwfed.plan.stages import learning_rates, plan_stages
from lwfed.run.specs import unpack_spec
from lwfed.spec.load import build_spec, load_spec, preset_names, to_values
from lwfed.spec.stored import scales_implicitly, stored_values
from lwfed.store.local import LocalStore
from lwfed.types.errors import SpecError

OLD = {
    "shapes-layerwise": (4.0e-3, 3.0e-3, 1.5e-3),
    "shapes-end-to-end": (2.0e-3,),
    "shapes-supervised": (3.0e-3,),
}
"""Preset -> its rates as version 0.1 wrote them."""


def of_01(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored spec as version 0.1 wrote it."""
    training = {key: value for key, value in values["training"].items() if key != "rate_scaling"}
    return {**values, "training": training}


@pytest.mark.parametrize(
    "values", [{}, {"name": "x"}, {"training": {"batch_size": 8}}, of_01(to_values(build_spec({})))]
)
def test_a_spec_of_01_is_scaled_and_says_so_once_read(values: dict[str, Any]) -> None:
    assert scales_implicitly(values)
    read = build_spec(stored_values(values))
    assert read.training.rate_scaling is not None and read.training.rate_scaling.reference_batch == 256
    assert not scales_implicitly(to_values(read)), "what is stored now says what it means"


def test_a_spec_of_this_version_is_read_as_written() -> None:
    values = to_values(build_spec({"training": {"learning_rate": 1e-3}}))
    assert not scales_implicitly(values) and stored_values(values) == values
    assert build_spec(stored_values(values)).training.rate_scaling is None


def test_a_pipeline_parameter_of_01_is_scaled(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    spec = unpack_spec(json.dumps({"training": {"learning_rate": 1e-3}}), store=store)
    assert spec.training.rate_scaling is not None
    for text in ("[1]", "3", '"x"'):
        with pytest.raises(SpecError):
            unpack_spec(text, store=store)


@pytest.mark.parametrize("name", OLD)
def test_presets_keep_the_rates_of_01_bit_for_bit(name: str) -> None:
    spec = load_spec(name)
    depths = {m: sum(e.blocks_at(s) for s in range(1, spec.stages.count + 1)) for m, e in spec.model.encoders.items()}
    for by_stage in learning_rates(plan_stages(spec, depths=depths)).values():
        wanted = [rate * spec.training.batch_size / 256 for rate in OLD[name]]
        assert by_stage == tuple(wanted * (len(by_stage) // len(wanted)))


@pytest.mark.parametrize("name", preset_names())
def test_only_presets_of_the_paper_scale_their_rates(name: str) -> None:
    assert (load_spec(name).training.rate_scaling is None) == (not name.startswith(("coco", "advance")))
