"""Derives what the beats of an agent mean for its clients: beats in, facts out. No IO and no clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lwfed.run.agents import SERVER, Beat
from lwfed.run.events import ClientLog, ClientStarted, ClientStep, ClientWaiting
from lwfed.run.launcher import Outcome
from lwfed.types.errors import NotStartedError

ANSWER_S = 15.0
"""Seconds that an agent may take to begin a call, before that is reported."""
SILENT_S = 30.0
"""Seconds without a beat after which an agent that has begun is reported as silent."""
STUCK_S = 300.0
"""Seconds without a training step after which an agent that beats is reported as stuck."""
REMEDY = "start it, or look at its log"
LONGEST = 1000
"""Most characters of what an agent says that are passed on."""

Fact = ClientStarted | ClientStep | ClientLog | ClientWaiting | Outcome
"""What follows for the clients of an agent: an event, or how a client's task has ended."""


@dataclass(slots=True, kw_only=True)
class AgentState:
    """What is known of an agent's part of a call.

    Attributes:
        agent: Its name.
        call: The call.
        step: The call's step.
        open: The clients whose tasks have not ended, in turn.
        since: When the call was made, in seconds of a clock.
        patience_s: Seconds without a beat after which the agent's clients fail; None: they have the call's deadline.
        noted: The process and the text of the last note that was heard, in this call or an earlier one; None: nothing
            was heard of the agent yet.
    """

    agent: str
    call: str
    step: str
    open: list[str]
    since: float
    patience_s: float | None = None
    noted: tuple[str, str] | None = None
    _beat: Beat | None = None
    _heard_at: float = 0.0
    _moved_at: float = 0.0
    _started: set[tuple[str, int]] = field(default_factory=set)
    _tried: dict[str, int] = field(default_factory=dict)
    _reported: str = ""

    def hear(self, beat: Beat | None, *, now: float) -> list[Fact]:
        """Returns the facts that follow from a beat that has not been heard yet."""
        before, self._beat = self._beat, beat
        if beat is None:
            return []
        facts = self._notes(beat)
        if before is None and beat.call != self.call:
            return facts  # said before the call was made
        self._heard_at = now
        if beat.call != self.call:
            return facts
        if before is None or (before.client, before.step, before.call) != (beat.client, beat.step, beat.call):
            self._moved_at, self._reported = now, ""
        if beat.client in self.open:
            facts += self._at_work(beat)
        for client in list(self.open):
            found = beat.outcomes.get(client)
            if found is None:
                continue
            if not found.again:
                self.open.remove(client)
                facts.append(Outcome(client, found.exit_code, _line(found.reason)))
            elif self._tried.get(client) != (tries := beat.tries.get(client, 0)):
                self._tried[client] = tries
                facts.append(ClientLog(client=client, line=f"its agent tries again: {_line(found.reason)}"))
        return facts

    def excuse(self, seconds: float) -> None:
        """Leaves out time in which the store did not answer, so that nothing could be heard."""
        self.since += seconds
        self._moved_at += seconds
        if self._heard_at:
            self._heard_at += seconds

    def wait(self, *, now: float) -> list[Fact]:
        """Returns the facts that follow from time that has passed without a beat."""
        if not self.open:
            return []
        why = self._why(now)
        if self.patience_s is not None and now - max(self.since, self._heard_at) > self.patience_s:
            reason = f"given up after {self.patience_s:g} s: {why or self._silent(now)} -> {REMEDY}"
            ended = [Outcome(client, NotStartedError.exit_code, reason) for client in self.open]
            self.open.clear()
            return list(ended)
        if not why or self._reported == (what := why.partition(" for ")[0]):
            return []
        self._reported = what
        return [ClientWaiting(client=self._client(), line=f"waits: {why}")]

    @property
    def at_work(self) -> str:
        """The client that the agent works for now; empty if none, or if it has not begun the call."""
        return self._beat.client if self._beat is not None and self._begun else ""

    def why_open(self, client: str, *, now: float) -> str:
        """Returns why a client is not done."""
        if self._beat is not None and self._beat.call == self.call and self._beat.client not in ("", client):
            return f"its agent {self.agent} was at work for {self._beat.client}"
        return self._why(now) or (self._where() if self._begun else self._absent())

    @property
    def _begun(self) -> bool:
        return self._beat is not None and self._beat.call == self.call

    def _why(self, now: float) -> str:
        """Returns what delays the agent; empty if nothing seems to."""
        if self._beat is not None and self._beat.ended and self._heard_at:
            return self._ended(self._beat)
        if not self._begun:
            return self._absent() if now - self.since > ANSWER_S else ""
        if now - self._heard_at > SILENT_S:
            return self._silent(now)
        if now - self._moved_at > STUCK_S:
            return f"its agent beats and stands {self._where()} for {now - self._moved_at:.0f} s"
        return ""

    def _absent(self) -> str:
        busy = " and beats: it is at other work" if self._heard_at > self.since else ""
        return f"the agent {self.agent} has not begun this work{busy}"

    def _ended(self, beat: Beat) -> str:
        failed = next((end.reason for client, end in beat.outcomes.items() if end.again and client in self.open), "")
        return f"the agent {self.agent} has ended" + (f": {_line(failed).partition(' -> ')[0]}" if failed else "")

    def _silent(self, now: float) -> str:
        return f"the agent {self.agent} is silent {self._where()} for {now - self._heard_at:.0f} s"

    def _where(self) -> str:
        beat = self._beat
        return f"at step {beat.step} of {beat.steps}" if beat is not None and beat.steps else "before its first step"

    def _client(self) -> str:
        return self.open[0] if self.open else self.agent

    def _notes(self, beat: Beat) -> list[Fact]:
        """Returns what the agent notes of earlier work, once; not what was noted before its coordinator began."""
        said, known = (beat.process, beat.note), self.noted
        self.noted = said
        if not beat.note or said == known or (known is None and beat.call != self.call):
            return []
        return [ClientLog(client=self._client(), line=_line(beat.note))]

    def _at_work(self, beat: Beat) -> Sequence[Fact]:
        """Returns the start and the progress of the client that the agent works for now."""
        facts: list[Fact] = []
        attempt = beat.tries.get(beat.client, 1)
        if (beat.client, attempt) not in self._started:
            self._started.add((beat.client, attempt))
            pod = _line(beat.host) or None
            facts.append(ClientStarted(client=beat.client, step=self.step, attempt=attempt, pod=pod))
        if beat.step and beat.client != SERVER:
            facts.append(ClientStep(client=beat.client, step=beat.step, steps=beat.steps, loss=beat.loss))
        return facts


def _line(text: str) -> str:
    """Returns what another machine says as one line that no terminal takes for a command."""
    return "".join(c if c.isprintable() else " " for c in text[:LONGEST])
