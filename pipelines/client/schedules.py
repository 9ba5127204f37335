"""Schedules that `lwfed submit --cron` has made: listed, paused, resumed and deleted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from lwfed.drive.console import make_table, print_json
from lwfed.types.errors import NotFoundError
from pipelines.client.kubeflow import Access, Kfp, connect
from pipelines.client.runs import all_pages, own_pipeline, pipeline_of

PAUSED = "DISABLED"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule of runs.

    Attributes:
        id: Kubeflow Pipelines' id of it.
        name: Its name.
        cron: When it runs, seconds first; empty where it has no such expression.
        paused: Whether it makes no runs at present.
        created: When it was made, in ISO 8601.
        page: The address of its page; None where that is not known.
    """

    id: str
    name: str
    cron: str
    paused: bool
    created: str
    page: str | None


def list_schedules(kfp: Kfp) -> list[Schedule]:
    """Reads the schedules of lwfed's pipeline, the newest first.

    Raises:
        LwfedError: The server refuses or does not answer.
    """
    pipeline = own_pipeline(kfp)
    if pipeline is None:
        return []
    listing = kfp.client._recurring_run_api.recurring_run_service_list_recurring_runs
    found = all_pages(kfp, listing, items="recurring_runs", about="schedules")
    return [_schedule(kfp, item) for item in found if pipeline_of(item) == pipeline]


def find_schedule(kfp: Kfp, text: str) -> Schedule:
    """Finds a schedule by its id, the first eight or more characters of that, or its name.

    Raises:
        NotFoundError: There is none, or there are several.
    """
    known = list_schedules(kfp)
    found = [item for item in known if item.name == text or (len(text) >= 8 and item.id.startswith(text))]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(item.id[:8] for item in found[:5])
        raise NotFoundError(f"{len(found)} schedules are named {text}", remedy=f"name one by its id: {ids}")
    remedy = "lwfed schedules lists them" if known else 'lwfed submit SPEC --cron "0 3 * * 1" makes one'
    raise NotFoundError(f"{kfp.endpoint} knows no schedule {text}", remedy=remedy)


def show_schedules(access: Access, schedule: str | None, *, console: Console, as_json: bool) -> None:
    """Prints one schedule, or all.

    Args:
        access: The server.
        schedule: Any name of one; None: all.
        console: For people.
        as_json: Print one JSON object as the last line.
    """
    kfp = connect(access)
    found = list_schedules(kfp) if schedule is None else [find_schedule(kfp, schedule)]
    if as_json:
        print_json({"schedules": [asdict(item) for item in found]})
        return
    if not found:
        console.print('no schedules; lwfed submit SPEC --cron "0 3 * * 1" makes one', highlight=False, markup=False)
        return
    table = make_table()
    for name in ("id", "name", "cron, seconds first", "state", "made"):
        table.add_column(name, overflow="fold")
    for item in found:
        state = "paused" if item.paused else "on"
        table.add_row(item.id[:8], item.name, item.cron, state, item.created.replace("T", " ")[:16])
    console.print(table)


def change_schedule(access: Access, schedule: str, action: str, *, console: Console, as_json: bool) -> None:
    """Changes a schedule; a run that goes on is not touched, and runs that were missed are not made up for.

    Args:
        access: The server.
        schedule: Any name of it.
        action: `pause`, `resume` or `delete`.
        console: For people.
        as_json: Print one JSON object as the last line.
    """
    kfp = connect(access)
    found = find_schedule(kfp, schedule)
    api = kfp.client._recurring_run_api
    method, done = {
        "pause": (api.recurring_run_service_disable_recurring_run, "paused: it starts no more runs"),
        "resume": (api.recurring_run_service_enable_recurring_run, "on again"),
        "delete": (api.recurring_run_service_delete_recurring_run, "deleted; its runs stay"),
    }[action]
    kfp.call(method, found.id, about=f"to {action} the schedule {found.name}")
    console.print(f"{found.name} is {done}", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print_json({**asdict(replace(found, paused=action != "resume")), "done": action})


def _schedule(kfp: Kfp, item: Any) -> Schedule:
    cron = item.trigger.cron_schedule.cron if item.trigger and item.trigger.cron_schedule else ""
    return Schedule(
        id=str(item.recurring_run_id),
        name=str(item.display_name),
        cron=str(cron or ""),
        paused=item.status == PAUSED,
        created=item.created_at.isoformat() if item.created_at else "",
        page=kfp.page(f"recurringrun/details/{item.recurring_run_id}"),
    )
