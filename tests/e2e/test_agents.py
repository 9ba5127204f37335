"""Agents and their coordinator as processes that are killed, taken over, late and forbidden; the digest stays the same.

Each fault is one line of the agent and one of the coordinator, and nothing that was committed is done again.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.agents import Federation, supervised, wait_until
from tests.e2e.command import write_spec
from tests.nest import Nest

ONE, TWO = "client-000", "client-001"
LONG = {"stages__rounds": [2, 0], "training__local_epochs": 10, "evaluation__every": 9}
"""Two rounds of 20 steps, which take three seconds on these slow machines: long enough to kill something in one."""

pytestmark = pytest.mark.slow
SMALL_DISK = 24 * 1024
"""Bytes of a disk that the frozen blocks of the tiny experiment fill."""


@pytest.fixture
def federation(forks: Nest, tmp_path: Path) -> Iterator[Federation]:
    yield Federation(forks, tmp_path, str(tmp_path / "store"))
    forks.clear()


@pytest.fixture(scope="module")
def expected(forks: Nest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the long spec in one process."""
    folder = tmp_path_factory.mktemp("expected")
    run = forks.start("run", write_spec(folder, **LONG), "--json", "-olaunch.device=cpu", cwd=folder)
    return str(run.succeed().json["digest"])


def at_step(federation: Federation, client: str, step: int = 1, server_round: int = 1) -> bool:
    beat = federation.beat(client)
    wants = Path(federation.store) / "agents/runs/one.json"
    return (
        bool(beat)
        and beat.get("step", 0) >= step
        and json.loads(wants.read_bytes())["task"]["server_round"] == server_round
    )


def at_try(federation: Federation, number: int) -> bool:
    return at_step(federation, ONE) and federation.beat(ONE)["tries"] == {ONE: number}


def stage_of(federation: Federation) -> str:
    """How agents name the first stage."""
    (path,) = Path(federation.store).glob("stages/*/rounds/001/record.json")
    return path.parents[2].name[:8]


def test_an_agent_that_is_killed_goes_on_and_so_does_a_coordinator(federation: Federation, expected: str) -> None:
    spec = write_spec(federation.folder, **LONG)
    with supervised(lambda: federation.agent(ONE)) as first, federation.agents(TWO) as others:
        run = federation.coordinator(spec)
        wait_until(lambda: at_step(federation, ONE), commands=[run])
        first[0].kill()
        wait_until(lambda: at_step(federation, ONE, server_round=2), commands=[run])
        run.kill()
        time.sleep(1)
        run = federation.coordinator(spec).succeed()
    assert run.json["digest"] == expected
    assert first[0].code == -signal.SIGKILL and len(first) == 2
    for command in (first[1], others[TWO]):
        begun = [line for line in command.err.splitlines() if line.endswith(f"round 2, stage {stage_of(federation)}")]
        assert len(begun) == 1, "work was begun twice"
        assert "too late" not in command.err and "failed" not in command.err


def test_two_agents_of_one_client_exclude_each_other(federation: Federation) -> None:
    spec = write_spec(federation.folder, **{**LONG, "stages__rounds": [6, 0]})
    with federation.agents(ONE, TWO) as agents:
        run = federation.coordinator(spec)
        wait_until(lambda: at_step(federation, ONE), commands=[run])
        second = federation.agent(ONE)
        assert second.wait() == 24
        assert len([line for line in second.err.splitlines() if line.startswith("error: another agent")]) == 1
        agents[ONE].signal(signal.SIGSTOP)
        third = federation.agent(ONE)
        wait_until(lambda: "train-client" in third.err, commands=[run, third])
        agents[ONE].signal(signal.SIGCONT)
        assert agents[ONE].wait() == 24
        run.succeed()
        third.kill()
    assert "error: another agent of client-000 is at work" in agents[ONE].err
    assert federation.record(1, 6)["failed"] == {}


def test_a_client_that_is_late_is_refused_by_name_and_taken_in_again(federation: Federation) -> None:
    """Two updates of three are enough for a round, so the third client, which sleeps, is late; the next needs it."""
    spec = write_spec(
        federation.folder, **LONG,
        federation={"num_clients": 3, "fraction_fit": 0.67, "min_fit_clients": 2, "oversample": 1.5},
    )  # fmt: skip
    three = "client-002"
    with federation.agents(ONE, TWO, three) as agents:
        run = federation.coordinator(spec)
        wait_until(lambda: at_step(federation, three), commands=[run])
        agents[three].signal(signal.SIGSTOP)
        wait_until(lambda: at_step(federation, ONE, server_round=2), commands=[run])
        agents[ONE].kill()
        agents[three].signal(signal.SIGCONT)
        run.succeed()
    late = f"{three} is too late: train-client of round 1"
    assert len([line for line in agents[three].err.splitlines() if late in line]) == 1
    assert run.err.count(late) == 1
    first, second = federation.record(1, 1), federation.record(1, 2)
    assert set(first["clients"]) == {ONE, TWO} and not first["failed"]
    assert set(second["clients"]) == {TWO, three}


def test_an_agent_that_was_never_started_is_named_and_given_up(federation: Federation) -> None:
    spec = write_spec(
        federation.folder, stages__rounds=[1, 0],
        federation={"num_clients": 2, "min_fit_clients": 1, "round_timeout_s": "auto"},
    )  # fmt: skip
    with federation.agents(ONE):
        run = federation.coordinator(spec, constants={"lwfed.launch.agents.launcher.GONE_S": 10.0}).succeed()
    absent = f"the agent {TWO} has not begun this work"
    assert f"{TWO} waits: {absent}" in run.err
    failed = federation.record(1, 1)["failed"]
    assert list(failed) == [TWO] and failed[TWO].startswith("given up after 10 s") and absent in failed[TWO]


def test_what_a_policy_forbids_is_told_on_both_sides(federation: Federation) -> None:
    """One refusal leaves the quorum; two fail the round with the policies' words, and what they changed heals it."""
    spec = write_spec(
        federation.folder, stages__rounds=[1, 0], federation={"num_clients": 3, "min_fit_clients": 2},
        evaluation__every=9,
    )  # fmt: skip
    three = "client-002"
    with ExitStack() as stack:
        agents = stack.enter_context(federation.agents(ONE, TWO))
        strict = stack.enter_context(federation.agents(three, policy={"min_cohort": 3}))[three]
        run = federation.coordinator(spec).succeed()
        said = "`min_cohort` allows at least 3 updates per round, and 2 count here"
        assert said in strict.err and said in federation.record(1, 1)["failed"][three]
        for other in agents.values():
            other.kill()
        stack.enter_context(federation.agents(ONE, policy={"experiments": ["chest-*"]}))
        stack.enter_context(federation.agents(TWO, policy={"round_s": 1e-6}))
        other = write_spec(federation.folder, name="other.yaml", seed=1, stages__rounds=[1, 0],
                           federation={"num_clients": 3, "min_fit_clients": 2}, evaluation__every=9)  # fmt: skip
        run = federation.coordinator(other, run_id="two")
        assert run.wait() == 13
    (error,) = (line for line in run.err.splitlines() if line.startswith("error: "))
    assert "0 of 3 updates and needs 2" in error
    assert all(word in error for word in ("`experiments`", "`round_s`", "`min_cohort`"))
    with federation.agents(ONE, TWO, three):  # a new coordinator asks again, though all three had failed
        federation.coordinator(other, run_id="two").succeed()


def test_a_store_that_comes_and_goes_loses_nothing(federation: Federation, expected: str) -> None:
    spec, store = write_spec(federation.folder, **LONG), Path(federation.store)
    away = store.with_name("away")
    with federation.agents(ONE, TWO) as agents:
        run = federation.coordinator(spec)
        wait_until(lambda: at_step(federation, ONE) and federation.beat(TWO), commands=[run])  # both have seen it
        store.rename(away)
        time.sleep(3)
        assert not store.exists(), "nothing was made in its place"
        away.rename(store)
        run.succeed()
        said = [[line for line in agent.err.splitlines() if "is gone" in line] for agent in agents.values()]
        store.rename(away)  # and while they wait for the next run
        time.sleep(1)
        away.rename(store)
        federation.coordinator(spec, "--fresh", run_id="two").succeed()
    assert run.json["digest"] == expected
    for gone in said:
        assert len(gone) == 1 and gone[0].endswith("trying again")


def test_other_trouble_is_told_with_its_reason(federation: Federation) -> None:
    """A loss that is no number, and a device that is not there: both sides say so, and the run is below its quorum."""
    spec = write_spec(federation.folder, stages__rounds=[1, 0], training__learning_rate=1e30, training__local_epochs=40)
    with federation.agents(ONE) as agents, federation.agents(TWO, policy={"device": "cuda"}) as others:
        run = federation.coordinator(spec)
        assert run.wait() == 13
    (error,) = (line for line in run.err.splitlines() if line.startswith("error: "))
    assert "torch sees no GPU" in error and re.search(r"client-000: the loss is nan", error)
    assert len([line for line in agents[ONE].err.splitlines() if ": failed: " in line]) == 1
    assert len([line for line in others[TWO].err.splitlines() if ": failed: " in line]) == 1


def test_a_deadline_follows_from_the_rates_of_earlier_rounds(federation: Federation) -> None:
    """The first round has none, and is written down as such; the second has the least there is: it takes no time."""
    spec = write_spec(federation.folder, stages__rounds=[2, 0], federation__round_timeout_s="auto")
    with federation.agents(ONE, TWO):
        federation.coordinator(spec).succeed()
    tasks = sorted(Path(federation.store).glob("stages/*/rounds/00[12]/round.json"))
    assert [json.loads(path.read_bytes())["deadline_s"] for path in tasks] == [None, 60.0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_costs_a_client_its_cache_and_no_round(federation: Federation, small_disk: Path) -> None:
    changes: dict[str, Any] = {"stages__rounds": [1, 1], "evaluation__every": 9}
    spec = write_spec(federation.folder, **changes)
    here = federation.nest.start("run", spec, "--json", "-ostore.uri=./here", cwd=federation.folder).succeed()
    with federation.agents(ONE), federation.agents(TWO, policy={"cache": str(small_disk / "kept")}):
        run = federation.coordinator(spec).succeed()
    assert run.json["digest"] == here.json["digest"]
    record = federation.record(2, 1)
    assert not record["failed"]
    assert record["clients"][TWO]["bytes_down_frozen"] > SMALL_DISK, "the frozen blocks that it would keep do not fit"


def test_an_agent_that_dies_at_its_work_is_given_up_after_its_tries(federation: Federation) -> None:
    spec = write_spec(federation.folder, **LONG, federation={"num_clients": 2, "min_fit_clients": 1})
    with supervised(lambda: federation.agent(ONE)) as started, federation.agents(TWO):
        run = federation.coordinator(spec)
        for number in (1, 2):
            wait_until(lambda number=number: at_try(federation, number), commands=[run])
            started[-1].kill()
        wait_until(lambda: len(started) > 2)
        run.succeed()
    assert "its agent died 2 times at this work" in federation.record(1, 1)["failed"][ONE]
    assert ONE in federation.record(1, 2)["clients"], "the next round takes it in again"


def test_agents_are_shown_as_they_are(federation: Federation) -> None:
    spec = write_spec(federation.folder, **LONG)
    with federation.agents(ONE, TWO) as agents:
        run = federation.coordinator(spec)
        wait_until(lambda: at_step(federation, ONE) and at_step(federation, TWO), commands=[run])
        agents[TWO].kill()
        run.signal(signal.SIGSTOP)
        shown = federation.nest.start(
            "agents", "one", "--store", federation.store, "--json", cwd=federation.folder,
            constants={"lwfed.cli.agent.WATCHED_S": 1.5},
        ).succeed().json["agents"]  # fmt: skip
        assert {item["agent"]: item["state"] for item in shown} == {ONE: shown[0]["state"], TWO: "silent"}
        assert shown[0]["state"] in ("at work", "waits")
        agents[ONE].signal(signal.SIGTERM)
        assert agents[ONE].wait() == 130
    shown = federation.nest.start(
        "agents", "one", "--store", federation.store, cwd=federation.folder,
        constants={"lwfed.cli.agent.WATCHED_S": 1.0},
    ).succeed().out  # fmt: skip
    assert re.search(r"client-000\s+ended", shown) and re.search(r"client-001\s+silent", shown)
