"""The launcher of agents, with agents that beat and train nothing: what it asks, hears, gives up and leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lwfed.agent.beating import Beats
from lwfed.launch.agents import end_run
from lwfed.launch.agents import launcher as agents
from lwfed.launch.agents.launcher import AgentsLauncher
from lwfed.run.agents import AgentOutcome, Wants
from lwfed.run.events import Event
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import ClientTask, Place
from lwfed.store import paths
from lwfed.store.local import LocalStore
from tests.tiny import tiny_spec

CLIENTS = ("client-000", "client-001")
End = Callable[[Wants], AgentOutcome | None]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def launcher(store: LocalStore) -> AgentsLauncher:
    return AgentsLauncher(tiny_spec(store.root, "launch.kind=agents"), store=store, run_id="run")


def tasks(store: LocalStore, *clients: str, server_round: int = 1) -> list[ClientTask]:
    place = Place(root="/the/coordinators")
    return [
        ClientTask(store=store.uri, run_id="run", stage_key="k", server_round=server_round, client=client, place=place)
        for client in clients or CLIENTS
    ]


def wants(store: LocalStore) -> Wants:
    return Wants.of(store.read_ref(paths.wants("run")))


@contextmanager
def answering(store: LocalStore, client: str, end: End) -> Iterator[list[str]]:
    """Has an agent that ends its task in each call as a function says; yields the calls that it answered."""
    over, answered = threading.Event(), list[str]()

    def listen() -> None:
        beats = Beats(store, "run", client, alone=True)
        while not over.wait(0.01):
            value = store.read_ref(paths.wants("run"))
            if value is None or client not in (now := Wants.of(value)).work or now.call == beats.last.call:
                continue
            beats.begin_call(now.call)
            outcome = end(now)
            if outcome is not None:
                answered.append(now.call)
                beats.end_task(client, outcome)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield answered
    finally:
        over.set()
        thread.join()


def succeed(now: Wants) -> AgentOutcome:
    return AgentOutcome()


def test_a_failure_in_one_call_is_asked_for_again_in_the_next(store: LocalStore) -> None:
    """A coordinator that is started again asks for the same: what failed before does not stand for it."""
    outcomes = iter([AgentOutcome(exit_code=11, reason="no data"), AgentOutcome()])
    with answering(store, CLIENTS[0], lambda now: next(outcomes)) as answered:
        one = list(launcher(store).clients("train-client", tasks(store, CLIENTS[0]), deadline_s=60, emit=ignore))
        before = wants(store)
        two = list(launcher(store).clients("train-client", tasks(store, CLIENTS[0]), deadline_s=60, emit=ignore))
    assert one == [Outcome(CLIENTS[0], 11, "no data")] and two == [Outcome(CLIENTS[0])]
    assert before.content == wants(store).content and len(set(answered)) == 2


def test_at_the_deadline_an_absent_agent_is_named(store: LocalStore) -> None:
    with answering(store, CLIENTS[0], succeed):
        found = list(launcher(store).clients("train-client", tasks(store), deadline_s=2, emit=ignore))
    assert found[0] == Outcome(CLIENTS[0])
    assert found[1].client == CLIENTS[1] and found[1].exit_code == 1
    assert found[1].reason == f"not done before the deadline of 2 s; the agent {CLIENTS[1]} has not begun this work"
    assert wants(store).call == "", "nothing is wanted of it any longer"


def test_once_enough_have_succeeded_the_others_are_not_wanted(store: LocalStore) -> None:
    with answering(store, CLIENTS[1], succeed):
        found = list(launcher(store).clients("train-client", tasks(store), deadline_s=60, emit=ignore, need=1))
    assert found == [Outcome(CLIENTS[1])] and wants(store).call == ""


def test_without_a_deadline_an_agent_is_given_up_when_it_is_silent(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "GONE_S", 1.0)
    (found,) = launcher(store).clients("train-client", tasks(store, CLIENTS[0]), deadline_s=float("inf"), emit=ignore)
    assert found.exit_code == 21 and "given up after 1 s" in found.reason and "start it" in found.reason


def test_a_coordinator_that_ends_in_a_call_leaves_its_agents_at_work(store: LocalStore) -> None:
    where = launcher(store)
    outcomes = where.clients("train-client", tasks(store), deadline_s=60, emit=ignore)
    with answering(store, CLIENTS[0], succeed):
        assert next(outcomes) == Outcome(CLIENTS[0])
    where.close()
    assert wants(store).work == {client: [client] for client in CLIENTS}
    list(launcher(store).clients("train-client", [], deadline_s=60, emit=ignore))
    assert wants(store).call == "", "its next coordinator found all updates committed, and wants no more"


def test_the_places_of_tasks_do_not_reach_the_store_and_the_end_leaves_nothing(store: LocalStore) -> None:
    where = launcher(store)
    with answering(store, CLIENTS[0], succeed):
        list(where.clients("train-client", tasks(store, CLIENTS[0]), deadline_s=60, emit=ignore))
    assert "/the/coordinators" not in (store.root / paths.wants("run")).read_text()
    end_run(tiny_spec(store.root, "launch.kind=agents"), run_id="run")
    assert not store.has(paths.wants("run"))


def test_a_store_that_goes_away_while_agents_are_waited_for_is_waited_for(store: LocalStore, tmp_path: Path) -> None:
    away = tmp_path.with_name(f"{tmp_path.name}-away")
    outcomes = launcher(store).clients("train-client", tasks(store, CLIENTS[0]), deadline_s=60, emit=ignore)
    found: list[Outcome] = []
    thread = threading.Thread(target=lambda: found.extend(outcomes))
    thread.start()
    while not store.has(paths.wants("run")):
        pass
    tmp_path.rename(away)
    threading.Event().wait(1)
    away.rename(tmp_path)
    with answering(store, CLIENTS[0], succeed):
        thread.join()
    assert found == [Outcome(CLIENTS[0])]


@pytest.mark.parametrize("said", ["{", "[]", '{"agent": "client-001", "process": "p", "beat": "many"}'])
def test_what_an_agent_writes_cannot_end_the_run(store: LocalStore, said: str) -> None:
    path = store.root / paths.beats("run", CLIENTS[1])
    path.parent.mkdir(parents=True)
    path.write_text(said)
    with answering(store, CLIENTS[0], succeed):
        found = list(launcher(store).clients("train-client", tasks(store), deadline_s=2, emit=ignore))
    assert found[0] == Outcome(CLIENTS[0]) and "has not begun" in found[1].reason


def ignore(event: Event) -> None:
    """Ignores an event."""
