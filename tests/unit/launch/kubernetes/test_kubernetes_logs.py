"""Every line of a pod's log is told once, over broken connections, and so many logs at a time."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lwfed.launch.kubernetes import logs as kubernetes_logs
from lwfed.launch.kubernetes.api import Cluster, DeniedError
from lwfed.launch.kubernetes.logs import Lines, Logs
from tests.unit.launch.api_server import ApiServer, until
from tests.unit.launch.recordings import answer


@contextmanager
def following(cluster: Cluster, lines: Lines) -> Iterator[Logs]:
    logs = Logs(cluster, lines=lines)
    try:
        yield logs
    finally:
        logs.close()
        until(lambda: not logs.busy(), what="closed logs end")


def pods(server: ApiServer, count: int = 1) -> list[str]:
    job = server.add("jobs", {"metadata": {"name": "a"}, "spec": {"template": {"metadata": {"labels": {}}}}})
    found = [server.add_pod(job, index) for index in range(count)]
    for pod in found:
        server.run_pod(pod)
    return found


def told(lines: Lines, count: int) -> list[str]:
    """Takes so many lines."""
    found: list[str] = []
    for _ in range(count):
        try:
            item = lines.get(timeout=10)
        except queue.Empty:
            raise AssertionError(f"{count} lines were expected, {found} have come") from None
        assert isinstance(item, tuple), item
        found.append(item[1])
    return found


def silent(lines: Lines) -> bool:
    try:
        item = lines.get(timeout=0.2)
    except queue.Empty:
        return True
    raise AssertionError(item)


def test_a_log_is_told_as_it_comes_and_to_its_end(server: ApiServer, cluster: Cluster, lines: Lines) -> None:
    (pod,) = pods(server)
    server.say(pod, "before anybody listened", "")
    with following(cluster, lines) as logs:
        logs.follow(pod)
        assert told(lines, 2) == ["before anybody listened", ""]
        server.say(pod, '{"event": "client_step", "values": {}}')
        assert told(lines, 1) == ['{"event": "client_step", "values": {}}']
        assert logs.busy() and not logs.misses(pod)
        server.say(pod, "last")
        server.end_pod(pod)
        assert told(lines, 1) == ["last"]
        until(lambda: not logs.busy(), what="the log ends with its pod")
        assert not logs.misses(pod), "it has been told"


def test_a_line_is_told_with_the_name_of_its_pod(server: ApiServer, cluster: Cluster, lines: Lines) -> None:
    one, other = pods(server, 2)
    with following(cluster, lines) as logs:
        for pod in (one, other):
            logs.follow(pod)
            server.say(pod, f"of {pod}")
        found = [lines.get(timeout=10) for _ in range(2)]
    assert set(found) == {(one, f"of {one}"), (other, f"of {other}")}


def test_lines_are_told_once_each_over_broken_connections(server: ApiServer, cluster: Cluster, lines: Lines) -> None:
    (pod,) = pods(server)
    with following(cluster, lines) as logs:
        logs.follow(pod)
        for n in range(3):
            server.streaming()
            server.say(pod, f"{n}a", f"{n}b")
            assert told(lines, 2) == [f"{n}a", f"{n}b"]
            server.cut()
        server.say(pod, "last")
        server.end_pod(pod)
        assert told(lines, 1) == ["last"] and silent(lines)
    since = [request.query.get("sinceTime") for request in server.asked("get", "pods/log")]
    assert since[0] is None and None not in since[1:], "what has been told is not asked for again"


def test_a_server_that_is_away_and_back_loses_no_line(server: ApiServer, cluster: Cluster, lines: Lines) -> None:
    (pod,) = pods(server)
    with following(cluster, lines) as logs:
        logs.follow(pod)
        server.say(pod, "before")
        assert told(lines, 1) == ["before"]
        server.stop()
        server.say(pod, "while it was away")
        server.start()
        assert told(lines, 1) == ["while it was away"]


def test_lines_of_one_moment_are_all_told(server: ApiServer, cluster: Cluster, lines: Lines) -> None:
    """Clocks of nodes have grain."""
    (pod,) = pods(server)
    server.say(pod, "0")
    server.say(pod, "1", "2", "3", same_moment=True)
    server.end_pod(pod)
    with following(cluster, lines) as logs:
        logs.follow(pod)
        assert told(lines, 4) == ["0", "1", "2", "3"] and silent(lines)


def test_only_connections_that_tell_nothing_are_counted(
    server: ApiServer, cluster: Cluster, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log may be followed for days, over more broken connections than one pod that is gone deserves."""
    monkeypatch.setattr(kubernetes_logs, "PATIENCE_S", 1)
    (pod,) = pods(server)
    with following(cluster, lines) as logs:
        logs.follow(pod)
        for n in range(4):
            server.streaming()
            server.say(pod, str(n))
            assert told(lines, 1) == [str(n)]
            server.cut()
        server.streaming()
        server.remove("pods", pod)
        until(lambda: not logs.busy(), what="the log of a pod that is gone ends")


def test_a_pod_is_followed_once(server: ApiServer, cluster: Cluster, lines: Lines) -> None:
    (pod,) = pods(server)
    server.say(pod, "once")
    with following(cluster, lines) as logs:
        logs.follow(pod)
        logs.follow(pod)
        assert told(lines, 1) == ["once"] and silent(lines)
        server.end_pod(pod)
        until(lambda: not logs.busy(), what="the log ends")
        logs.follow(pod)
        assert silent(lines)


def test_so_many_at_a_time_and_the_others_are_not_lost(
    server: ApiServer, cluster: Cluster, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_logs, "AT_A_TIME", 2)
    names = pods(server, 4)
    for name in names:
        server.say(name, f"first of {name}")
    with following(cluster, lines) as logs:
        for name in names:
            logs.follow(name)
        assert sorted(told(lines, 2)) == sorted(f"first of {name}" for name in names[:2])
        assert silent(lines) and len(server.streams) == 2
        assert [logs.misses(name) for name in names] == [False, False, True, True]
        for name in names:
            server.end_pod(name)
        assert sorted(told(lines, 2)) == sorted(f"first of {name}" for name in names[2:])


def test_who_may_not_read_logs_is_told_so_once_and_asks_no_more(
    server: ApiServer, cluster: Cluster, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_logs, "AT_A_TIME", 1)
    names = pods(server, 3)
    server.refuse("get", "pods/log", *answer("a Job to make without the right to"), times=9)
    with following(cluster, lines) as logs:
        for name in names:
            logs.follow(name)
        item = lines.get(timeout=10)
        assert isinstance(item, DeniedError) and "not allowed to" in item.problem
        assert silent(lines)
        logs.follow("another")
        assert all(logs.misses(name) for name in names), "so that a failed pod's last lines are shown elsewise"
    assert len(server.asked("get", "pods/log")) == 1


def test_the_last_lines_can_be_had_and_a_pod_that_is_gone_has_none(
    server: ApiServer, cluster: Cluster, lines: Lines
) -> None:
    (pod,) = pods(server)
    server.say(pod, "1", "2", "3")
    with following(cluster, lines) as logs:
        assert logs.tail(pod, lines=2) == "2\n3"
        assert logs.tail("absent", lines=2) == ""
    assert silent(lines)


def test_a_closed_one_follows_nobody(server: ApiServer, cluster: Cluster, lines: Lines) -> None:
    one, other = pods(server, 2)
    logs = Logs(cluster, lines=lines)
    logs.follow(one)
    server.streaming()
    logs.close()
    until(lambda: not logs.busy(), what="the log ends")
    logs.follow(other)
    assert not logs.busy() and len(server.asked("get", "pods/log")) == 1
