"""Answers to requests that make or change something: the recorded ones, with ids, names and the clock replaced.

A request is answered so where it says no more than the recorded one did; others are left to the definitions.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from email import message_from_bytes
from typing import TYPE_CHECKING, Any

import yaml

from tests.components.recorded import DATE, OVER, Answer, Played, as_json, call, recorded_body

if TYPE_CHECKING:
    from tests.components.kfp_server import Ask, State

V2 = "/apis/v2beta1"
NOTHING = "00000000-0000-0000-0000-000000000000"
"""The id of nothing that recorded requests asked for."""
PLAIN: Mapping[str, Any] = {"parameters": {}}
"""The configuration of a run that has no parameters: answers leave it out."""


def answer(state: State, ask: Ask) -> Answer | None:
    """Returns the recorded answer to a request that makes or changes something; None where none is like it."""
    if ask.words == ("POST", f"{V2}/pipelines/upload_version"):
        name, pipeline_id = ask.query["name"], ask.query["pipelineid"]
        if has_version(state, name, pipeline_id):
            return None
        return as_json(add_version(state, pipeline_id, name, ask))
    if ask.words == ("POST", f"{V2}/runs"):
        wanted = json.loads(ask.body)
        return start(state, wanted) if _like("run-made", wanted) else None
    if ask.words == ("POST", f"{V2}/recurringruns"):
        wanted = json.loads(ask.body)
        return schedule(state, wanted) if _like("schedule-made", wanted) else None
    if found := ask.matches(rf"(GET|POST|DELETE) {V2}/recurringruns/([^/:]+)(:enable|:disable)?"):
        return _of_schedule(state, found[1], found[2], found[3])
    if found := ask.matches(rf"POST {V2}/runs/([^/:]+):(retry|terminate)"):
        run = state.runs.get(found[1])
        return None if run is None else _of_run(state, run, found[2])
    return None


def unknown(name: str, wanted: str) -> Answer:
    """Returns the recorded answer to a request for what is not there, with another id."""
    held = call(name)
    return Answer(held.body.replace(NOTHING.encode(), wanted.encode()), held.status, held.kind)


def has_version(state: State, name: str, pipeline_id: str) -> bool:
    """Says whether a pipeline has a version of that name."""
    return any((item["display_name"], item["pipeline_id"]) == (name, pipeline_id) for item in state.versions)


def add_version(state: State, pipeline_id: str, name: str, ask: Ask) -> dict[str, Any]:
    """Adds what is uploaded as a version, and returns it as the server showed one."""
    pipeline, platform = yaml.safe_load_all(_uploaded(ask))
    made = _answered("version-made") | {
        "pipeline_id": pipeline_id,
        "pipeline_version_id": str(uuid.uuid4()),
        "display_name": name,
        "name": name,
        "pipeline_spec": {"pipeline_spec": pipeline, "platform_spec": platform},
    }
    state.versions.append(made)
    return made


def start(state: State, wanted: Mapping[str, Any]) -> Answer:
    """Makes a run that plays the server's script; it is PENDING in the answer."""
    run = Played(state.script, written=dict(state.written))
    run.made = {"service_account": "pipeline-runner", **_said(wanted)}
    state.runs[run.run_id] = run
    return as_json(_answered("run-made") | run.made | {"run_id": run.run_id})


def schedule(state: State, wanted: Mapping[str, Any]) -> Answer:
    """Makes a schedule."""
    made = _answered("schedule-made") | _said(wanted) | {"recurring_run_id": str(uuid.uuid4())}
    state.schedules.append(made)
    return as_json(made)


def _of_schedule(state: State, method: str, schedule_id: str, verb: str | None) -> Answer | None:
    found = next((item for item in state.schedules if item["recurring_run_id"] == schedule_id), None)
    if method == "GET" and verb is None:
        return unknown("schedule-unknown", schedule_id) if found is None else as_json(found)
    if found is None:
        return None
    if method == "DELETE" and verb is None:
        state.schedules.remove(found)
        return call("schedule-deleted")
    if method != "POST" or verb is None:
        return None
    mode = verb.removeprefix(":").upper()
    found |= {"mode": mode, "status": f"{mode}D", "updated_at": _now()}  # as the list shows it afterwards
    return call(f"schedule-{mode.lower()}d")


def _of_run(state: State, run: Played, verb: str) -> Answer | None:
    if verb == "retry":
        if run.state == "SUCCEEDED":
            return call("retry-of-succeeded", run=run.run_id)
        if run.state not in OVER:
            return None
        run.retry()
        return call("run-retried")
    if state.before_terminate is not None:
        state.before_terminate(run)
    if run.state in OVER:
        return call("terminate-of-finished", run=run.run_id)
    run.terminate()
    return call("run-terminated")


def _like(name: str, wanted: Mapping[str, Any]) -> bool:
    """Says whether a request says no more than a recorded one."""
    return set(_said(wanted)) <= set(_said(recorded_body(name)))


def _said(wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in wanted.items() if value and value != PLAIN}


def _answered(name: str) -> dict[str, Any]:
    """Returns a recorded answer's values, with the clock of now."""
    values = json.loads(DATE.sub(_now(), call(name).body.decode()))
    assert isinstance(values, dict)
    return values


def _uploaded(ask: Ask) -> bytes:
    message = message_from_bytes(b"Content-Type: " + ask.kind.encode() + b"\r\n\r\n" + ask.body)
    (part,) = [part for part in message.walk() if part.get_filename()]
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
