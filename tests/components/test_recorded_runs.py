"""What the commands make of runs that a real Kubeflow Pipelines 2.17.0 had, played again as they were recorded."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from lwfed.types.errors import LwfedError, NotStartedError
from pipelines.client.connection import Access
from pipelines.client.pace import Pace
from pipelines.client.runs import KnownRun, open_run
from pipelines.follow.follow import Outcome, follow
from pipelines.states.records import Snapshot, TaskState
from pipelines.states.workflow import parse, read_states
from tests.components.conftest import Command
from tests.components.kfp_server import State
from tests.components.recorded import recording
from tests.components.scenes import QUICK

SCHEDULER = "no node takes its pod: Unschedulable: 0/1 nodes are available: 1 Insufficient cpu"
KUBELET = 'its container cannot be made: CreateContainerConfigError: secret "lwfed-store-nosuch" not found'


@dataclass
class Watched:
    """Keeps all that is said of a run.

    Attributes:
        states: The states of tasks, by name, at each look.
        lines: What was said.
        runs: The run's states.
    """

    states: list[dict[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def tasks(self, state: str, states: Sequence[TaskState]) -> None:
        self.runs.append(state)
        self.states.append({item.task.name: item.state for item in states})

    def say(self, line: str) -> None:
        self.lines.append(line)


def followed(kfp: State, run_id: str, *, pace: Pace = QUICK) -> tuple[Watched, Outcome]:
    """Follows a run, in a cluster where no pod waits; returns what was said, and how it ended."""
    watched = Watched()
    begins = kfp.runs[run_id].at
    run, _ = open_run(Access(endpoint=kfp.endpoint), run_id)
    kfp.runs[run_id].go_to(begins)  # what was opened has been looked at
    return watched, follow(run, watcher=watched, pace=pace, waiting=lambda run: [])


def seen_states(watched: Watched, task: str) -> list[str]:
    """Returns the states that a task was seen in, each once, in their order."""
    return list(dict.fromkeys(states[task] for states in watched.states if task in states))


# --- how runs end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("failed-then-retried", ["prepare", "train-stage-1", "evaluate", "report", "cleanup"]),
        ("client-pod-killed", ["prepare", "train-stage-1", "evaluate", "report", "cleanup"]),
        ("stage-pod-deleted", ["prepare", "train-stage-1", "evaluate", "report", "cleanup"]),
        ("mlflow-plugin", ["prepare", "train-stage-1", "evaluate", "report", "cleanup"]),
        ("secret-there", ["prepare", "train-stage-1", "train-stage-2", "evaluate", "report", "cleanup"]),
        ("whole-logs", ["prepare", "train-stage-1", "train-stage-2", "evaluate", "report", "cleanup"]),
        ("rerun-stage-2", ["prepare", "train-stage-2", "evaluate", "report", "cleanup"]),
    ],
)
def test_runs_that_succeed_show_all_tasks_succeeded(name: str, tasks: list[str], kfp: State) -> None:
    watched, outcome = followed(kfp, kfp.play(name))
    assert outcome.error is None and outcome.run.state == "SUCCEEDED"
    assert {state.task.name: state.state for state in outcome.states} == dict.fromkeys(tasks, "SUCCEEDED")
    assert all(state.pods for state in outcome.states)
    assert not watched.lines


def test_what_comes_from_the_cache_shows_as_cached(kfp: State) -> None:
    _, outcome = followed(kfp, kfp.play("cached"))
    assert outcome.error is None
    assert {state.task.name: state.state for state in outcome.states} == {
        "prepare": "SUCCEEDED", "train-stage-1": "CACHED", "train-stage-2": "CACHED", "evaluate": "CACHED",
        "report": "SUCCEEDED", "cleanup": "SUCCEEDED",
    }  # fmt: skip


def test_a_stage_that_fails_ends_as_its_own_error_in_the_clusters_words(kfp: State) -> None:
    run_id = kfp.play("secret-missing")
    _, outcome = followed(kfp, run_id)
    assert outcome.error is not None and outcome.error.exit_code == 13
    assert str(outcome.error) == (
        "stage 1: image 0, text 0 failed: round 1 of stage 1 has 1 of 2 updates and needs 2 (client-001: given up "
        f"after 20 s: {KUBELET}) -> fix what ended them; then lwfed retry {run_id[:8]}: nothing committed is lost"
    )
    states = {state.task.name: state.state for state in outcome.states}
    assert (states["prepare"], states["train-stage-1"], states["cleanup"]) == ("SUCCEEDED", "FAILED", "SUCCEEDED")
    assert states.get("evaluate", "SKIPPED") == states.get("report", "SKIPPED") == "SKIPPED"  # they were left out


def test_a_stage_that_fails_ends_the_command_by_its_exit_code(lwfed: Command, kfp: State) -> None:
    run_id = kfp.play("secret-missing", start=-1)
    ended = lwfed("logs", run_id, "--stage", "1", "--follow")
    assert ended.code == 13 and KUBELET in ended.error and f"lwfed retry {run_id[:8]}" in ended.error
    assert "QuorumError" in ended.out and "error_message" not in ended.out


def test_a_terminated_run_ends_as_cancelled(lwfed: Command, kfp: State) -> None:
    for name in ("terminated", "no-image", "image-not-there", "cancelled-in-training", "fifth-gpu"):
        _, outcome = followed(kfp, kfp.play(name, start=-1))
        assert outcome.error is not None and outcome.error.exit_code == 1
        assert "the run was cancelled" in str(outcome.error), name
    _, outcome = followed(kfp, kfp.play("terminated"))
    states = {state.task.name: state.state for state in outcome.states}
    assert (states["prepare"], states["train-stage-1"], states["cleanup"]) == ("SUCCEEDED", "FAILED", "SUCCEEDED")


def test_a_run_that_only_its_importer_failed_says_so(kfp: State) -> None:
    run_id = kfp.play("as-shipped-importer-fails", start=-1)
    kfp.write(run_id, importer="F1128 main.go] failed to execute component: parent DAG has no such parameter\n")
    _, outcome = followed(kfp, run_id)
    states = {state.task.name: state.state for state in outcome.states}
    assert states == {
        **dict.fromkeys(("prepare", "train-stage-1", "train-stage-2", "evaluate", "report", "cleanup"), "SUCCEEDED"),
        "importer": "FAILED",
    }
    assert outcome.error is not None and str(outcome.error).startswith("model failed")


# --- runs that go on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stage-fails", "as-shipped-running"])
def test_a_stage_may_train_longer_than_a_container_may_take_to_start(name: str, kfp: State) -> None:
    run_id = kfp.play(name, start=5, hold_s=2 * QUICK.start_timeout_s)
    run = kfp.runs[run_id]
    assert run.nodes[run.pod("train-stage-1")]["phase"] == "Running"
    watched, outcome = followed(kfp, run_id)
    assert seen_states(watched, "train-stage-1") == ["RUNNING", "FAILED"]
    assert outcome.run.state == "FAILED"
    assert not watched.lines


def test_tasks_are_seen_to_begin_and_end(kfp: State) -> None:
    watched, _ = followed(kfp, kfp.play("mlflow-plugin"))
    for task in ("prepare", "evaluate", "report"):
        seen = seen_states(watched, task)
        assert seen[-1] == "SUCCEEDED" and seen[:-1] in (["PENDING"], ["PENDING", "RUNNING"]), (task, seen)
    assert watched.runs[0] == "RUNNING" and watched.runs[-1] == "SUCCEEDED"


def test_a_deleted_pods_task_goes_on_in_a_second_one(kfp: State) -> None:
    watched, outcome = followed(kfp, kfp.play("stage-pod-deleted"))
    assert "FAILED" not in seen_states(watched, "train-stage-1")
    (stage,) = [state for state in outcome.states if state.task.name == "train-stage-1"]
    assert [pod.state for pod in stage.pods if not pod.is_driver] == ["FAILED", "SUCCEEDED"]


def test_a_run_without_a_state_is_taken_for_one_that_waits(kfp: State, lwfed: Command) -> None:
    watched, outcome = followed(kfp, kfp.play("secret-missing"))
    assert outcome.run.state == "FAILED"
    assert list(dict.fromkeys(watched.runs)) == ["PENDING", "RUNNING", "FAILED"]
    run_id = kfp.play("image-not-there", start=1, upto=1)
    ended = lwfed("logs", run_id)
    assert ended.code == 19 and "--follow" in ended.error
    ended = lwfed("retry", run_id)
    assert ended.code == 1 and "only failed runs" in ended.error


def test_an_image_that_cannot_be_pulled_is_named_by_the_workflow_itself(kfp: State) -> None:
    """No cluster is at hand, and none is asked."""
    watched, run_id = Watched(), kfp.play("image-not-there", upto=-3)

    def nowhere(run: KnownRun) -> list[str]:
        raise AssertionError("the cluster is asked")

    run, _ = open_run(Access(endpoint=kfp.endpoint), run_id)
    with pytest.raises(NotStartedError) as ended:
        follow(run, watcher=watched, pace=QUICK, waiting=nowhere)
    assert ended.value.exit_code == 21 and f"lwfed cancel {run_id}" in str(ended.value)
    assert "ImagePullBackOff: Back-off pulling image" in str(ended.value)
    assert watched.lines and all(
        re.match(r"has waited for \d+ s: [\w-]+-system-container-impl-\d+: (ErrImagePull|ImagePullBackOff): ", line)
        for line in watched.lines
    )


def test_a_run_that_waits_for_its_image_is_cancelled(kfp: State, lwfed: Command) -> None:
    ended = lwfed("cancel", kfp.play("image-not-there", start=-4, upto=-3), "--json")
    assert ended.code == 0 and (ended.json["terminated"], ended.json["state"]) == (True, "FAILED"), ended.err


def test_where_argo_tries_the_whole_pipeline_again_the_last_try_counts(kfp: State) -> None:
    """What the second try has not come to yet shows as the first one left it."""
    run_id = kfp.play("second-try")
    played = kfp.runs[run_id]
    run, found = open_run(Access(endpoint=kfp.endpoint), run_id)
    assert set(run.tasks) >= {"prepare", "train-stage-1"}
    seen = []
    for at in range(len(recording("second-try")["snapshots"])):
        played.go_to(at)
        states = {state.task.name: state for state in read_states(run, found).tasks}
        seen.append(tuple(states[name].state if name in states else "" for name in ("prepare", "train-stage-1")))
    assert list(dict.fromkeys(seen)) == [
        ("", ""), ("PENDING", ""), ("RUNNING", ""), ("SUCCEEDED", "PENDING"), ("SUCCEEDED", "RUNNING"),
        ("SUCCEEDED", "FAILED"), ("PENDING", "FAILED"), ("RUNNING", "FAILED"),
    ]  # fmt: skip
    again = seen[seen.index(("RUNNING", "FAILED")) :]
    assert ("SUCCEEDED", "PENDING") in again and ("SUCCEEDED", "RUNNING") in again
    assert again[-1] == ("SUCCEEDED", "FAILED")
    assert [pod.state for pod in states["train-stage-1"].pods if not pod.is_driver] == ["FAILED", "FAILED"]


def test_logs_of_both_tries_are_shown_in_the_schedulers_words(kfp: State, lwfed: Command) -> None:
    ended = lwfed("logs", kfp.play("second-try", start=-1), "--stage", "1")
    assert ended.code == 0, ended.err
    assert ended.out.count(SCHEDULER) >= 2 and ended.out.count("QuorumError: ") == 2


def test_a_run_that_has_not_begun_says_so(kfp: State) -> None:
    run, _ = open_run(Access(endpoint=kfp.endpoint), kfp.play("as-shipped-running", upto=0))
    watched = Watched()
    with pytest.raises(NotStartedError, match=run.id):
        follow(run, watcher=watched, pace=QUICK, waiting=lambda run: ["its image cannot be pulled"])
    assert any("its image cannot be pulled" in line for line in watched.lines)


# --- logs -------------------------------------------------------------------------------------------------------------

WRITTEN = {
    "prepare": "prepare", "train-stage-1": "stage 1: image 0, text 0", "train-stage-2": "stage 2: image 1, text 1",
    "evaluate": "evaluate", "report": "report", "cleanup": "clean up",
}  # fmt: skip


def test_logs_of_a_run_are_those_of_all_its_tasks(lwfed: Command, kfp: State) -> None:
    run_id = kfp.play("as-shipped-importer-fails", start=-1)
    kfp.write(run_id, importer="no such parameter\n")
    ended = lwfed("logs", run_id)
    assert ended.code == 0, ended.err
    heads = [line for line in ended.out.splitlines() if line.startswith("-- ")]
    for title in WRITTEN.values():
        assert any(head.startswith(f"-- {title}") for head in heads), title
    assert f"tiny-{run_id[:8]}" in ended.out and "round 1/2  2 clients" in ended.out
    assert "error_message" not in ended.out


def test_logs_of_one_stage_are_its_own(lwfed: Command, kfp: State) -> None:
    ended = lwfed("logs", kfp.play("as-shipped-importer-fails", start=-1), "--stage", "2")
    assert ended.code == 0, ended.err
    (head,) = [line for line in ended.out.splitlines() if line.startswith("-- ")]
    assert head.startswith("-- stage 2: image 1, text 1") and "stage 2  2 rounds" in ended.out


def test_the_servers_error_is_no_log(lwfed: Command, kfp: State) -> None:
    """A pod without a log is answered with 200 and an error in JSON."""
    for name in ("no-image", "image-not-there"):
        ended = lwfed("logs", kfp.play(name, start=-1))
        assert ended.code == 0 and "-- prepare" in ended.err and "Kubeflow Pipelines has no log of" in ended.err
        assert not ended.out and "BadRequestError" not in ended.err


def test_a_run_that_is_not_there_is_told(lwfed: Command, kfp: State) -> None:
    kfp.play("cached", title="mine")
    for name in ("nothing", "00000000-0000-0000-0000-000000000000", "tiny-00000000"):
        ended = lwfed("logs", name)
        assert ended.code == 19 and name in ended.error


# --- other versions ---------------------------------------------------------------------------------------------------


@pytest.mark.unseen
def test_a_server_whose_answers_nobody_knows_is_named_as_one(kfp: State, lwfed: Command) -> None:
    """It is not taken for one whose run does not start."""
    kfp.hides_tasks = True
    run_id = kfp.play("stage-fails", start=5, upto=5)
    assert kfp.runs[run_id].state == "RUNNING"
    with pytest.raises(LwfedError) as unknown:
        followed(kfp, run_id, pace=Pace(start_timeout_s=0))
    said = str(unknown.value)
    assert f"{run_id} is RUNNING" in said and "/#/runs/details/" in said
    assert f"/apis/v1beta1/runs/{run_id}: not found" in said
    for arguments in (["logs", run_id], ["logs", run_id, "--follow"]):
        ended = lwfed(*arguments)
        assert ended.code == 1 and "Kubeflow Pipelines 2.17" in ended.error


@pytest.mark.unseen
def test_a_run_that_has_just_been_made_has_no_tasks_in_any_version(kfp: State) -> None:
    kfp.hides_tasks = True
    run, found = open_run(Access(endpoint=kfp.endpoint), kfp.play("second-try", upto=0))
    assert found.state == "PENDING" and read_states(run, found) == Snapshot()


def test_a_run_that_argo_never_ends_is_given_up(kfp: State) -> None:
    run_id = kfp.play("second-try", start=-1)
    assert kfp.runs[run_id].state == "CANCELING"
    with pytest.raises(LwfedError, match="no progress") as given_up:
        followed(kfp, run_id, pace=replace(QUICK, end_timeout_s=0.3))
    assert f"kubectl -n kubeflow delete workflows -l pipeline/runid={run_id}" in str(given_up.value)


def test_nodes_that_argo_has_compressed_are_read_too(kfp: State) -> None:
    run, _ = open_run(Access(endpoint=kfp.endpoint), kfp.play("stage-fails", start=-1))
    shown = kfp.runs[run.id].now("v1beta1")
    workflow = json.loads(shown["pipeline_runtime"]["workflow_manifest"])
    packed = gzip.compress(json.dumps(workflow["status"].pop("nodes")).encode())
    workflow["status"]["compressedNodes"] = base64.b64encode(packed).decode()
    small = parse({"pipeline_runtime": {"workflow_manifest": json.dumps(workflow)}}, run.tasks)
    assert small is not None and small.tasks and small == parse(shown, run.tasks)
