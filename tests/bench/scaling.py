"""A simulation of many agents and one coordinator from measured costs: requests, delays, bytes, aggregation.

Plain Python and seeded. It plays every agent's polls and beats second by second, as `lwfed.agent` sends them, and adds
up what they cost the store and the coordinator; what takes time in sequence (reading updates, summing) is computed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field

from lwfed.agent.beating import BEAT_S, RESTS, STEP_S, STEPS
from lwfed.launch.agents.asking import EVERY_S, POLLS_S, REQUESTS_PER_S, SHARE
from lwfed.store.refs import TOGETHER

JITTER = (0.7, 1.3)
"""The bounds of an agent's pause between two polls, in parts of the told one."""
HEARTBEAT_S = 15.0
"""Seconds between the coordinator's heartbeats, and between an agent's looks at them."""
MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What was measured.

    Attributes:
        server_s: Kind of request -> CPU seconds of the store's server.
        client_s: Kind of request -> CPU seconds of the process that asks.
        latency_s: Seconds between a small request and its answer.
        sum_s_per_mb: CPU seconds that the server needs to read, check and add a megabyte of an update.
        store_mb_per_s: Megabytes per second between the store and one machine.
        coordinator_s: CPU seconds of the coordinator's own work per client of a round, requests apart.
        wants_bytes: Bytes that one client adds to what a run wants.
    """

    server_s: dict[str, float] = field(
        default_factory=lambda: {"304": 0.0004, "GET": 0.00047, "PUT": 0.0019, "LIST": 0.038, "DELETE": 0.00045}
    )
    client_s: dict[str, float] = field(
        default_factory=lambda: {"304": 0.0011, "GET": 0.0013, "PUT": 0.0017, "LIST": 0.074, "DELETE": 0.000013}
    )
    latency_s: float = 0.005
    sum_s_per_mb: float = 0.0025
    store_mb_per_s: float = 1000.0
    coordinator_s: float = 0.0009
    wants_bytes: float = 52.0


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Who takes part.

    Attributes:
        agents: Number of agents that are there.
        known: Number of those that have worked for the run before: they beat while they wait.
        cohort: Clients per round.
        update_mb: Megabytes of an update, and of what a client downloads per round.
        units: Number of files of an update.
        requests: Requests to sum an update: one per small unit, one per tensor of others.
        threads: Units that a server sums at a time; requests need the interpreter's lock, and so one core.
        train_s: Median seconds of a client's training, and `spread`: the factor of one standard deviation.
        poll_s: Seconds between polls; None: as the coordinator tells them.
    """

    agents: int = 10_000
    known: int = 10_000
    cohort: int = 1_000
    update_mb: float = 46.4
    units: int = 6
    requests: int = 30
    threads: int = 4
    train_s: float = 60.0
    spread: float = 1.5
    poll_s: float | None = None

    @property
    def steps_s(self) -> float:
        """Seconds between two beats of an agent that trains."""
        return max(STEP_S, STEPS * self.polls_s)

    @property
    def idle_s(self) -> float:
        """Seconds between two beats of an agent that waits."""
        return max(BEAT_S, RESTS * self.polls_s)

    @property
    def looks_s(self) -> float:
        """Seconds between two looks of an agent that trains for another one of its client."""
        return max(BEAT_S, self.steps_s)

    @property
    def polls_s(self) -> float:
        """Seconds between two polls of an agent."""
        told = min(max(self.agents / REQUESTS_PER_S, POLLS_S[0]), POLLS_S[1])
        return told if self.poll_s is None else self.poll_s


@dataclass(frozen=True)
class Load:
    """Requests of agents.

    Attributes:
        per_second: For each second, kind of request -> number.
        noticed_s: For each client of the cohort, the seconds until its agent has seen the call; empty without one.
        done_s: For each client of the cohort, the seconds until its update is there.
    """

    per_second: list[Counter[str]]
    noticed_s: list[float]
    done_s: list[float]

    def rate(self, *kinds: str, begin: int = 0, end: int | None = None) -> float:
        """Returns the mean number of requests per second, of some kinds or all, between two seconds."""
        some = self.per_second[begin:end]
        return sum(sum(count for kind, count in one.items() if not kinds or kind in kinds) for one in some) / len(some)

    def cores(self, costs: Costs, *, begin: int = 0, end: int | None = None) -> float:
        """Returns the server's cores that are busy on average between two seconds."""
        some = self.per_second[begin:end]
        return sum(costs.server_s[kind] * n for one in some for kind, n in one.items()) / len(some)


def play(federation: Federation, *, seconds: int, call: bool, seed: int = 0) -> Load:
    """Plays the agents' requests.

    Args:
        federation: The agents.
        seconds: How long.
        call: Whether a round begins at second 0; else all agents wait all the time.
        seed: Seeds polls, beats and training times.
    """
    draw = random.Random(seed)
    bins: list[Counter[str]] = [Counter() for _ in range(seconds)]
    noticed, done = list[float](), list[float]()

    def ask(at: float, *kinds: str) -> None:
        if at < seconds:
            for kind in kinds:
                bins[int(at)][kind] += 1

    for agent in range(federation.agents):
        works = call and agent < federation.cohort
        first = at = draw.uniform(0, federation.polls_s)
        unseen = call
        while at < seconds:
            ask(at, "GET" if unseen else "304")
            unseen = False
            at += federation.polls_s * draw.uniform(*JITTER)
        end = first
        if works:
            end += federation.train_s * federation.spread ** draw.gauss(0, 1)
            noticed.append(first)
            done.append(end)
            for number in range(math.ceil((end - first) / federation.steps_s)):
                ask(first + number * federation.steps_s, "PUT")
            for number in range(math.ceil((end - first) / federation.looks_s)):
                ask(first + number * federation.looks_s, "GET")
            ask(first, *["GET"] * (3 + federation.units))  # the round, the plan, the model
            ask(end, *["PUT"] * (federation.units + 2), "GET")  # the update, its ref, the last beat
        if works or agent < federation.known:
            for start, every_s, kinds in (
                (end if works else 0.0, federation.idle_s, ("GET", "PUT")),
                (0.0, HEARTBEAT_S, ("304",)),
            ):
                at = start + draw.uniform(0, every_s)
                while at < seconds:
                    ask(at, *kinds)
                    at += every_s
    return Load(bins, noticed, done)


def look_s(open_agents: int, costs: Costs) -> tuple[float, float]:
    """Returns the seconds of one look at the beats of agents that train, and between two looks.

    A process sends `TOGETHER` requests at a time, and needs CPU for each alone.
    """
    one = max(costs.client_s["GET"], (costs.latency_s + costs.client_s["GET"]) / TOGETHER)
    took = open_agents * one
    return took, took + max(EVERY_S, took / SHARE)


def sum_s(federation: Federation, costs: Costs, *, fan_in: int | None = None) -> tuple[float, int]:
    """Returns the seconds until a round is summed, and the number of servers at work in the widest level.

    Args:
        federation: The round.
        costs: What was measured.
        fan_in: Updates or sums that a server of a tree takes; None: one server takes all.
    """

    def serve(items: int, mb: float, requests: float) -> float:
        cpu_s = mb * costs.sum_s_per_mb / federation.threads
        return items * max(cpu_s, requests * costs.client_s["GET"], mb / costs.store_mb_per_s)

    if fan_in is None or federation.cohort <= fan_in:
        return serve(federation.cohort, federation.update_mb, federation.requests), 1
    total, items, widest, mb = 0.0, federation.cohort, 0, federation.update_mb
    while items > 1:
        total += serve(min(items, fan_in), mb, federation.requests)
        items = math.ceil(items / fan_in)
        widest = max(widest, items)
        mb = 2 * federation.update_mb  # sums are float64
        if items > 1:
            total += 2 * costs.latency_s + mb / costs.store_mb_per_s  # a sum is written, and its ref
    return total, widest


def coordinator_s(federation: Federation, costs: Costs) -> dict[str, float]:
    """Returns the seconds of the coordinator's own part of a round, by part."""
    cohort, client = federation.cohort, costs.client_s
    pages = math.ceil(cohort * (federation.units + 1) / 1000)
    return {
        "updates read as they come": cohort * (client["GET"] + costs.latency_s),
        "its own work": cohort * costs.coordinator_s,
        "updates' files listed": pages * (client["LIST"] + costs.latency_s),
        "and deleted": cohort * federation.units * client["DELETE"],
    }


def moved_gb(federation: Federation, costs: Costs) -> dict[str, float]:
    """Returns the gigabytes that the store sends and receives in a round, by cause."""
    updates = federation.cohort * federation.update_mb / 1e3
    calls = federation.agents * federation.cohort * costs.wants_bytes / 1e9
    return {"models, sent": updates, "updates, received": updates, "updates, sent": updates, "calls, sent": calls}


def api_requests(cohort: int, *, rounds: int, resident: bool) -> dict[str, float]:
    """Returns what the API server gets for `rounds` rounds, at least: requests per pod that Kubernetes itself sends.

    The Job controller creates each pod and removes its finalizer; the scheduler binds it; the kubelet reports at least
    that it runs and that it has ended.
    """
    pods = cohort * (1 if resident else rounds)
    return {
        "pods": pods,
        "requests": 5 * pods,
        "seconds of the Job controller at 20 requests per second": 2 * pods / 20,
    }
