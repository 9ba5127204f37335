"""`lwfed agent` works for one client of a federation; `lwfed agents` shows who is there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from lwfed import environment
from lwfed.cli.options import DEFAULT_STORE, Json, RunId, StoreUri
from lwfed.drive.console import make_console, make_table, print_json
from lwfed.drive.interrupts import interrupting_on_sigterm
from lwfed.launch.step_process import exit_without_coordinator, task_of_job, write_event
from lwfed.run.agents import Beat
from lwfed.run.events import Event, values_of
from lwfed.run.tasks import Place
from lwfed.store import paths
from lwfed.store.ahead import parallel_map
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.store.refs import TOGETHER
from lwfed.types.errors import SpecError

WATCHED_S = 7.0
"""Seconds in which an agent that lives beats at least once, if it does not say otherwise."""
SLACK = 1.4
"""How much longer than it says an agent's pause between two beats may last."""


def agent(
    store: Annotated[str, typer.Option("--store", metavar="URI", help="The federation's store.")],
    client: Annotated[str | None, typer.Option("--client", metavar="ID", help="The client that it works for.")] = None,
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Work for this run alone, and end with it.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="What this machine allows (YAML); default: built-in data alone."),
    ] = None,
    idle_s: Annotated[
        float | None, typer.Option("--idle-s", metavar="S", min=1, help="End after so many seconds without work.")
    ] = None,
    job: Annotated[
        str | None, typer.Option("--job", metavar="NAME", help="The Job that it is a pod of, in place of --client.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print progress as one JSON object per line.")] = False,
) -> None:
    """Train for one client whenever a run wants it, with this machine's own data.

    It opens no port: it reads from the store what is wanted, trains, commits, and waits for the next round. It stays
    until it is interrupted, its run is over, or it fails in a way that a new process may fix: let systemd, podman or
    Slurm start it again. A client has one agent; a second one gives way.
    """
    if (client is None) == (job is None):
        raise SpecError("an agent works for one client", remedy="pass --client ID")
    from lwfed.agent.judging import Judge, PlaceJudge, PolicyJudge
    from lwfed.agent.policy import Policy, load_policy
    from lwfed.agent.serve import Agent, Settings

    judge: Judge
    if job is not None:
        values, beat = task_of_job(store, job, index=environment.job_index())
        if beat is not None:
            exit_without_coordinator(store, beat, as_json=as_json)
        settings = Settings(name=values["client"], run_id=values["run_id"], alone=True, idle_s=values.get("idle_s"))
        judge = PlaceJudge(Place.model_validate(values["place"]))
    else:
        assert client is not None
        judge = PolicyJudge(Policy() if policy is None else load_policy(policy), client=client)
        settings = Settings(name=client, run_id=run_id, idle_s=idle_s)

    def say(line: str) -> None:
        typer.echo(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", err=True)

    def emit(event: Event) -> None:
        if as_json:
            write_event(event.kind, values_of(event))

    opened = open_store(store)
    say(f"{settings.name}: waits for work from {settings.run_id or 'any run'} in {opened.uri}")
    with interrupting_on_sigterm():
        Agent(opened, settings=settings, judge=judge, say=say, emit=emit).serve()
    say(f"{settings.name}: nothing more to do")


def agents(run_id: RunId = "latest", store: StoreUri = DEFAULT_STORE, as_json: Json = False) -> None:
    """Show a run's agents: who is there, at which step, and how the last work ended.

    Takes a few seconds, for thousands of agents up to a minute.
    """
    from lwfed.cli.history import open_runs, pick_run

    opened = open_runs(store)
    run = pick_run(opened, run_id)
    before = _read(opened, run.run_id)
    time.sleep(_watched_s([beat for beat in before.values() if not beat.ended]))
    now = _read(opened, run.run_id)
    rows = [(_state(before.get(name), beat), beat) for name, beat in sorted(now.items())]
    if as_json:
        print_json({"run_id": run.run_id, "agents": [{"state": state, **beat.to_values()} for state, beat in rows]})
        return
    if not rows:
        make_console().print(f"no agent has worked for {run.run_id}")
        return
    table = make_table(f"agents of {run.run_id}", left=("agent", "state", "at work for", "host", "last trouble"))
    for state, beat in rows:
        at = f"{beat.client}, step {beat.step} of {beat.steps}" if beat.client else ""
        failed = [f"{client}: {end.reason}" for client, end in beat.outcomes.items() if end.exit_code]
        table.add_row(beat.agent, state, at, beat.host, "; ".join(failed) or beat.note)
    make_console().print(table)


def _read(store: Store, run_id: str) -> dict[str, Beat]:
    values = parallel_map(store.read_ref, store.list(paths.beats(run_id)), threads=TOGETHER)
    return {beat.agent: beat for beat in (Beat.of(value) for value in values if value is not None)}


def _watched_s(beats: Sequence[Beat]) -> float:
    """Returns the seconds within which each of some agents beats again, if it is there."""
    return max((max(WATCHED_S, SLACK * beat.every_s) for beat in beats), default=0.0)


def _state(before: Beat | None, now: Beat) -> str:
    if now.ended:
        return "ended"
    if before is None or (before.process, before.beat) != (now.process, now.beat):
        return "at work" if now.client else "waits"
    return "silent"
