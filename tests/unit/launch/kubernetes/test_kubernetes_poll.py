"""Nothing that stays is missed, and nothing is taken for gone while the API is away; patience counts from an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from lwfed.launch.kubernetes import poll as kubernetes_poll
from lwfed.launch.kubernetes.api import Cluster, DeniedError
from lwfed.launch.kubernetes.poll import Poll
from lwfed.types.errors import UnreachableError
from tests.unit.launch.api_server import ApiServer
from tests.unit.launch.recordings import answer

FOR_EVER = 10**6
BROKEN = 0
"""Stands for a connection that ends without an answer."""
PASSING = (BROKEN, 408, 429, 500, 503)
Seen = list[tuple[str, str]]


class Eye:
    """A poll under test: what it sees of Jobs and pods with the label `run=r`."""

    def __init__(self, cluster: Cluster, *, patience_s: float = 30) -> None:
        self.warnings: list[str] = []
        self.poll = Poll(cluster, selector="run=r", warn=self.warnings.append)
        self.poll._patience.bound_s = patience_s
        self.known: dict[str, dict[str, Any]] = {}

    def __call__(self) -> Seen:
        """Looks when the next look is due; returns (kind, name) of what differs from the look before."""
        time.sleep(self.poll.due_in_s)
        lists = self.poll.look()
        if lists is None:
            return []
        before, self.known = self.known, {item["metadata"]["uid"]: item for found in lists for item in found}
        gone = [("DELETED", name_of(item)) for uid, item in before.items() if uid not in self.known]
        new = [("ADDED", name_of(item)) for uid, item in self.known.items() if uid not in before]
        kept = [item for uid, item in self.known.items() if uid in before and item != before[uid]]
        return [*gone, *new, *(("MODIFIED", name_of(item)) for item in kept)]

    def until(self, done: Callable[[], bool]) -> Seen:
        """Looks again and again; returns all that has changed meanwhile."""
        ends_at, seen = time.monotonic() + 10, Seen()
        while not done():
            assert time.monotonic() < ends_at
            seen += self()
        return seen


def name_of(item: dict[str, Any]) -> str:
    return str(item["metadata"]["name"])


@pytest.fixture
def eye(cluster: Cluster) -> Eye:
    return Eye(cluster)


def add(server: ApiServer, name: str, run: str = "r") -> dict[str, Any]:
    """Makes a Job of a run, whose pods have its label."""
    labels = {"run": run}
    job = {"metadata": {"name": name, "labels": labels}, "spec": {"template": {"metadata": {"labels": labels}}}}
    return server.add("jobs", job)


def test_all_that_is_there_is_seen_first_and_then_what_changes(server: ApiServer, eye: Eye) -> None:
    add(server, "a")
    add(server, "other", run="s")
    assert eye() == [("ADDED", "a")] and eye() == []
    add(server, "b")
    add(server, "another", run="s")
    server.mend_job("a", active=1)
    assert sorted(eye()) == [("ADDED", "b"), ("MODIFIED", "a")] and eye() == []
    server.remove("jobs", "b")
    assert eye() == [("DELETED", "b")] and eye() == []


def test_jobs_and_their_pods_are_seen(server: ApiServer, eye: Eye) -> None:
    pod = server.add_pod(add(server, "a"), 0)
    assert eye() == [("ADDED", "a"), ("ADDED", pod)]
    server.run_pod(pod)
    assert eye() == [("MODIFIED", pod)]
    server.remove("jobs", "a")
    assert eye() == [("DELETED", "a"), ("DELETED", pod)]


def test_a_name_that_is_taken_again_is_another_object(server: ApiServer, eye: Eye) -> None:
    add(server, "a")
    eye()
    server.remove("jobs", "a")
    add(server, "a")
    assert eye() == [("DELETED", "a"), ("ADDED", "a")]


def test_an_api_that_is_away_and_back_loses_nothing(server: ApiServer, eye: Eye) -> None:
    for name in ("a", "b"):
        add(server, name)
    eye()
    server.stop()
    assert eye() == eye() == [], "what cannot be seen is not gone"
    server.remove("jobs", "a")
    server.mend_job("b", active=1)
    add(server, "c")
    server.start()
    seen = eye.until(lambda: server.asked("list", "jobs")[-1] is not server.asked("list", "jobs")[0])
    assert sorted(seen or eye()) == [("ADDED", "c"), ("DELETED", "a"), ("MODIFIED", "b")]


@pytest.mark.parametrize("resource", ["jobs", "pods"])
@pytest.mark.parametrize("status", PASSING)
def test_a_list_that_fails_is_asked_for_again_and_nothing_is_seen_twice(
    server: ApiServer, eye: Eye, status: int, resource: str
) -> None:
    pod = server.add_pod(add(server, "a"), 0)
    server.refuse("list", resource, status, {"message": "not now"}, times=3)
    seen = eye.until(lambda: len(server.asked("list", resource)) == 4)
    assert seen == [("ADDED", "a"), ("ADDED", pod)] and eye() == []


@pytest.mark.parametrize("body", ["<html>a proxy's page</html>", {}, {"items": [{}]}], ids=str)
def test_an_answer_that_makes_no_sense_is_no_answer(server: ApiServer, cluster: Cluster, body: Any) -> None:
    add(server, "a")
    eye = Eye(cluster, patience_s=0.5)
    eye()
    server.refuse("list", "jobs", 200, body)
    assert eye() == [] and eye() == [], "and nothing is gone"
    server.refuse("list", "jobs", 200, body, times=FOR_EVER)
    with pytest.raises(UnreachableError):
        eye.until(lambda: False)


def test_a_list_that_goes_on_failing_ends_it_when_patience_is_over(server: ApiServer, cluster: Cluster) -> None:
    server.refuse("list", "jobs", 503, {"message": "not now"}, times=FOR_EVER)
    eye, began = Eye(cluster, patience_s=0.8), time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        eye.until(lambda: False)
    assert 0.7 < time.monotonic() - began < 4
    assert server.url in str(caught.value) and "503" in str(caught.value) and "--run-id" in caught.value.remedy
    assert len(server.asked("list", "jobs")) > 2


def test_every_answer_starts_patience_again(server: ApiServer, cluster: Cluster) -> None:
    eye, began = Eye(cluster, patience_s=1.5), time.monotonic()
    for n in range(9):
        server.refuse("list", "jobs", 503, times=2)
        add(server, str(n))
        assert eye.until(lambda: len(server.asked("list", "jobs")) == 3 * n + 3) == [("ADDED", str(n))]  # noqa: B023
    assert time.monotonic() - began > 1.5, "together the failures took longer than patience"


def test_people_hear_once_of_an_api_that_is_away_for_long(server: ApiServer, eye: Eye) -> None:
    eye.poll._patience.report_after_s = 0.5
    server.stop()
    began = time.monotonic()
    eye.until(lambda: time.monotonic() - began > 2)
    server.start()
    assert len(eye.warnings) == 1 and server.url in eye.warnings[0]


def test_who_may_not_list_hears_so_at_once(server: ApiServer, eye: Eye) -> None:
    server.refuse("list", "pods", *answer("a Job to make without the right to"), times=9)
    with pytest.raises(DeniedError, match="not allowed to list pods"):
        eye()
    assert len(server.asked("list", "pods")) == 1


def test_looks_take_no_more_than_their_share(
    server: ApiServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_poll, "EVERY_S", 0.0)
    for share in (1.0, 0.01):
        monkeypatch.setattr(kubernetes_poll, "SHARE", share)
        poll = Poll(cluster, selector="run=r", warn=lambda _: None)
        began = time.monotonic()
        poll.look()
        took_s = time.monotonic() - began
        assert poll.due_in_s <= took_s / share
        assert share == 1.0 or poll.due_in_s > took_s
