"""A pipeline's tasks on a cluster load neither torch nor a library of models: what pods compute they only ask for.

Each task is a process of its own before a stand-in for a cluster's API; this process plays the pods.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lwfed.launch.dispatch import run_step
from lwfed.launch.step_process import task_of
from lwfed.round.workbench import Workbench
from lwfed.run import runs
from lwfed.run.specs import pack_spec
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.local import LocalStore
from tests import starting
from tests.tiny import Finished, ignore, tiny_spec
from tests.unit.launch.api_server import NAMESPACE, ApiServer

TASK = """
import json
from lwfed import environment
from lwfed.drive import tasks
environment.quiet()
done = getattr(tasks, sys.argv[1])(**json.load(sys.stdin))
"""
NEEDS = {"kubernetes"}
"""A coordinator's tasks speak with the cluster."""
DRAWS = NEEDS | {"matplotlib", "numpy"}
"""What tasks with a page of figures may load besides."""


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return tiny_spec(
        tmp_path / "store", "launch.kind=kubernetes", f"kubernetes.namespace={NAMESPACE}", "kubernetes.image=lwfed:1"
    )


@contextmanager
def pods(server: ApiServer, store: LocalStore) -> Iterator[None]:
    """Plays the cluster: each Job's pods do their steps, one after another, in this process."""
    bench, over = Workbench(store), threading.Event()

    def work() -> None:
        done: set[str] = set()
        while not over.wait(0.02):
            with server.changed:
                jobs = [dict(value) for name, value in server.objects["jobs"].items() if name not in done]
            for job in jobs:
                done.add(job["metadata"]["name"])
                _run(server, job, bench=bench)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _run(server: ApiServer, job: Mapping[str, Any], *, bench: Workbench) -> None:
    name = job["metadata"]["name"]
    step = job["spec"]["template"]["spec"]["containers"][0]["command"][2]
    for index, values in enumerate((bench.store.read_ref(paths.job(name)) or {"tasks": []})["tasks"]):
        pod = server.add_pod(job, index)
        server.run_pod(pod)
        run_step(step, task_of(step, values), emit=ignore, bench=bench)
        server.end_pod(pod)
    server.mend_job(name, conditions=[{"type": "Complete", "status": "True"}])


def test_tasks_of_a_pipeline_load_no_torch(
    server: ApiServer, spec: RunSpec, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "store")
    common = {"spec": pack_spec(spec, store=store), "store": store.uri}
    monkeypatch.setenv("LWFED_RUN_ID", "r")

    def loaded(name: str, **values: Any) -> set[str]:
        return set(starting.run(TASK, name, stdin=json.dumps({**common, **values})).loaded)

    with pods(server, store):
        assert loaded("prepare") <= NEEDS
        run = runs.read_run(store, "r")
        known = {"plan_digest": "", "data_version": runs.data_version_of(run), "code_version": run.code_version}
        digest = ""
        for stage in (1, 2):
            assert loaded("train_stage", stage=stage, input_digest=digest, **known) <= DRAWS
            key = runs.stage_key_of(runs.read_run(store, "r"), stage)
            digest = (store.read_ref(paths.stage_checkpoint(str(key))) or {})["digest"]
        assert digest == finished.digest, "and the result is a laptop's"
        assert loaded("evaluate", stage=2, digest=digest) <= DRAWS
        assert loaded("report", stage=2, digest=digest) <= NEEDS
    assert store.has(paths.summary("r"))
    assert not loaded("cleanup", state="COMPLETE")
    assert server.jobs(), "a finished run's Jobs are left to their time"
    monkeypatch.setenv("LWFED_RUN_ID", "never-begun")
    assert loaded("cleanup", state="FAILED") <= NEEDS
