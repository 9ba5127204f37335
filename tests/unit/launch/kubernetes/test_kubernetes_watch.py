"""Nothing that becomes of an object is missed, though connections break and versions are forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from lwfed.launch.kubernetes import watch as kubernetes_watch
from lwfed.launch.kubernetes.api import Cluster
from lwfed.launch.kubernetes.watch import Broken, Queue, Warned
from lwfed.types.errors import LwfedError, UnreachableError
from tests.unit.launch.api_server import ApiServer
from tests.unit.launch.hearing import add, silent, told, watching
from tests.unit.launch.recordings import answer


def test_what_is_there_is_told_first_and_then_what_becomes_of_it(
    server: ApiServer, cluster: Cluster, news: Queue
) -> None:
    add(server, "a")
    add(server, "other", run="s")
    with watching(cluster, news):
        assert told(news, 1) == [("ADDED", "a")]
        server.streaming()
        add(server, "b")
        add(server, "another", run="s")
        server.mend_job("a", active=1)
        server.remove("jobs", "b")
        assert told(news, 3) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
        assert silent(news)


def test_one_list_does_while_the_server_ends_watches_in_good_order(
    server: ApiServer, cluster: Cluster, news: Queue
) -> None:
    with watching(cluster, news):
        for n in range(3):
            server.streaming()
            add(server, f"a{n}")
            assert told(news, 1) == [("ADDED", f"a{n}")]
            server.cut(last=b"")
    assert len(server.asked("list", "jobs")) == 1
    versions = [int(request.query["resourceVersion"]) for request in server.asked("watch", "jobs")]
    assert versions == sorted(versions) and len(set(versions)) >= 3


def test_after_a_broken_connection_all_is_listed_anew(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    with watching(cluster, news):
        server.streaming()
        add(server, "a")
        assert told(news, 1) == [("ADDED", "a")]
        server.cut()
        add(server, "b")
        assert sorted(told(news, 2)) == [("ADDED", "a"), ("ADDED", "b")]
        server.streaming()
        server.mend_job("b", active=1)
        assert told(news, 1) == [("MODIFIED", "b")]


def test_a_line_that_is_cut_short_is_a_broken_connection(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    """As where a proxy ends a connection in good order and in the middle of a line."""
    add(server, "a")
    with watching(cluster, news):
        assert told(news, 1) == [("ADDED", "a")]
        server.streaming()
        server.cut(last=b'{"type":"MODIF')
        assert told(news, 1) == [("ADDED", "a")]


def test_what_is_gone_since_is_told_by_the_next_list(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    for name in ("a", "b"):
        add(server, name)
    with watching(cluster, news):
        assert sorted(told(news, 2)) == [("ADDED", "a"), ("ADDED", "b")]
        server.streaming()
        server.stop()
        server.remove("jobs", "a")
        add(server, "c")
        server.start()
        found = told(news, 3)
        assert found[0] == ("DELETED", "a") and sorted(found[1:]) == [("ADDED", "b"), ("ADDED", "c")]


def test_a_name_that_is_taken_anew_is_another_object(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    add(server, "a")
    with watching(cluster, news):
        assert told(news, 1) == [("ADDED", "a")]
        server.streaming()
        server.stop()
        server.remove("jobs", "a")
        add(server, "a")
        server.start()
        assert told(news, 2) == [("DELETED", "a"), ("ADDED", "a")]


@pytest.mark.parametrize("as_status", [False, True], ids=["in the stream", "as the answer"])
def test_a_version_that_is_forgotten_is_listed_anew(
    server: ApiServer, cluster: Cluster, news: Queue, as_status: bool
) -> None:
    add(server, "a")
    with watching(cluster, news):
        assert told(news, 1) == [("ADDED", "a")]
        server.streaming()
        if as_status:
            server.refuse("watch", "jobs", 410, {"message": "too old resource version"})
        server.forget()
        server.cut(last=b"")
        assert told(news, 1) == [("ADDED", "a")]
        server.streaming()
        server.remove("jobs", "a")
        assert told(news, 1) == [("DELETED", "a")]
    assert len(server.asked("list", "jobs")) == 2


def test_a_bookmark_moves_a_watch_on_though_nothing_happens(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    """So that a quiet watch is not Gone when it is opened again."""
    with watching(cluster, news):
        server.streaming()
        server.forget()
        server.bookmark()
        version = server.version
        assert silent(news)
        server.cut(last=b"")
        server.streaming()
    assert server.asked("watch", "jobs")[-1].query["resourceVersion"] == str(version)
    assert len(server.asked("list", "jobs")) == 1
    assert server.asked("watch", "jobs")[0].query["allowWatchBookmarks"] == "true"


def test_an_error_in_the_stream_is_a_broken_connection(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    add(server, "a")
    with watching(cluster, news):
        assert told(news, 1) == [("ADDED", "a")]
        server.streaming()
        server.cut(last=b'{"type":"ERROR","object":{"code":500,"message":"etcd event received with PrevKv=nil"}}')
        assert told(news, 1) == [("ADDED", "a")]


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_who_may_not_watch_is_told_so_once(server: ApiServer, cluster: Cluster, news: Queue, verb: str) -> None:
    server.refuse(verb, "jobs", *answer("a Job to make without the right to"), times=9)
    with watching(cluster, news):
        item = news.get(timeout=10)
        assert isinstance(item, Broken) and f"we may not {verb} jobs" in str(item.error)
        assert silent(news)
    assert len(server.asked(verb, "jobs")) == 1


def test_a_server_that_stays_away_ends_the_watch(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    with watching(cluster, news, patience_s=0.8):
        server.streaming()
        server.stop()
        item = news.get(timeout=10)
        assert isinstance(item, Broken) and isinstance(item.error, UnreachableError)
        assert server.url in str(item.error)


def test_a_server_that_is_away_for_long_is_told_of_once(
    server: ApiServer, cluster: Cluster, news: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_watch, "TELL_S", 0.5)
    with watching(cluster, news):
        server.streaming()
        server.stop()
        item = news.get(timeout=10)
        assert isinstance(item, Warned) and "asking again for 30 s" in item.text
        add(server, "a")
        server.start()
        assert told(news, 1) == [("ADDED", "a")]


def test_an_answer_that_makes_no_sense_ends_the_watch_and_not_only_its_thread(
    server: ApiServer, cluster: Cluster, news: Queue
) -> None:
    server.refuse("list", "jobs", 200, {"items": [{}]})
    with watching(cluster, news):
        item: Any = news.get(timeout=10)
        assert isinstance(item, Broken) and isinstance(item.error, LwfedError)
        assert "the watch of jobs failed" in str(item.error)


def test_pods_and_jobs_are_watched_apart(server: ApiServer, cluster: Cluster, news: Queue) -> None:
    labels = {"template": {"metadata": {"labels": {"run": "r"}}}}
    job = server.add("jobs", {"metadata": {"name": "a", "labels": {"run": "r"}}, "spec": labels})
    pod = server.add_pod(job, 0)
    with watching(cluster, news, resource="pods"):
        assert told(news, 1) == [("ADDED", pod)]
        server.streaming()
        server.run_pod(pod)
        server.remove("jobs", "a")
        assert told(news, 2) == [("MODIFIED", pod), ("DELETED", pod)]
