"""Laws of beats: they go up, they are one agent's alone, and a kill keeps what was said of the call."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lwfed.agent import beating
from lwfed.agent.beating import Beats
from lwfed.run.agents import AgentOutcome, Beat
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.types.errors import AgentError, UnreachableError

KEY = paths.beats("run", "client-000")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beating, "BEAT_S", 0.1)


def made(store: Store, **options: Any) -> Beats:
    return Beats(store, "run", "client-000", **{"alone": False, "sleep": lambda seconds: None, **options})


def read(store: Store) -> Beat:
    return Beat.of(store.read_ref(KEY))


def test_a_new_process_keeps_what_was_said_of_the_call(store: LocalStore) -> None:
    first = made(store)
    first.begin_call("this")
    first.say(client="client-000", tries={"client-000": 1})
    first.end_task("client-000", AgentOutcome(exit_code=18, reason="no memory", again=True))
    second = made(store)
    now = read(store)
    assert now.process == second.last.process != first.last.process
    assert (now.call, now.tries) == ("this", {"client-000": 1}) and now.outcomes["client-000"].again


def test_a_second_agent_gives_way_to_one_that_beats(store: LocalStore) -> None:
    first = made(store)
    with pytest.raises(AgentError, match="another agent of client-000") as caught:
        made(store, sleep=lambda seconds: first.write())
    assert caught.value.exit_code == 24
    first.write()


def test_a_first_agent_that_was_taken_over_gives_way(store: LocalStore) -> None:
    first = made(store)
    second = made(store)  # nothing was heard of the first one meanwhile
    time.sleep(0.1)
    with pytest.raises(AgentError):
        first.write()
    with pytest.raises(AgentError):
        first.say(now=True, client="client-000")
    second.write()
    assert read(store).process == second.last.process


def test_an_agent_that_ended_or_is_alone_leaves_its_place_at_once(store: LocalStore) -> None:
    waits: list[float] = []
    made(store).say(now=True, ended=True)
    made(store, sleep=waits.append)
    made(store, sleep=waits.append, alone=True)
    assert not waits and not read(store).ended
    made(store, sleep=waits.append)
    assert waits == [2 * beating.BEAT_S]


def test_with_rare_polls_beats_are_rare_and_say_so(store: LocalStore) -> None:
    beats = made(store)
    assert read(store).every_s == beating.BEAT_S and beats.due_in_s <= beating.BEAT_S
    beats.pace(10.0)
    assert beats.due_in_s <= beating.BEAT_S, "the last beat promised it"
    beats.write()
    assert read(store).every_s == 40.0 and 39 < beats.due_in_s <= 40
    beats.say(now=True, client="client-000")
    assert read(store).every_s == 5.0 and 4 < beats.due_in_s <= 5
    beats.end_task("client-000", AgentOutcome())
    assert read(store).every_s == 40.0
    waits: list[float] = []
    made(store, sleep=waits.append)
    assert waits == [80.0], "twice what the last beat of the other said"


def test_with_few_agents_beats_come_as_often_as_ever(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beating, "BEAT_S", 5.0)
    beats = made(store)
    beats.pace(1.25)  # 250 agents
    assert beats.every_s == 5.0
    beats.say(client="client-000")
    assert beats.every_s == 1.0


def test_a_new_call_forgets_the_last_ones_outcomes_but_not_what_is_at_work(store: LocalStore) -> None:
    beats = made(store)
    beats.begin_call("one")
    beats.say(client="client-001", step=3, steps=8, tries={"client-000": 2, "client-001": 1})
    beats.say(outcomes={"client-000": AgentOutcome(exit_code=11)})
    beats.begin_call("two")
    last = beats.last
    assert (last.call, last.client, last.step) == ("two", "client-001", 3)
    assert last.outcomes == {} and last.tries == {"client-001": 1}


class Broken(LocalStore):
    """A store that does not answer while `broken` is set."""

    broken = False

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        if self.broken:
            raise UnreachableError("it is down")
        return super().write_ref(key, value, if_absent=if_absent)


def test_what_is_said_while_the_store_is_away_is_said_with_the_next_beat(tmp_path: Path) -> None:
    store = Broken(tmp_path)
    beats = made(store)
    store.broken = True
    beats.end_task("client-000", AgentOutcome())
    assert beats.due_in_s == 0
    with pytest.raises(UnreachableError):
        beats.write()
    store.broken = False
    beats.write()
    assert read(store).outcomes == {"client-000": AgentOutcome()}


class Slow(LocalStore):
    """A store whose writes wait."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        self.begun.set()
        assert self.go.wait(30)
        return super().write_ref(key, value, if_absent=if_absent)


def test_training_does_not_wait_for_a_beat_that_is_being_written(tmp_path: Path) -> None:
    store = Slow(tmp_path)
    beats = made(store)
    store.go.clear()
    store.begun.clear()
    thread = threading.Thread(target=beats.write)
    thread.start()
    assert store.begun.wait(30)
    beats.say(step=5)  # would hang
    store.go.set()
    thread.join()
    beats.write()
    assert read(store).step == 5


def test_beats_of_two_threads_go_up_and_lose_nothing(store: LocalStore) -> None:
    beats = made(store)
    seen: list[int] = []
    writer, over = store.write_ref, threading.Event()

    def note(key: str, value: Any, *, if_absent: bool = False) -> bool:
        seen.append(value["beat"])
        return writer(key, value, if_absent=if_absent)

    store.write_ref = note  # type: ignore[method-assign]

    def listen() -> None:
        while not over.is_set():
            beats.write()

    thread = threading.Thread(target=listen)
    thread.start()
    for number in range(50):
        beats.end_task(f"client-{number:03d}", AgentOutcome())
    over.set()
    thread.join()
    assert seen == sorted(set(seen)), "no beat is written twice or out of order"
    assert len(read(store).outcomes) == 50
