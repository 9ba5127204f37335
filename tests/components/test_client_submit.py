"""`lwfed submit`, over HTTP: what is made is answered as was recorded, and what follows is played."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest
from rich.console import Console

from lwfed.run.specs import MARK, unpack_spec
from lwfed.spec.load import load_spec
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.types.errors import LwfedError, UnreachableError
from pipelines.client.connection import Access
from pipelines.commands.screen import Screen
from pipelines.commands.submit import RunOptions, submit_work
from pipelines.stages import Work
from tests.components.cluster_server import Objects, pod
from tests.components.conftest import Command
from tests.components.kfp_server import State
from tests.components.recorded import Script
from tests.components.scenes import DIGEST, QUICK, QUORUM, TRACE

WAITS = Script("as-shipped-running", upto=0)
"""A run whose first pod waits."""
GOES_ON = Script("rerun-stage-2", start=4, hold_s=0.8)
"""A run that takes a second, and succeeds."""


def submitted(kfp: State, spec: str) -> tuple[str, Exception | None]:
    """Submits by the function itself, at a pace for tests; returns what it said and what it raised."""
    said = io.StringIO()
    screen = Screen(Console(file=said, width=400))
    try:
        submit_work(
            Access(endpoint=kfp.endpoint), Work(load_spec(spec)), options=RunOptions(), screen=screen, wait=True,
            pace=QUICK,
        )  # fmt: skip
    except LwfedError as error:
        return said.getvalue(), error
    return said.getvalue(), None


# --- submit -----------------------------------------------------------------------------------------------------------


def test_submit_starts_a_run_and_tells_where(lwfed: Command, kfp: State, spec: str) -> None:
    ended = lwfed("submit", spec, "--json")
    assert ended.code == 0, ended.err
    run_id, run = kfp.only_run()
    told = ended.json
    assert told["kfp_run_id"] == run_id and told["run_id"] == f"tiny-{run_id[:8]}"
    assert told["url"] == f"{kfp.endpoint}/#/runs/details/{run_id}" and told["url"] in ended.err
    assert told["stages"] == ["stage 1: image 0, text 0", "stage 2: image 1, text 1"]
    assert 0 < told["file_bytes"] < 64 * 1024 and not told["version_reused"]
    (experiment,) = [item for item in kfp.experiments if item["display_name"] == "lwfed"]
    assert run.made["experiment_id"] == experiment["experiment_id"]
    (pipeline,) = kfp.pipelines
    assert pipeline["display_name"] == "lwfed-experiment"
    assert run.made["pipeline_version_reference"] == {
        "pipeline_id": pipeline["pipeline_id"], "pipeline_version_id": told["version_id"],
    }  # fmt: skip
    assert not run.made.get("plugins_input")


@pytest.mark.unseen
@pytest.mark.parametrize("cron", [[], ["--cron", "0 3 * * 1"]])
def test_the_first_submit_makes_experiment_and_pipeline(cron: list[str], lwfed: Command, kfp: State, spec: str) -> None:
    kfp.experiments, kfp.pipelines = [], []
    ended = lwfed("submit", spec, "--json", *cron)
    assert ended.code == 0, ended.err
    ((experiment,), (pipeline,)) = kfp.experiments, kfp.pipelines
    assert (experiment["display_name"], pipeline["display_name"]) == ("lwfed", "lwfed-experiment")
    assert ended.json["experiment_id"] == experiment["experiment_id"]
    assert ended.json["pipeline_id"] == pipeline["pipeline_id"]


def test_submitted_again_it_takes_the_version_that_is_there(lwfed: Command, kfp: State, spec: str) -> None:
    first, second, third = (lwfed("submit", spec, "--json", *more).json for more in ((), (), ("-o", "seed=7")))
    assert second["version_reused"] and second["version_id"] == first["version_id"]
    assert not third["version_reused"] and third["version_id"] != first["version_id"]
    assert third["pipeline_id"] == first["pipeline_id"] and third["experiment_id"] == first["experiment_id"]
    assert len(kfp.runs) == 3 and len(kfp.pipelines) == 1
    assert sum("/pipelines/upload" in ask for ask in kfp.asked) == 2  # two versions


@pytest.mark.unseen
def test_options_reach_the_run(lwfed: Command, kfp: State, spec: str) -> None:
    ended = lwfed(
        "submit", spec, "--name", "mine", "--experiment", "ours", "--service-account", "sa", "--pipeline-root",
        "s3://bucket/root", "--mlflow-plugin", "--no-cache",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    _, run = kfp.only_run()
    assert kfp.experiments[-1]["display_name"] == "ours"
    assert (run.made["display_name"], run.made["service_account"]) == ("mine", "sa")
    assert run.made["runtime_config"]["pipeline_root"] == "s3://bucket/root"
    assert run.made["plugins_input"] == {"mlflow": {"experiment_name": "lwfed"}}
    components = kfp.versions[-1]["pipeline_spec"]["pipeline_spec"]["components"]
    tasks = components["comp-exit-handler-1"]["dag"]["tasks"]
    assert not any(task.get("cachingOptions") for task in tasks.values())


def test_wait_ends_as_a_run_that_succeeds(lwfed: Command, kfp: State, spec: str) -> None:
    ended = lwfed("submit", spec, "--wait", "--json")
    assert ended.code == 0, ended.err
    told = ended.json
    assert told["state"] == "SUCCEEDED" and told["error"] is None
    assert {row["task"]: row["state"] for row in told["tasks"]} == {
        "prepare": "SUCCEEDED", "train-stage-1": "CACHED", "train-stage-2": "CACHED", "evaluate": "CACHED",
        "report": "SUCCEEDED", "cleanup": "SUCCEEDED",
    }  # fmt: skip
    assert [row["stage"] for row in told["tasks"] if row["stage"]] == [1, 2]
    assert re.search(r"stage 2: image 1, text 1 +cached +10 s", ended.err)
    assert "the run is succeeded" in ended.err


def test_wait_tells_the_digest_that_the_store_has(stored: None, kfp: State, spec: str) -> None:
    kfp.script = GOES_ON
    store = open_store(load_spec(spec).store.uri)

    def train() -> None:
        while not kfp.runs:
            time.sleep(0.01)
        name = f"tiny-{kfp.only_run()[0][:8]}"
        store.write_ref(paths.summary(name), {"digest": DIGEST, "metrics": {"test/loss": 0.5}})

    training = threading.Thread(target=train)
    training.start()
    said, error = submitted(kfp, spec)
    training.join()
    assert error is None and DIGEST in said and "test loss 0.500" in said


def test_wait_ends_with_the_named_reason_of_the_failed_task(lwfed: Command, kfp: State, spec: str) -> None:
    kfp.script = Script("stage-fails", start=-2)
    kfp.written = {"train-stage-1": TRACE, "prepare": "error: not this -> one\n", "cleanup": "done\n"}
    ended = lwfed("submit", spec, "--wait", "--json")
    assert ended.code == 13
    assert ended.error == f"error: stage 1: image 0, text 0 failed: {QUORUM}"
    assert ended.json["state"] == "FAILED"
    assert ended.json["error"]["exit_code"] == 13 and ended.json["error"]["name"] == "round below quorum"


@pytest.mark.parametrize(
    ("log", "code", "words"),
    [
        ("error: the data are gone -> mount them\nexit status 11\n", 11, "the data are gone -> mount them"),
        ('{"event": "failed", "values": {"exit_code": 18, "message": "out of memory -> less"}}\n', 18, "out of memory"),
        ("ModuleNotFoundError: No module named 'lwfed'\n", 1, "ModuleNotFoundError: No module named 'lwfed'"),
        ("Killed\nexit status 137\n", 18, "killed from outside"),
        ("one\ntwo\n", 1, "one | two -> "),
        ("", 1, "no log of "),
    ],
)
def test_reasons_are_found_in_logs(log: str, code: int, words: str, kfp: State, spec: str) -> None:
    kfp.script, kfp.written = Script("stage-fails", start=-1), {"train-stage-1": log}
    _, error = submitted(kfp, spec)
    assert isinstance(error, LwfedError)
    assert words in str(error) and error.exit_code == code and str(error).startswith("stage 1: image 0, text 0 failed")


def test_what_cannot_start_is_told_by_the_clusters_own_words(kfp: State, cluster: Objects, spec: str) -> None:
    kfp.script = WAITS
    message = 'Back-off pulling image "registry.example/lwfed"'
    waits = {"name": "main", "state": {"waiting": {"reason": "ImagePullBackOff", "message": message}}}

    def appear() -> None:
        while not kfp.runs:
            time.sleep(0.01)
        labels = {"pipeline/runid": kfp.only_run()[0]}
        begun = {"name": "init", "state": {"terminated": {"exitCode": 0}}}
        cluster.pods = [
            pod("lwfed-abc", labels, initContainerStatuses=[begun], containerStatuses=[waits]),
            pod("other", {"pipeline/runid": "another"}, containerStatuses=[{**waits, "name": "other"}]),
        ]

    threading.Thread(target=appear).start()
    said, error = submitted(kfp, spec)
    line = f"lwfed-abc: its image cannot be pulled: ImagePullBackOff: {message}"
    assert line in said and "other" not in said.replace("another", "")
    assert line in str(error) and "lwfed cancel" in str(error) and "no container" in str(error)


def test_what_the_cluster_refuses_to_make_leads_to_its_quota(kfp: State, cluster: Objects, spec: str) -> None:
    kfp.script = WAITS
    said, error = submitted(kfp, spec)
    assert "kubectl -n kubeflow describe quota" in said and error is not None


def test_what_cannot_start_without_a_cluster_in_reach_is_told_with_a_remedy(kfp: State, spec: str) -> None:
    kfp.script = WAITS
    said, error = submitted(kfp, spec)
    run_id, _ = kfp.only_run()
    assert f"kubectl -n kubeflow get pods -l pipeline/runid={run_id}" in said and error is not None


def test_a_server_that_goes_away_is_waited_for(kfp: State, spec: str) -> None:
    kfp.script = GOES_ON

    def hide() -> None:
        while not any(ask.startswith("GET /apis/v1beta1/runs/") for ask in kfp.asked):
            time.sleep(0.005)
        kfp.is_away = True
        time.sleep(0.3)
        kfp.is_away = False

    hiding = threading.Thread(target=hide)
    hiding.start()
    said, error = submitted(kfp, spec)
    hiding.join()
    assert error is None and "retrying" in said


def test_a_server_that_stays_away_ends_it(kfp: State, spec: str) -> None:
    kfp.script = GOES_ON

    def hide() -> None:
        while not any(ask.startswith("GET /apis/v1beta1/runs/") for ask in kfp.asked):
            time.sleep(0.005)
        kfp.is_away = True

    threading.Thread(target=hide).start()
    _, error = submitted(kfp, spec)
    assert isinstance(error, UnreachableError)


def test_a_long_spec_goes_by_its_digest(stored: None, lwfed: Command, kfp: State, spec: str) -> None:
    many = ", ".join(f"client-{number:04d}" for number in range(3000))
    kfp.script = Script("stage-fails", start=-1, retried="failed-then-retried")
    ended = lwfed(
        "submit", spec, "-o", "federation.num_clients=3000", "-o", "data.shapes.train=12000", "-o",
        f"kubernetes.pools=[{{name: all, clients: [{many}]}}]", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    text = kfp.spec_text()
    assert text.startswith(MARK) and ended.json["file_bytes"] < 64 * 1024
    held = unpack_spec(text, store=open_store(load_spec(spec).store.uri))
    assert held.federation.num_clients == 3000 and held.launch.kind == "kubernetes"
    assert f"tiny-{kfp.only_run()[0][:8]} is retried" in lwfed("retry", "latest").out  # its name is in the store


# --- schedules --------------------------------------------------------------------------------------------------------


def test_cron_makes_a_schedule(lwfed: Command, kfp: State, spec: str) -> None:
    ended = lwfed("submit", spec, "--cron", "0 3 * * 1", "--json")
    assert ended.code == 0, ended.err
    (schedule,) = kfp.schedules
    assert ended.json["recurring_run_id"] == schedule["recurring_run_id"] and not kfp.runs
    assert schedule["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1" == ended.json["cron"]
    assert (schedule["mode"], schedule["max_concurrency"], schedule["no_catchup"]) == ("ENABLE", "1", True)
    assert ended.json["url"].endswith(f"/#/recurringrun/details/{schedule['recurring_run_id']}")
