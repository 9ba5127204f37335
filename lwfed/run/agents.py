"""What a coordinator and its agents tell each other: two small objects of the store, each with one writer.

The coordinator writes what the run wants, an agent how far it is. Neither reads the other's clock, and both may be
killed and started again at any point. Each request is a call of its own, so that an earlier call's outcome never stands
for a later one; its content has a name that equal work shares, so that agents at work go on when a new coordinator asks
for the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from lwfed.run.tasks import PodTask
from lwfed.types.canonical import digest_of
from lwfed.types.record import Record

SERVER = "server"
"""Stands for a client's id where the server's own work is meant."""


class Wants(Record):
    """What a run wants of its agents.

    Attributes:
        run_id: The run.
        name: Its spec's name.
        call: The name of this request, which no other has; empty: no work now.
        content: The name of what is asked, which is the same for equal work.
        step: The step that its tasks belong to.
        task: What all tasks have in common; each agent has its own `place`.
        work: Agent -> the clients that it works for, in turn.
        measure: Clients that measure their first step.
        retries: Further tries of a client's task after one that ended its agent.
        poll_s: Seconds between an agent's reads of this object.
        heartbeat_s: Seconds between the coordinator's heartbeats.
        heartbeat_timeout_s: Seconds without one after which the coordinator is considered gone.
    """

    run_id: str
    name: str = ""
    call: str = ""
    content: str = ""
    step: str = ""
    task: dict[str, Any] = Field(default_factory=dict)
    work: dict[str, list[str]] = Field(default_factory=dict)
    measure: list[str] = Field(default_factory=list)
    retries: int = 1
    poll_s: float = 1.0
    heartbeat_s: float = 15.0
    heartbeat_timeout_s: float = 120.0

    def tasks_of(self, agent: str) -> dict[str, dict[str, Any]]:
        """Returns the tasks of an agent as plain values: client (or `server`) -> task, in turn."""
        tasks: dict[str, dict[str, Any]] = {}
        for client in self.work.get(agent, ()):
            task = dict(self.task)
            if client != SERVER:
                task["client"] = client
            if client in self.measure:
                task["measure"] = True
            tasks[client] = task
        return tasks


class AgentOutcome(Record):
    """How a task of an agent ended.

    Attributes:
        exit_code: 0, or why it failed (`lwfed.types.errors.EXIT_CODES`).
        reason: One line; empty on success.
        again: Whether the agent's next process tries it again.
    """

    exit_code: int = 0
    reason: str = ""
    again: bool = False


class Beat(Record):
    """What an agent last said.

    Attributes:
        agent: Its name: the client that it works for, or its place in a pool.
        process: Distinguishes its processes.
        beat: Counts what this process has said.
        every_s: Seconds until it says something again, at most; 0: unknown.
        host: Its machine or pod, for people.
        version: Its lwfed's version.
        call: The call that the rest is about; empty: none yet.
        client: The client it works for now; empty: none.
        step: Training steps done, and `steps`: their number.
        loss: The last step's loss.
        tries: Client -> tries so far.
        outcomes: Client -> how its task ended.
        note: A line about earlier work, such as an update that came too late.
        ended: Whether the process has ended by itself.
    """

    agent: str
    process: str
    beat: int = 0
    every_s: float = 0.0
    host: str = ""
    version: str = ""
    call: str = ""
    client: str = ""
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    tries: dict[str, int] = Field(default_factory=dict)
    outcomes: dict[str, AgentOutcome] = Field(default_factory=dict)
    note: str = ""
    ended: bool = False


def wants_of(step: str, work: Mapping[str, Sequence[PodTask]], **settings: Any) -> Wants:
    """Returns what a run wants while it waits for tasks of one step.

    Args:
        step: The step.
        work: Agent -> its tasks, in turn. They differ only in `client`, `measure` and `place`; agents know their own.
        settings: The other fields of `Wants`.
    """
    common: dict[str, Any] = {}
    clients: dict[str, list[str]] = {}
    measure: list[str] = []
    for agent, tasks in work.items():
        for task in tasks:
            values = task.model_dump(mode="json", exclude={"place", "parent_pid"}, exclude_defaults=True)
            client = values.pop("client", SERVER)
            if values.pop("measure", False):
                measure.append(client)
            assert not common or common == values, "the tasks of a call differ in more than their clients"
            common = values
            clients.setdefault(agent, []).append(client)
    content = digest_of([settings.get("run_id"), step, common])[:16]
    call = uuid.uuid4().hex
    return Wants(call=call, content=content, step=step, task=common, work=clients, measure=measure, **settings)
