"""Pods that stay for a stage, and remote pools; the test plays what the cluster and the agents do."""

from __future__ import annotations

from typing import Any

import pytest

from lwfed.launch.agents import asking
from lwfed.run.agents import AgentOutcome, Beat, Wants
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import RoundTask
from lwfed.spec.load import build_spec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import SpecError
from tests.events import emit_to
from tests.unit.launch.api_server import NAMESPACE, ApiServer, until
from tests.unit.launch.trial import CLIENTS, KEY, Trial, Working

STAY = {"name": "clients", "resident": "stage"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "EVERY_S", 0.02)


class Player:
    """Plays agents: reads what is wanted, and says how it ended."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.beats: dict[str, Beat] = {}

    def wants(self) -> Wants:
        return Wants.of(self.store.read_ref(paths.wants("r")))

    def asked(self, count: int) -> dict[str, list[str]]:
        """Waits until a number of clients are asked for; returns agent -> clients."""

        def look() -> dict[str, list[str]] | None:
            found = self.store.read_ref(paths.wants("r"))
            work = {} if found is None else Wants.of(found).work
            return work if sum(map(len, work.values())) == count else None

        return until(look, what=f"{count} clients are asked for")

    def say(self, agent: str, **values: Any) -> None:
        before = self.beats.get(agent, Beat(agent=agent, process=agent))
        call = self.wants().call
        if before.call != call:
            before = before.changed(outcomes={}, call=call)
        self.beats[agent] = before.changed(beat=before.beat + 1, **values)
        self.store.write_ref(paths.beats("r", agent), self.beats[agent].to_values())

    def end(self, agent: str, *clients: str, exit_code: int = 0, reason: str = "") -> None:
        """Has an agent end the work of clients."""
        self.say(agent)
        ended = {client: AgentOutcome(exit_code=exit_code, reason=reason) for client in clients}
        self.say(agent, outcomes={**self.beats[agent].outcomes, **ended}, client="")


@pytest.fixture
def player(trial: Trial) -> Player:
    return Player(trial.store)


def places(work: dict[str, list[str]]) -> dict[str, str]:
    return {client: agent for agent, clients in work.items() for client in clients}


def train(
    trial: Trial, launcher: Any, server_round: int, clients: tuple[str, ...] = CLIENTS, **options: Any
) -> Working:
    tasks = [task.model_copy(update={"server_round": server_round}) for task in trial.tasks(clients)]
    options = {"deadline_s": 60, "emit": emit_to(trial.emit), **options}
    trial.calls.append(Working(lambda: launcher.clients("train-client", tasks, **options)))
    return trial.calls[-1]


def test_pods_stay_from_round_to_round_and_serve_clients_in_turn(
    server: ApiServer, trial: Trial, player: Player
) -> None:
    launcher = trial.launcher(pools=[STAY])
    first = train(trial, launcher, 1)
    job = server.job()
    assert job["metadata"]["name"] == f"lwfed-{KEY[:8]}-agent-clients-a1"
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:2] == ["lwfed", "agent"] and job["spec"].get("activeDeadlineSeconds") is None
    listed = trial.store.read_ref(paths.job(job["metadata"]["name"]))
    assert [task["client"] for task in listed["tasks"]] == sorted(player.asked(2))
    for index in (0, 1):
        server.run_pod(server.add_pod(job, index))
    for client, agent in places(player.asked(2)).items():
        player.end(agent, client)
    assert first.wait() == {client: Outcome(client) for client in CLIENTS}
    before = places(player.asked(2))
    second = train(trial, launcher, 2)
    until(lambda: player.wants().task["server_round"] == 2, what="the second round is asked for")
    assert places(player.asked(2)) == before, "each where its data are open"
    for client, agent in before.items():
        player.end(agent, client)
    assert second.wait() == {client: Outcome(client) for client in CLIENTS}
    assert len(server.asked("create", "jobs")) == 1


def test_a_place_whose_pod_was_idle_and_ended_gets_another_job(server: ApiServer, trial: Trial, player: Player) -> None:
    launcher = trial.launcher(pools=[{**STAY, "idle_s": 60}])
    first = train(trial, launcher, 1)
    job = server.job()
    pods = [server.add_pod(job, index) for index in (0, 1)]
    for pod in pods:
        server.run_pod(pod)
    for client, agent in places(player.asked(2)).items():
        player.end(agent, client)
    first.wait()
    server.end_pod(pods[1])
    server.mend_job(job["metadata"]["name"], completedIndexes="1")
    gone = f"{KEY[:8]}-clients-1"
    player.say(gone, ended=True)
    second = train(trial, launcher, 2)
    again = server.job(1)
    assert again["metadata"]["name"].endswith("-a2")
    assert [task["client"] for task in trial.store.read_ref(paths.job(again["metadata"]["name"]))["tasks"]] == [gone]
    server.run_pod(server.add_pod(again, 0))
    player.beats.pop(gone)
    for client, agent in places(player.asked(2)).items():
        player.end(agent, client)
    assert second.wait() == {client: Outcome(client) for client in CLIENTS}
    assert server.jobs() == sorted([job["metadata"]["name"], again["metadata"]["name"]])


def test_five_clients_on_four_places(server: ApiServer, trial: Trial, player: Player) -> None:
    clients = tuple(f"client-00{n}" for n in range(5))
    settings = {"namespace": NAMESPACE, "image": "lwfed:1", "pools": [{**STAY, "parallel": 4}]}
    spec = build_spec({"launch": {"kind": "kubernetes"}, "kubernetes": settings, "federation": {"num_clients": 5}})
    from lwfed.launch.kubernetes.launcher import KubernetesLauncher

    launcher = KubernetesLauncher(spec, store=trial.store, run_id="r")
    trial.launchers.append(launcher)
    call = train(trial, launcher, 1, clients)
    job = server.job()
    assert job["spec"]["completions"] == 4
    for index in range(4):
        server.run_pod(server.add_pod(job, index))
    work = player.asked(5)
    long = next(agent for agent, named in work.items() if len(named) == 2)
    for agent, named in work.items():
        player.say(agent, client=named[0])
    quick = next(agent for agent in work if agent != long)
    player.end(quick, work[quick][0])
    until(lambda: len(player.wants().work[quick]) == 2, what="the fifth client moves to the agent that is free")
    moved = player.wants().work
    assert moved[long] == work[long][:1] and moved[quick][1] == work[long][1]
    for agent, named in moved.items():
        player.end(agent, *named)
    assert call.wait() == {client: Outcome(client) for client in clients}


def test_a_place_that_fails_for_good_fails_its_clients(server: ApiServer, trial: Trial, player: Player) -> None:
    launcher = trial.launcher(pools=[STAY])
    call = train(trial, launcher, 1)
    job = server.job()
    pods = [server.add_pod(job, index) for index in (0, 1)]
    for pod in pods:
        server.run_pod(pod)
    work = player.asked(2)
    server.end_pod(pods[0], 10, message="error: the Job has no such place -> delete it")
    server.mend_job(job["metadata"]["name"], failedIndexes="0")
    lost = work[f"{KEY[:8]}-clients-0"][0]
    until(lambda: call.outcomes, what="the first outcome")
    other = next(client for client in CLIENTS if client != lost)
    player.end(f"{KEY[:8]}-clients-1", other)
    outcomes = call.wait()
    assert outcomes[other] == Outcome(other)
    assert outcomes[lost].exit_code == 10 and "no such place" in outcomes[lost].reason


def test_a_remote_pool_starts_nothing_and_is_asked(server: ApiServer, trial: Trial, player: Player) -> None:
    pools = [{"name": "hospital", "clients": ["client-001"], "remote": True}, {"name": "rest"}]
    call = train(trial, trial.launcher(pools=pools), 1)
    job = server.job()
    listed = trial.store.read_ref(paths.job(job["metadata"]["name"]))
    assert [task["client"] for task in listed["tasks"]] == ["client-000"]
    assert player.asked(1) == {"client-001": ["client-001"]}
    assert "place" not in player.wants().task, "a silo's place is its own"
    player.end("client-001", "client-001", exit_code=22, reason="its policy's `min_cohort` allows ...")
    pod = server.add_pod(job, 0)
    server.run_pod(pod)
    server.end_pod(pod)
    outcomes = call.wait()
    assert outcomes["client-000"] == Outcome("client-000")
    assert outcomes["client-001"].exit_code == 22 and "min_cohort" in outcomes["client-001"].reason


def test_a_remote_client_without_an_agent_is_named_at_the_deadline(
    server: ApiServer, trial: Trial, player: Player
) -> None:
    launcher = trial.launcher(pools=[{"name": "hospital", "clients": ["client-000"], "remote": True}])
    call = train(trial, launcher, 1, CLIENTS[:1], deadline_s=0.3)
    outcome = call.wait()["client-000"]
    assert outcome.exit_code and "not done before the deadline of 0.3 s" in outcome.reason
    assert "client-000 has not begun" in outcome.reason and not server.asked("create", "jobs")


def test_the_servers_pod_may_stay_too(server: ApiServer, trial: Trial, player: Player) -> None:
    launcher = trial.launcher(server={"name": "server", "resident": "stage"})
    task = RoundTask(store=trial.store.uri, run_id="r", stage_key=KEY, server_round=1)
    trial.calls.append(Working(lambda: launcher.server("aggregate-round", task, emit=emit_to(trial.emit))))
    job = server.job()
    server.run_pod(server.add_pod(job, 0))
    assert player.asked(1) == {f"{KEY[:8]}-server-0": ["server"]}
    player.end(f"{KEY[:8]}-server-0", "server")
    assert trial.calls[-1].wait() == {}


@pytest.mark.parametrize("committed", [True, False])
def test_pods_go_with_their_stage_and_wait_for_its_next_coordinator(
    server: ApiServer, trial: Trial, player: Player, committed: bool
) -> None:
    launcher = trial.launcher(pools=[STAY])
    call = train(trial, launcher, 1)
    server.job()
    for client, agent in places(player.asked(2)).items():
        player.end(agent, client)
    call.wait()
    if committed:
        trial.store.write_ref(paths.stage_checkpoint(KEY), {})
    launcher.close()
    trial.launchers.remove(launcher)
    assert len(server.jobs()) == (0 if committed else 1)
    if not committed:
        successor = train(trial, trial.launcher(pools=[STAY]), 2)
        until(lambda: player.wants().task["server_round"] == 2, what="the second round is asked for")
        for client, agent in places(player.asked(2)).items():
            player.end(agent, client)
        successor.wait()
        assert len(server.jobs()) == 1, "the next coordinator takes the Job over"


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"name": "a", "idle_s": 5}, "`idle_s` of the pool a needs `resident: stage`"),
        ({"name": "a", "resident": "stage", "gpus": 2}, "pods that stay train on one"),
        ({"name": "a", "remote": True, "gpus": 1}, "remote and starts no pods: remove `gpus`"),
        ({"name": "a", "remote": True, "resident": "stage"}, "remove `resident`"),
    ],
)
def test_pools_that_contradict_themselves_are_refused(pool: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as error:
        build_spec({"launch": {"kind": "kubernetes"}, "kubernetes": {"image": "lwfed:1", "pools": [pool]}})
    assert words in str(error.value)
