"""The parts of a stage's start add up to the time of its first training step, and later events change nothing."""

from __future__ import annotations

import itertools

from lwfed.run.events import ClientDone, ClientStarted, ClientStep, RoundStarted, StageStarted
from lwfed.run.starting import Starting, age_of_process


def test_the_parts_of_a_start() -> None:
    clock = itertools.accumulate([10.0, 1.0, 2.0, 4.0, 8.0])
    told: list[object] = []
    starting = Starting(told.append, process_s=0.5, clock=lambda: next(clock))
    events = [
        StageStarted(stage=1, key="k", rounds=2, reused=False),
        RoundStarted(stage=1, round=1, cohort=("a",)),
        ClientStarted(client="a", step="evaluate-client"),
        ClientStarted(client="a"),
        ClientStarted(client="b"),
        ClientStep(client="b", step=1, steps=2, loss=0.0),
        RoundStarted(stage=1, round=2, cohort=("a",)),
        ClientStarted(client="a"),
    ]
    for event in events[:5]:
        starting.emit(event)
    assert starting.seconds == {}, "no step yet"
    for event in events[5:]:
        starting.emit(event)
    assert starting.seconds == {"process": 0.5, "prepare": 1.0, "clients": 2.0, "first_step": 4.0}
    assert told == events


def test_a_stage_that_is_not_its_process_first_has_no_age() -> None:
    starting = Starting(lambda _: None, process_s=None, clock=itertools.count().__next__)
    for event in (
        StageStarted(stage=2, key="k", rounds=1, reused=False),
        RoundStarted(stage=2, round=1, cohort=("a",)),
        ClientStarted(client="a"),
        ClientStep(client="a", step=1, steps=1, loss=0.0),
    ):
        starting.emit(event)
    assert starting.seconds == {"prepare": 1, "clients": 1, "first_step": 1}
    assert age_of_process() > 0


def test_a_client_whose_steps_were_not_heard_has_made_them_when_it_is_done() -> None:
    starting = Starting(lambda _: None, process_s=None, clock=itertools.count().__next__)
    events = [
        StageStarted(stage=2, key="k", rounds=1, reused=False),
        RoundStarted(stage=2, round=1, cohort=("a", "b")),
        ClientStarted(client="a"),
        ClientDone(stage=2, round=1, client="a", failed="it ran out of memory"),
    ]
    for event in events:
        starting.emit(event)
    assert starting.seconds == {}, "it may not have made a step"
    starting.emit(ClientDone(stage=2, round=1, client="b"))
    assert starting.seconds == {"prepare": 1, "clients": 1, "first_step": 1}
