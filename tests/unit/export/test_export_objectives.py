"""Exports and predictors of models with each fusion, and with a learnable temperature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lwfed.catalog import names
from lwfed.catalog.fusion import fusion_kind
from lwfed.drive.trackers import uri_of
from lwfed.export.export import export_run
from lwfed.export.serve import load_predictor
from lwfed.run.tasks import Place
from tests.tiny import ONE_STAGE, run_tiny, tensors_of
from tests.unit.catalog.test_additions import run_example


@pytest.mark.parametrize("fusion", names("fusions"))
def test_a_fusion_classifies_alike_with_and_without_lwfed(tmp_path: Path, fusion: str) -> None:
    done = run_tiny(
        tmp_path / "store", f"model.objective={{kind: supervised, fusion: {fusion}, hidden: 12}}", *ONE_STAGE
    )
    export_run(done.run.run_id, tmp_path / "export", bench=done.bench)
    assert (tmp_path / "export/heads/fusion.safetensors").exists() is (fusion_kind(fusion).unit is not None)
    source = done.bench.data(done.bench.stage(done.keys[0]), Place())
    example = source.examples("test")[0]
    source.image(example).save(tmp_path / "image.png")
    line = run_example(tmp_path / "export", tmp_path / "image.png", Path(example.captions[0]))
    predictor = load_predictor(uri_of(done.store.uri, done.keys[0]), done.digest)
    best, shares = predictor.classify(images=[source.image(example)], texts=[example.captions[0]])
    assert line.split(": ")[0] == best[0]
    assert float(line.split(": ")[1]) == pytest.approx(float(shares.max()), abs=1e-5)


def test_a_learnt_temperature_is_exported(tmp_path: Path) -> None:
    objective = "model.objective={temperature: 0.07, learnable_temperature: true}"
    done = run_tiny(tmp_path / "store", objective, *ONE_STAGE)
    export_run(done.run.run_id, tmp_path / "export", bench=done.bench, with_test_data=True)
    info = json.loads((tmp_path / "export/lwfed.json").read_text())
    learnt = tensors_of(done.store, done.checkpoint(1))["temperature.log"].exp().item()
    assert info["temperature"] == pytest.approx(learnt) and info["temperature"] != pytest.approx(0.07, rel=1e-4)
    line = run_example(tmp_path / "export")
    assert float(line.split(": ")[1]) == pytest.approx(done.summary["metrics"]["test/t2i/R@1"], abs=1e-6)
    predictor = load_predictor(uri_of(done.store.uri, done.keys[0]), done.digest)
    assert predictor.embed_texts(["a red circle"]).shape == (1, 8)
