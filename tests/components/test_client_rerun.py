"""`lwfed rerun --endpoint`: a new pipeline run of the stages that are left, from what a parent committed."""

from __future__ import annotations

import pytest

from lwfed.launch.in_process import InProcess
from lwfed.round.workbench import Workbench
from lwfed.run.specs import unpack_spec
from lwfed.spec.load import load_spec
from lwfed.steps.experiment import run_stages
from lwfed.store.opening import open_store
from tests.components.compiled import IMAGE
from tests.components.conftest import Command
from tests.components.kfp_server import State
from tests.events import emit_to
from tests.tiny import prepared, tiny_spec


@pytest.mark.slow
def test_rerun_on_the_cluster_starts_from_the_committed_stage(
    stored: None, lwfed: Command, kfp: State, spec: str
) -> None:
    uri = load_spec(spec).store.uri
    bench = Workbench(open_store(uri))
    run = prepared(tiny_spec(uri, "stages.rounds=[1,1]"), store=bench.store)
    run_stages(
        run,
        launcher=InProcess(bench.store),
        store=bench.store,
        emit=emit_to(lambda kind, values: None),
        cache=None,
        last_stage=1,
    )
    rerun = ["rerun", run.run_id, "--stage", "2", "--store", uri, "--json"]
    again = lwfed(*rerun)
    assert again.code == 10 and "kubernetes.image" in again.error  # the parent trained elsewhere
    ended = lwfed(*rerun, "-o", f"kubernetes.image={IMAGE}", "-o", "training.learning_rate=0.01", "--wait")
    assert ended.code == 0, ended.err
    assert ended.json["stages"] == ["stage 2: image 1, text 1"]
    pipeline = kfp.versions[-1]["pipeline_spec"]["pipeline_spec"]
    tasks = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    given = tasks["prepare"]["inputs"]["parameters"]
    assert given["parent"]["runtimeValue"]["constant"] == f"{run.run_id}:2"
    assert not given["fresh"]["runtimeValue"]["constant"]
    assert unpack_spec(kfp.spec_text(), store=bench.store).launch.kind == "kubernetes"
    assert "train-stage-1" not in tasks and '"learning_rate":0.01' in kfp.spec_text()
    assert lwfed(*rerun[:3], "7", *rerun[4:]).code == 10
    ended = lwfed("rerun", "nothing", "--stage", "2", "--store", uri)
    assert ended.code == 19 and "nothing" in ended.error
