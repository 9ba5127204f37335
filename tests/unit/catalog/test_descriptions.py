"""Laws of the catalog: what a description says without torch is what the module of the same name does."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from lwfed.catalog import names
from lwfed.catalog.encoder import encoder_family
from lwfed.catalog.fusion import fusion_kind
from lwfed.catalog.launcher import launcher_kind
from lwfed.catalog.source import data_source
from lwfed.data.protocol import SourceModule
from lwfed.models.build import skeleton, tensor_specs
from lwfed.models.families import family_of
from lwfed.models.protocol import Encoder, Family
from lwfed.plan.units import units_of
from lwfed.spec.data import DataSpec
from lwfed.spec.model import ModelSpec
from lwfed.types.modalities import MODALITIES
from lwfed.types.tensors import unit_of
from tests.unit.models import small


def test_every_family_has_a_small_encoder() -> None:
    assert set(small.SMALL) == set(names("encoders"))


@pytest.mark.parametrize("name", small.SMALL)
def test_a_family_builds_what_its_description_says(name: str) -> None:
    description, encoder = encoder_family(name), small.SMALL[name]()
    family, modality = family_of(encoder), small.modality_of(encoder)
    assert isinstance(family, Family)
    model = ModelSpec.model_validate(
        {"encoders": {modality: encoder}, "objective": {"kind": "supervised"}, "projection": {"out": 8}}
    )
    whole = small.whole_depth(encoder)
    for count in range(whole + 1):
        depth = {modality: count}
        module = skeleton(model, depth=depth, num_classes=2)
        assert {unit_of(tensor) for tensor in tensor_specs(module)} == set(units_of(model, depth))
        if description.widths is not None:
            widths = description.widths(encoder)
            built = module.encoder(modality)
            assert (built.width, built.whole_width, len(widths)) == (widths[count], widths[-1], whole + 1)
    assert description.final_norm is (family.PREFIXES.norm is not None)
    assert description.feature_token is (type(module.encoder(modality)).advance_row is not Encoder.advance_row)


@pytest.mark.parametrize("name", names("fusions"))
def test_a_fusion_builds_what_its_description_says(name: str) -> None:
    description, modalities = fusion_kind(name), ("audio", "image", "text")
    module = import_module(f"lwfed.models.fusions.{name}").build(modalities, width=8)
    fused = module({modality: torch.zeros(2, 8) for modality in modalities})
    assert fused.shape == (2, module.width) == (2, description.width(3, 8))
    unit = None if description.unit is None else description.unit(modalities, 8)
    assert tensor_specs(module) == ({} if unit is None else dict(unit.tensors))


@pytest.mark.parametrize("name", names("sources"))
def test_a_source_and_its_description_have_one_name(name: str) -> None:
    assert isinstance(import_module(f"lwfed.data.sources.{name}"), SourceModule)
    assert data_source(name).modalities <= MODALITIES.keys()


@pytest.mark.parametrize("name", names("launchers"))
def test_a_launcher_and_its_description_have_one_name(name: str) -> None:
    module = import_module(f"lwfed.launch.{name}")
    assert hasattr(module, "make") and hasattr(module, "end_run") is launcher_kind(name).remote


def test_sources_that_add_the_same_key_mean_the_same_by_it() -> None:
    added: dict[str, str] = {}
    for name in names("sources"):
        for key, field in data_source(name).settings.fields().items():
            assert key not in DataSpec.model_fields and added.setdefault(key, repr(field)) == repr(field)
