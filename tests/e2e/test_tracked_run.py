"""MLflow sees a run as it went, and being down it changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Ended, environment, succeed, together, write_spec

pytestmark = pytest.mark.slow

NOBODY = "http://127.0.0.1:9"
RECALL = "test/t2i/R_at_1"
"""Text-to-image Recall@1, as MLflow allows it to be spelt."""
LOOK = """
import base64, io, json, sys, warnings
warnings.simplefilter("ignore")
import mlflow, numpy, pandas
from mlflow import MlflowClient
from lwfed.data.protocol import open_source
from lwfed.spec.load import load_spec

client = MlflowClient(sys.argv[1])
experiment = client.get_experiment_by_name("lwfed")
runs = []
for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]):
    metric = sys.argv[2]
    runs.append({
        "id": run.info.run_id, "name": run.info.run_name, "status": run.info.status, "tags": run.data.tags,
        "params": run.data.params, "datasets": [item.dataset.name for item in run.inputs.dataset_inputs],
        "steps": [entry.step for entry in client.get_metric_history(run.info.run_id, metric)],
        "files": [file.path for file in client.list_artifacts(run.info.run_id)],
    })

mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/lwfed-tiny/1")
source = open_source(load_spec("spec.yaml").data)
rows = []
for example in source.examples("test"):
    file = io.BytesIO()
    source.image(example).save(file, format="png")
    rows.append({"image": base64.b64encode(file.getvalue()).decode(), "text": example.captions[0]})
given = model.predict(pandas.DataFrame(rows))
images, texts = (numpy.array(given[f"{m}_embedding"].tolist()) for m in ("image", "text"))
right = (texts @ images.T).argmax(axis=1) == numpy.arange(len(rows))
alone = numpy.array(model.predict(pandas.DataFrame({"text": ["a red circle"]}))["text_embedding"].tolist())
print(json.dumps({"runs": runs, "recall": float(right.mean()), "shapes": [images.shape, alone.shape],
                  "takes": model.metadata.signature.inputs.input_names()}))
"""
"""Reads what a tracking store has of a metric, and has the registered model find the test scenes of their captions."""


def _python(code: str, *arguments: str, cwd: Path) -> Any:
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def _warnings(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if line.startswith("warning:")]


def test_a_run_is_told_to_mlflow_as_it_went(trained: tuple[Path, Ended], tmp_path: Path) -> None:
    """One to a database, with its model; one to a server that is down, which is told from the log when it is back."""
    store = f"sqlite:///{tmp_path}/mlflow.db"
    spec = write_spec(tmp_path, tracking={"uri": store})
    told, silent = together(
        partial(succeed, "run", spec, "--run-id", "told", "-o", "store.uri=./told", "--json", cwd=tmp_path),
        partial(succeed, "run", spec, "--run-id", "silent", "-o", f"tracking.uri={NOBODY}", "--json", cwd=tmp_path),
    )
    digests = {ended.json["digest"] for ended in (told, silent, trained[1])}
    assert len(digests) == 1, "tracking changes nothing in the result"
    assert _warnings(told) == []
    assert len([line for line in _warnings(silent) if NOBODY in line]) == 1
    assert len(_warnings(silent)) <= 2 and "lwfed report silent --mlflow" in _warnings(silent)[-1]
    again = succeed("report", "silent", "--mlflow", "--json", cwd=tmp_path, MLFLOW_TRACKING_URI=store)
    assert again.json["mlflow"]["delivered"] == again.json["mlflow"]["told"] > 0

    seen = _python(LOOK, store, RECALL, cwd=tmp_path)
    assert len(seen["runs"]) == 6
    for ended in (told, silent):
        _check_runs(seen["runs"], run_id=ended.json["run_id"], digest=ended.json["digest"])
    assert seen["takes"] == ["image", "text"] and seen["shapes"] == [[8, 8], [1, 8]]
    assert seen["recall"] == pytest.approx(told.json["metrics"]["test/t2i/R@1"])


def _check_runs(runs: list[Mapping[str, Any]], *, run_id: str, digest: str) -> None:
    """Checks the run of an experiment and those of its two stages."""
    (parent,) = [run for run in runs if run["name"] == run_id]
    children = [run for run in runs if run["tags"].get("mlflow.parentRunId") == parent["id"]]
    assert [child["name"] for child in children] == ["stage 1", "stage 2"]
    assert {run["status"] for run in (parent, *children)} == {"FINISHED"}
    assert [run["steps"] for run in (parent, *children)] == [[1, 2, 3], [1, 2], [3]]  # by global round
    assert parent["tags"]["lwfed.digest"] == digest == children[1]["tags"]["lwfed.output_digest"]
    assert parent["params"]["training.batch_size"] == "8"
    assert parent["datasets"] and "report.html" in parent["files"]
    assert any(name.endswith(".svg") for name in parent["files"])
