"""A list or a watch that fails is tried again until patience is over; patience counts from the last answer."""

from __future__ import annotations

import time

import pytest

from lwfed.launch.kubernetes import watch as kubernetes_watch
from lwfed.launch.kubernetes.api import Cluster
from lwfed.launch.kubernetes.watch import Broken, Heard, Queue
from lwfed.types.errors import UnreachableError
from tests.unit.launch.api_server import ApiServer, until
from tests.unit.launch.hearing import add, silent, told, watching

FOR_EVER = 10**6
BROKEN = 0
"""Stands for a connection that ends without an answer."""
PASSING = (BROKEN, 408, 429, 500, 503)


@pytest.mark.parametrize("status", PASSING)
def test_a_list_that_fails_is_asked_for_again(server: ApiServer, cluster: Cluster, news: Queue, status: int) -> None:
    add(server, "a")
    server.refuse("list", "jobs", status, {"message": "not now"}, times=3)
    with watching(cluster, news):
        assert told(news, 1) == [("ADDED", "a")]
        assert len(server.asked("list", "jobs")) == 4
        server.streaming()
        add(server, "b")
        assert told(news, 1) == [("ADDED", "b")]


@pytest.mark.parametrize("status", PASSING)
def test_a_watch_that_fails_is_opened_again_after_a_new_list(
    server: ApiServer, cluster: Cluster, news: Queue, status: int
) -> None:
    add(server, "a")
    server.refuse("watch", "jobs", status, {"message": "not now"}, times=3)
    with watching(cluster, news):
        assert told(news, 4) == [("ADDED", "a")] * 4
        server.streaming()
        add(server, "b")
        assert told(news, 1) == [("ADDED", "b")]
    assert len(server.asked("list", "jobs")) == len(server.asked("watch", "jobs")) == 4


def test_a_list_that_goes_on_failing_ends_the_watch_when_patience_is_over(
    server: ApiServer, cluster: Cluster, news: Queue
) -> None:
    server.refuse("list", "jobs", 503, {"message": "not now"}, times=FOR_EVER)
    began = time.monotonic()
    with watching(cluster, news, patience_s=0.8):
        item = news.get(timeout=10)
        assert isinstance(item, Broken) and isinstance(item.error, UnreachableError)
        assert time.monotonic() - began > 0.8
        assert server.url in str(item.error) and "503" in str(item.error) and "--run-id" in str(item.error)
        tries = len(server.asked("list", "jobs"))
        assert tries > 1
        assert silent(news) and len(server.asked("list", "jobs")) == tries, "it has given up"
    assert not server.asked("watch", "jobs")


def test_every_answer_starts_patience_anew(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    add(server, "a")
    began = time.monotonic()
    with watching(cluster, news, patience_s=1.5):
        assert told(news, 1) == [("ADDED", "a")]
        for _ in range(4):
            server.streaming()
            server.refuse("list", "jobs", 503, times=2)
            server.cut()
            assert told(news, 1) == [("ADDED", "a")]
    assert time.monotonic() - began > 1.5, "together the failures took longer than patience"


def test_a_watch_on_which_nothing_happens_is_no_failure(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    with watching(cluster, news, patience_s=1):
        server.streaming()
        time.sleep(1.3)
        server.refuse("list", "jobs", 503)
        server.cut()
        add(server, "a")
        assert told(news, 1) == [("ADDED", "a")]


def test_while_lists_answer_all_is_heard_though_no_watch_can_be_opened(
    server: ApiServer, cluster: Cluster, news: Queue
) -> None:
    server.refuse("watch", "jobs", 503, times=FOR_EVER)
    with watching(cluster, news, patience_s=0.5):
        until(lambda: len(server.asked("list", "jobs")) > 8, what="lists, for longer than patience")
        add(server, "a")
        assert told(news, 1) == [("ADDED", "a")]
        server.remove("jobs", "a")

        def gone() -> bool:
            item = news.get(timeout=10)
            assert isinstance(item, Heard), item
            return item.kind == "DELETED"

        until(gone, what="the end of the Job")


def test_a_watch_that_is_closed_in_a_pause_ends_at_once(
    server: ApiServer, cluster: Cluster, news: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_watch, "PAUSE_S", 60.0)
    server.refuse("list", "jobs", 503)
    with watching(cluster, news, patience_s=600):
        until(lambda: server.asked("list", "jobs"), what="a list")
        time.sleep(0.2)
    assert news.empty() and len(server.asked("list", "jobs")) == 1
