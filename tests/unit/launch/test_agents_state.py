"""What the beats of an agent mean: facts follow from beats and from time alone."""

from __future__ import annotations

from typing import Any

from lwfed.launch.agents.state import ANSWER_S, LONGEST, SILENT_S, STUCK_S, AgentState
from lwfed.run.agents import AgentOutcome, Beat
from lwfed.run.events import ClientLog, ClientStarted, ClientStep, ClientWaiting
from lwfed.run.launcher import Outcome

NAME = "client-000"


def state(*clients: str, **changes: Any) -> AgentState:
    return AgentState(
        agent=NAME, call="this", step="train-client", open=list(clients or (NAME,)), since=100.0, **changes
    )


def beat(call: str = "this", **values: Any) -> Beat:
    return Beat(agent=NAME, process="p", host="ward-3", call=call, **values)


def test_a_client_starts_steps_and_ends_once() -> None:
    its = state()
    tries = {NAME: 1}
    assert its.hear(beat(client=NAME, tries=tries), now=101) == [ClientStarted(client=NAME, pod="ward-3")]
    assert its.hear(beat(client=NAME, tries=tries, step=2, steps=8, loss=1.5), now=102) == [
        ClientStep(client=NAME, step=2, steps=8, loss=1.5)
    ]
    done = beat(tries=tries, outcomes={NAME: AgentOutcome()})
    assert its.hear(done, now=103) == [Outcome(NAME)] and not its.open
    assert its.hear(done, now=104) == [] and its.wait(now=10_000) == []


def test_what_was_said_of_another_call_ends_nothing() -> None:
    its = state()
    old = beat(call="before", outcomes={NAME: AgentOutcome(exit_code=11, reason="no data")})
    assert its.hear(old, now=101) == [] and its.open == [NAME]
    assert its.hear(old.changed(beat=2), now=102) == [] and its.open == [NAME]


def test_a_failure_that_is_tried_again_is_told_and_the_last_one_ends_the_client() -> None:
    its = state()
    first = beat(tries={NAME: 1}, outcomes={NAME: AgentOutcome(exit_code=18, reason="no memory -> buy", again=True)})
    assert its.hear(first, now=101) == [ClientLog(client=NAME, line="its agent tries again: no memory -> buy")]
    assert its.hear(first.changed(beat=2), now=102) == [], "told once"
    second = beat(tries={NAME: 2}, outcomes={NAME: AgentOutcome(exit_code=18, reason="no memory -> buy")})
    assert its.hear(second, now=103) == [Outcome(NAME, 18, "no memory -> buy")]


def test_several_clients_of_one_agent_end_one_by_one() -> None:
    its = state("client-001", "client-002")
    facts = its.hear(beat(client="client-002", outcomes={"client-001": AgentOutcome()}), now=101)
    assert Outcome("client-001") in facts and its.open == ["client-002"]
    assert [fact.client for fact in facts if isinstance(fact, ClientStarted)] == ["client-002"]
    assert its.why_open("client-002", now=102) == "before its first step"


def test_an_agent_that_was_never_started_is_told_once_and_named() -> None:
    its = state()
    assert its.wait(now=100 + ANSWER_S) == []
    (fact,) = its.wait(now=101 + ANSWER_S)
    assert fact == ClientWaiting(client=NAME, line=f"waits: the agent {NAME} has not begun this work")
    assert its.wait(now=102 + ANSWER_S) == []
    assert "has not begun" in its.why_open(NAME, now=103 + ANSWER_S)


def test_an_agent_at_other_work_is_not_an_absent_one() -> None:
    its = state()
    its.hear(beat(call="other"), now=101)
    its.hear(beat(call="other", beat=2), now=100 + ANSWER_S)
    assert "other work" in its.why_open(NAME, now=101 + ANSWER_S)


def test_silence_is_told_with_the_step_and_ends_with_the_next_beat() -> None:
    its = state()
    its.hear(beat(client=NAME, step=3, steps=8), now=101)
    (fact,) = its.wait(now=102 + SILENT_S)
    assert isinstance(fact, ClientWaiting) and "silent at step 3 of 8 for 31 s" in fact.line
    assert its.wait(now=110 + SILENT_S) == [], "told once"
    its.hear(beat(client=NAME, step=4, steps=8), now=120 + SILENT_S)
    assert len(its.wait(now=122 + 2 * SILENT_S)) == 1, "a second silence is another one"


def test_time_in_which_the_store_did_not_answer_is_no_silence() -> None:
    its = state()
    its.hear(beat(client=NAME), now=101)
    its.excuse(200)
    assert its.wait(now=302) == []
    never = state()
    never.excuse(200)
    assert never.wait(now=302) == [] and "has not begun this work" in never.why_open(NAME, now=303 + ANSWER_S)


def test_an_agent_that_beats_without_a_step_is_told_as_stuck() -> None:
    its = state()
    its.hear(beat(client=NAME, step=3, steps=8), now=101)
    its.hear(beat(client=NAME, step=3, steps=8, beat=2), now=101 + STUCK_S)
    (fact,) = its.wait(now=102 + STUCK_S)
    assert isinstance(fact, ClientWaiting) and "beats and stands at step 3 of 8" in fact.line


def test_an_agent_that_has_ended_is_told_with_its_reason() -> None:
    its = state()
    failed = {NAME: AgentOutcome(exit_code=18, reason="no memory -> buy some", again=True)}
    its.hear(beat(outcomes=failed, tries={NAME: 1}), now=101)
    its.hear(beat(outcomes=failed, tries={NAME: 1}, ended=True, beat=2), now=102)
    assert its.why_open(NAME, now=103) == f"the agent {NAME} has ended: no memory"


def test_without_a_deadline_a_silent_agent_is_given_up_and_one_that_beats_is_not() -> None:
    its = state(patience_s=600.0)
    its.hear(beat(client=NAME, step=1, steps=8), now=101)
    its.hear(beat(client=NAME, step=1, steps=8, beat=2), now=10_000)
    assert not any(isinstance(fact, Outcome) for fact in its.wait(now=10_599))
    (end,) = (fact for fact in its.wait(now=10_601) if isinstance(fact, Outcome))
    assert end.exit_code == 21 and "silent at step 1 of 8" in end.reason and "start it" in end.reason
    absent = state(patience_s=600.0)
    (end,) = (fact for fact in absent.wait(now=701) if isinstance(fact, Outcome))
    assert "has not begun" in end.reason


def test_a_note_is_told_once_even_if_it_was_made_before_the_call() -> None:
    late = "client-000 is too late: round 1 went on without it"
    earlier = state()
    assert earlier.hear(beat(), now=101) == []
    its = state(noted=earlier.noted)
    assert its.hear(beat(call="before", note=late), now=101) == [ClientLog(client=NAME, line=late)]
    assert its.hear(beat(note=late, beat=2), now=102) == []
    later = state(noted=its.noted)
    assert later.hear(beat(note=late), now=103) == []
    assert state().hear(beat(call="before", note=late), now=101) == [], "of a time before the coordinator"


def test_what_an_agent_says_is_one_line_that_commands_no_terminal() -> None:
    (end,) = state().hear(beat(outcomes={NAME: AgentOutcome(exit_code=1, reason="bad\n\x1b[2Jnews" * 1000)}), now=101)
    assert isinstance(end, Outcome) and end.reason.startswith("bad  [2Jnews") and len(end.reason) == LONGEST
