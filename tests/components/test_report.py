"""The model that `report` records: its URI stays the one that Kubeflow Pipelines chose, wherever the store is.

Their launcher copies each output to its URI, and fails a task whose output has one outside of the run's pipeline root
(seen on 2.17.0, and in backend/src/v2/component/launcher_v2.go).
"""

import json
from pathlib import Path

import pytest
from kfp import dsl

from components.report.component import report
from lwfed.run.specs import pack_spec
from tests.tiny import ONE_STAGE, run_tiny, tiny_spec


@pytest.mark.parametrize("place", ["root/store", "store"], ids=["inside the pipeline root", "outside"])
def test_the_model_stays_where_kubeflow_put_it_and_says_where_its_weights_are(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = tmp_path / "root", tmp_path / place
    run = run_tiny(folder, *ONE_STAGE)
    monkeypatch.setenv("LWFED_RUN_ID", run.run.run_id)
    task = root / "lwfed-experiment" / "id" / "report"
    task.mkdir(parents=True)
    metrics, page, model = (
        kind(name=name, uri=str(task / name), metadata={})
        for kind, name in ((dsl.Metrics, "metrics"), (dsl.HTML, "page"), (dsl.Model, "model"))
    )
    report.python_func(
        spec=pack_spec(tiny_spec(folder, *ONE_STAGE), store=run.store), store=run.store.uri, stage=len(run.plans),
        digest=run.digest, metrics=metrics, page=page, model=model,
    )  # fmt: skip
    assert model.uri == str(task / "model") and Path(model.uri).is_relative_to(root)
    assert json.loads(Path(model.path).read_text(encoding="utf-8")) == model.metadata
    assert model.metadata["digest"] == run.digest and model.metadata["run_id"] == run.run.run_id
    weights = Path(model.metadata["store_uri"].removeprefix("file://"))
    assert weights.is_relative_to(folder) and json.loads(weights.read_bytes())["digest"] == run.digest
    assert all(isinstance(value, str) for value in model.metadata.values()), "Kubeflow turns numbers into others"
