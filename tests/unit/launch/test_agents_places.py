"""Who works for whom: laws of spreading clients over places, and of moving those that wait."""

from __future__ import annotations

import random

import pytest

from lwfed.launch.agents.places import moved, spread

PLACES = ["p-0", "p-1", "p-2", "p-3"]


@pytest.mark.parametrize("seed", range(30))
def test_every_client_has_one_place_and_no_place_has_more_than_its_share(seed: int) -> None:
    draw = random.Random(seed)
    clients = [f"c-{n}" for n in range(draw.randint(1, 12))]
    ready = draw.sample(PLACES, draw.randint(0, 4))
    served = {client: draw.choice([*PLACES, "gone"]) for client in clients if draw.random() < 0.7}
    work = spread(clients, places=PLACES, ready=ready, served=served)
    assert sorted(client for named in work.values() for client in named) == sorted(clients)
    assert set(work) <= set(PLACES)
    assert max(map(len, work.values())) == -(-len(clients) // min(len(clients), len(PLACES)))


def test_agents_that_are_there_come_before_pods_that_must_start() -> None:
    assert spread(["a", "b"], places=PLACES, ready={"p-2", "p-3"}, served={}) == {"p-2": ["a"], "p-3": ["b"]}


def test_a_client_goes_where_its_data_are_open() -> None:
    work = spread(["a", "b", "c"], places=PLACES, ready=set(PLACES), served={"b": "p-0", "a": "p-3"})
    assert work["p-0"] == ["b"] and work["p-3"] == ["a"]


def test_a_client_does_not_wait_for_another_where_its_data_are_open() -> None:
    work = spread(["a", "b"], places=PLACES, ready=set(PLACES), served={"a": "p-1", "b": "p-1"})
    assert sorted(map(len, work.values())) == [1, 1]


def test_an_agent_with_nothing_to_do_takes_a_client_that_waits() -> None:
    work = {"p-0": ["a", "e"], "p-1": ["b"], "p-2": ["c"]}
    changed = moved(work, open_clients=["a", "e", "c"], busy={"p-0": "a", "p-2": "c"}, free=["p-1"])
    assert changed == {"p-0": ["a"], "p-1": ["b", "e"], "p-2": ["c"]}


def test_a_client_that_trains_stays_where_it_is() -> None:
    work = {"p-0": ["a"], "p-1": ["b"]}
    assert moved(work, open_clients=["a"], busy={"p-0": "a"}, free=["p-1"]) == work


def test_a_client_of_a_pod_that_never_started_is_taken_over() -> None:
    work = {"p-0": ["a"], "p-1": ["b"]}
    assert moved(work, open_clients=["b"], busy={}, free=["p-0"]) == {"p-0": ["a", "b"]}
