"""Laws of the coordinator's side of many agents: what is heard does not depend on how many are read at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lwfed.launch.agents.asking import Asking
from lwfed.run.agents import AgentOutcome, Beat, Wants
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import ClientTask
from lwfed.spec.load import load_spec
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.clients import client_ids
from lwfed.types.errors import UnreachableError

CLIENTS = client_ids(30)


class Failing(LocalStore):
    """A store that does not answer when one agent's beat is read."""

    lost = ""

    def read_ref_if_changed(self, key: str, mark: str | None) -> Any:
        if key == self.lost:
            raise UnreachableError("it does not answer", remedy="wait")
        return super().read_ref_if_changed(key, mark)


def asking_all(store: LocalStore) -> Asking:
    """Asks 30 agents, all of which have done their work, and one of them without success."""
    asking = Asking(load_spec("shapes-layerwise"), store=store, run_id="r")
    tasks = {
        client: [ClientTask(store=store.uri, run_id="r", stage_key="k", server_round=1, client=client)]
        for client in CLIENTS
    }
    asking.begin("train-client", tasks, patience_s=None)
    wants = Wants.of(store.read_ref(paths.wants("r")))
    for client in CLIENTS:
        code = 11 if client == CLIENTS[7] else 0
        beat = Beat(agent=client, process="p", beat=1, call=wants.call, outcomes={client: AgentOutcome(exit_code=code)})
        store.write_ref(paths.beats("r", client), beat.to_values())
    return asking


@pytest.fixture
def store(tmp_path: Path) -> Failing:
    return Failing(tmp_path)


def test_all_are_heard_in_their_order_and_once(store: Failing) -> None:
    asking = asking_all(store)
    store.write_ref(paths.beats("r", CLIENTS[3]), {"agent": 1})  # of another version
    ended = [fact for fact in asking.look() if isinstance(fact, Outcome)]
    assert [one.client for one in ended] == [client for client in CLIENTS if client != CLIENTS[3]]
    assert [one.client for one in ended if one.exit_code] == [CLIENTS[7]]
    assert asking.open == [CLIENTS[3]] and asking.look() == []


def test_what_a_store_did_not_tell_is_heard_later(store: Failing) -> None:
    asking = asking_all(store)
    store.lost = paths.beats("r", CLIENTS[20])
    ended = [fact.client for fact in asking.look() if isinstance(fact, Outcome)]
    store.lost = ""
    ended += [fact.client for fact in asking.look() if isinstance(fact, Outcome)]
    assert sorted(ended) == list(CLIENTS) and asking.open == []
