"""The whole pipeline as processes of this machine: the digest of `lwfed run`, and nothing done twice."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from kfp import local

from components.building import at
from components.prepare import prepare
from components.train_stage import train_stage
from lwfed.run import runs
from lwfed.store import paths
from lwfed.store.local import LocalStore
from pipelines.pipeline import experiment_pipeline
from pipelines.spec_text import spec_text
from pipelines.stages import Work
from tests.tiny import run_tiny, tiny_spec

SHORT = ("stages.rounds=[1,1]",)
OUTSIDE = (*SHORT, "launch.kind=subprocess", "launch.parallel=2")
PYTHON = "python"
"""No image is pulled; kfp warns of one that is not Python's."""


def run_locally(work: Work, *, folder: Path) -> None:
    """Runs the pipeline to its end; raises RuntimeError if a task fails. `folder` is for what the tasks hand on."""
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder), raise_on_error=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about images and Kubernetes' settings, which do not apply here
        experiment_pipeline(work)()


def parameters_of(task: Path) -> dict[str, str]:
    """Reads what a task handed on, besides files."""
    values = json.loads((task / "executor_output.json").read_text(encoding="utf-8"))["parameterValues"]
    assert isinstance(values, dict)
    return values


def artifact_of(task: Path, name: str) -> dict[str, Any]:
    """Reads an artifact that a task left."""
    values = json.loads((task / "executor_output.json").read_text(encoding="utf-8"))["artifacts"]
    (artifact,) = values[name]["artifacts"]
    assert isinstance(artifact, dict)
    return artifact


@pytest.mark.slow
def test_pipeline_ends_in_the_digest_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here = run_tiny(tmp_path / "here", *SHORT)
    spec = tiny_spec(tmp_path / "store", *OUTSIDE, "kubernetes.env={LWFED_RUN_ID: piped}")
    run_locally(Work(spec), folder=tmp_path / "tasks")

    store = LocalStore(tmp_path / "store")
    run = runs.read_run(store, "piped")
    stages, rounds = runs.history(store, run)
    assert stages[-1].digest == here.digest and len(rounds) == 2
    summary = store.read_ref(paths.summary("piped"))
    assert summary is not None and summary["digest"] == here.digest
    assert summary["status"] == "finished"
    outputs = next((tmp_path / "tasks").glob("lwfed-experiment-*"))
    assert parameters_of(outputs / "train-stage-2") == {"digest": here.digest}
    assert "</html>" in (outputs / "report" / "page").read_text(encoding="utf-8")
    model = artifact_of(outputs / "report", "model")
    assert Path(model["uri"]).is_relative_to(outputs / "report")  # what KFP copies: under its root, not the store's
    assert json.loads(Path(model["uri"]).read_text(encoding="utf-8")) == model["metadata"]
    assert model["metadata"]["digest"] == here.digest
    assert Path(model["metadata"]["store_uri"].removeprefix("file://")).is_file()

    # the same work, asked for by another run, is known by its key
    monkeypatch.setenv("LWFED_RUN_ID", "again")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "tasks"))
    text, uri = spec_text(spec), str(tmp_path / "store")
    begun = at(prepare, PYTHON)(spec=text, store=uri)
    plan_digest = ""
    done = at(train_stage, PYTHON)(
        spec=text, store=uri, stage=1, plan_digest=plan_digest, **{key: begun.outputs[key] for key in begun.outputs}
    )
    again = runs.read_run(store, "again")
    assert done.outputs["digest"] == stages[0].digest
    assert again.stages == run.stages[:1]
    assert runs.history(store, again)[0][0].reused
    assert done.outputs["metrics"].metadata
    capfd.readouterr()


@pytest.mark.slow
def test_a_failed_task_ends_the_pipeline_and_what_it_leaves_is_cleaned_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec(tmp_path / "store", "data={source: coco, root: /nowhere}")
    with pytest.raises(RuntimeError, match="prepare"):
        run_locally(Work(spec), folder=tmp_path / "tasks")
    told = capfd.readouterr().out
    assert "lwfed.types.errors.DataError: " in told and '"state": "FAILED"' in told
    outputs = next((tmp_path / "tasks").glob("lwfed-experiment-*"))
    assert {path.name for path in outputs.iterdir()} == {"cleanup"}
