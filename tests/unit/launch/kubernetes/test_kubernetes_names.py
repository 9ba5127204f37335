"""Equal work has equal names, all of it fits Kubernetes, and what is done is known."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lwfed.launch.kubernetes.names import (
    INDEX_LABEL,
    JOB_LABEL,
    MAX_NAME,
    SERVER,
    call_labels,
    clients_of,
    covers,
    job_name,
    label_value,
    run_selector,
    selector,
    task_list,
)
from lwfed.launch.step_process import STEPS
from lwfed.run.tasks import ClientTask, RoundTask, RunTask
from lwfed.spec.kubernetes import KubernetesSpec, PoolSpec

KEY = "1a2b3c4d" * 8
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LONGEST_POOL = "p" * 20
RUN_IDS = ("r", "coco-20260101-1a2b3c", "Run 7/ä", "-x-", "é", "a" * 64, "a" * 63 + "-", "x_y.z")


def client_task(client: str = "client-000", **values: Any) -> ClientTask:
    return ClientTask(
        **{"store": "s3://b/p", "run_id": "r", "stage_key": KEY, "server_round": 7, "client": client} | values
    )


def round_task(**values: Any) -> RoundTask:
    return RoundTask(**{"store": "s3://b/p", "run_id": "r", "stage_key": KEY, "server_round": 7} | values)


def listed(*tasks: Any, step: str = "train-client", heartbeat_s: float = 15) -> dict[str, Any]:
    return task_list(step, tasks, run_id="r", settings=KubernetesSpec(heartbeat_s=heartbeat_s))


def test_names_say_what_they_are_of() -> None:
    name = job_name("train-client", client_task(), run_id="r", pool="clients", attempt=1)
    assert name == "lwfed-1a2b3c4d-r007-train-clients-a1"
    assert re.fullmatch(
        r"lwfed-[0-9a-f]{8}-prepare-server-a2",
        job_name("prepare", RunTask(store="s", run_id="r"), run_id="r", pool="server", attempt=2),
    )


@pytest.mark.parametrize("step", sorted(STEPS))
def test_the_longest_name_fits_a_label_with_the_index_of_its_last_pod(step: str) -> None:
    PoolSpec(name=LONGEST_POOL)
    with pytest.raises(ValueError, match="name"):
        PoolSpec(name=LONGEST_POOL + "p")
    name = job_name(step, client_task(server_round=9999), run_id="r", pool=LONGEST_POOL, attempt=99)
    assert len(name) <= MAX_NAME
    assert DNS_LABEL.fullmatch(name) and len(f"{name}-99999") <= 63


def test_equal_work_has_one_name_and_other_work_another() -> None:
    def name(step: str = "train-client", *, pool: str = "clients", attempt: int = 1, **values: Any) -> str:
        return job_name(step, client_task(**values), run_id="r", pool=pool, attempt=attempt)

    assert name() == name(client="client-001"), "a pool's clients have one Job"
    others = [
        name("evaluate-client"), name(pool="silo"), name(attempt=2), name(server_round=8), name(stage_key="0" * 64),
    ]  # fmt: skip
    assert len({name(), *others}) == 6
    of_run = {
        job_name("prepare", RunTask(store="s", run_id=run), run_id=run, pool="server", attempt=1) for run in RUN_IDS
    }
    assert len(of_run) == len(RUN_IDS)


@pytest.mark.parametrize("text", RUN_IDS)
def test_any_text_becomes_a_label_that_is_its_own(text: str) -> None:
    value = label_value(text)
    assert value and len(value) <= 63 and LABEL_VALUE.fullmatch(value)
    assert label_value(value) == value
    assert len({label_value(other) for other in (*RUN_IDS, f"{text} ")}) == len(RUN_IDS) + 1


def test_what_fits_is_its_own_label() -> None:
    for text in ("coco-20260101-1a2b3c", "x_y.Z", "a" * 63):
        assert label_value(text) == text


def test_labels_select_a_call_among_all_others_and_a_run_among_all_runs() -> None:
    calls = [
        call_labels("train-client", client_task(), run_id="r"),
        call_labels("train-client", client_task(server_round=8), run_id="r"),
        call_labels("train-client", client_task(stage_key="0" * 64), run_id="r"),
        call_labels("evaluate-client", client_task(), run_id="r"),
        call_labels("train-client", client_task(), run_id="another"),
        call_labels("prepare", RunTask(store="s", run_id="r"), run_id="r"),
    ]
    wanted = [set(selector(labels).split(",")) for labels in calls]
    for labels, found in zip(calls, wanted, strict=True):
        assert all(LABEL_VALUE.fullmatch(value) and len(value) <= 63 for value in labels.values())
        assert {INDEX_LABEL, JOB_LABEL}.isdisjoint(labels), "the cluster's own"
        assert [other for other in wanted if found <= other] == [found]
    of_run = set(run_selector("r").split(","))
    assert [of_run <= found for found in wanted] == [True, True, True, True, False, True]


def test_a_list_covers_what_it_does_and_does_alike() -> None:
    both = listed(client_task("client-000"), client_task("client-001"))
    assert clients_of(both) == ("client-000", "client-001")
    assert covers(both, both) and covers(both, listed(client_task("client-001")))
    assert covers(both, listed(client_task("client-001"), client_task("client-000"))), "whatever their order"
    assert not covers(listed(client_task("client-001")), both)
    others = [
        listed(client_task("client-002")), listed(client_task(server_round=8)), listed(client_task(run_id="another")),
        listed(client_task(store="s3://b/q")), listed(client_task(), step="evaluate-client"),
        listed(client_task(), heartbeat_s=1),
    ]  # fmt: skip
    assert not any(covers(both, other) for other in others)


def test_the_servers_pod_has_a_name_among_clients() -> None:
    alone = listed(round_task(), step="aggregate-round")
    assert clients_of(alone) == (SERVER,)
    assert covers(alone, alone) and not covers(alone, listed(round_task(server_round=8), step="aggregate-round"))
