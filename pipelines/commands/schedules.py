"""What `lwfed schedules` does: lists, pauses, resumes and deletes what `lwfed submit --cron` has made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lwfed.drive.console import make_table
from pipelines.client.connection import Access, Kfp, connect
from pipelines.client.runs import all_pages, only, own_pipeline, pipeline_of
from pipelines.commands.screen import Screen

MAKES_ONE = 'lwfed submit SPEC --cron "0 3 * * 1" makes one'


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


def show_schedules(access: Access, text: str | None, *, screen: Screen) -> None:
    """Prints one schedule, or all.

    Args:
        access: The server.
        text: Any name of one; None: all.
        screen: Where.

    Raises:
        LwfedError: There is no such schedule, or the server refuses or does not answer.
    """
    kfp = connect(access)
    found = list_schedules(kfp) if text is None else [find_schedule(kfp, text)]
    if screen.as_json:
        screen.result({"schedules": [asdict(item) for item in found]})
    elif not found:
        screen.say(f"no schedules; {MAKES_ONE}")
    else:
        table = make_table()
        for name in ("id", "name", "cron, seconds first", "state", "made"):
            table.add_column(name, overflow="fold")
        for item in found:
            state = "paused" if item.paused else "on"
            table.add_row(item.id[:8], item.name, item.cron, state, item.created.replace("T", " ")[:16])
        screen.console.print(table)


def change_schedule(access: Access, text: str, action: str, *, screen: Screen) -> None:
    """Changes a schedule; runs that go on are not touched, and missed ones are not made up for.

    Args:
        access: The server.
        text: Any name of it.
        action: `pause`, `resume` or `delete`.
        screen: Where to say so.

    Raises:
        LwfedError: There is no such schedule, or the server refuses or does not answer.
    """
    kfp = connect(access)
    found = find_schedule(kfp, text)
    method, done = {
        "pause": (kfp.client.disable_recurring_run, "paused: it starts no more runs"),
        "resume": (kfp.client.enable_recurring_run, "on again"),
        "delete": (kfp.client.delete_recurring_run, "deleted; its runs stay"),
    }[action]
    kfp.call(method, found.id, about=f"to {action} the schedule {found.name}")
    screen.say(f"{found.name} is {done}")
    screen.result({**asdict(replace(found, paused=action != "resume")), "done": action})


def list_schedules(kfp: Kfp) -> list[Schedule]:
    """Reads the schedules of lwfed's pipeline, the newest first.

    Raises:
        LwfedError: The server refuses or does not answer.
    """
    pipeline = own_pipeline(kfp)
    if pipeline is None:
        return []
    found = all_pages(kfp, kfp.client.list_recurring_runs, items="recurring_runs")
    return [_schedule(kfp, item) for item in found if pipeline_of(item) == pipeline]


def find_schedule(kfp: Kfp, text: str) -> Schedule:
    """Finds a schedule by its id, the first eight or more characters of that, or its name.

    Raises:
        NotFoundError: There is none, or there are several.
    """
    known = {item.id: item for item in list_schedules(kfp)}
    alike = [item.id for item in known.values() if item.name == text or (len(text) >= 8 and item.id.startswith(text))]
    return known[only(alike, text, of="schedule", kfp=kfp, remedy="lwfed schedules lists them" if known else MAKES_ONE)]


def _schedule(kfp: Kfp, item: Any) -> Schedule:
    cron = item.trigger.cron_schedule.cron if item.trigger and item.trigger.cron_schedule else ""
    return Schedule(
        id=str(item.recurring_run_id),
        name=str(item.display_name),
        cron=str(cron or ""),
        paused=item.status == "DISABLED",
        created=item.created_at.isoformat() if item.created_at else "",
        page=kfp.page(f"recurringrun/details/{item.recurring_run_id}"),
    )
