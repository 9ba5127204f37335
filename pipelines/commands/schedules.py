"""`lwfed schedules`: lists, pauses, resumes and deletes the schedules that `lwfed submit --cron` created."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lwfed.cli.options import Json
from lwfed.drive.console import make_table
from lwfed.types.errors import SpecError
from pipelines.client.connection import Access, Kfp, connect
from pipelines.client.runs import all_pages, only, own_pipeline, pipeline_of
from pipelines.commands.screen import make_screen

CREATE_HINT = 'create one with lwfed submit SPEC --cron "0 3 * * 1"'
COLUMNS = ("id", "name", "cron, seconds first", "state", "created")


def schedules(
    schedule: Annotated[
        str | None,
        typer.Argument(metavar="SCHEDULE", help="Its id or the first 8 characters, or its name; default: list all."),
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Stop it from starting runs.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let it start runs again.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it, but keep its runs.")] = False,
    *,
    access: Access,
    as_json: Json = False,
) -> None:
    """List the schedules that `lwfed submit --cron` created, or pause, resume or delete one."""
    actions = [name for name, wanted in (("pause", pause), ("resume", resume), ("delete", delete)) if wanted]
    if len(actions) > 1 or (actions and schedule is None):
        raise SpecError(
            "a change needs one schedule and only one of --pause, --resume and --delete",
            remedy="write lwfed schedules SCHEDULE --pause",
        )
    kfp, screen = connect(access), make_screen(as_json)
    found = list_schedules(kfp)
    if schedule is not None:
        alike = [
            item["id"]
            for item in found
            if item["name"] == schedule or (len(schedule) >= 8 and item["id"].startswith(schedule))
        ]
        remedy = "list them with lwfed schedules" if found else CREATE_HINT
        wanted = only(alike, schedule, of="schedule", kfp=kfp, remedy=remedy)
        found = [item for item in found if item["id"] == wanted]
    if actions:
        api, (action,), (item,) = kfp.client, actions, found
        method, done = {
            "pause": (api.disable_recurring_run, "paused: it starts no more runs"),
            "resume": (api.enable_recurring_run, "on again"),
            "delete": (api.delete_recurring_run, "deleted; its runs stay"),
        }[action]
        kfp.call(method, item["id"], about=f"to {action} the schedule {item['name']}")
        screen.say(f"{item['name']} is {done}")
        screen.result({**item, "paused": action != "resume", "done": action})
    elif as_json:
        screen.result({"schedules": found})
    elif not found:
        screen.say(f"no schedules; {CREATE_HINT}")
    else:
        table = make_table()
        for name in COLUMNS:
            table.add_column(name, overflow="fold")
        for item in found:
            state = "paused" if item["paused"] else "on"
            table.add_row(item["id"][:8], item["name"], item["cron"], state, item["created"].replace("T", " ")[:16])
        screen.console.print(table)


def list_schedules(kfp: Kfp) -> list[dict[str, Any]]:
    """Reads the schedules of lwfed's pipeline, newest first.

    Returns:
        For each schedule: its id, its name, its cron expression (seconds first; may be empty), whether it is paused,
        its time of creation, and the URL of its page, if known.

    Raises:
        LwfedError: The server refuses or does not answer.
    """
    pipeline = own_pipeline(kfp)
    if pipeline is None:
        return []
    return [
        {
            "id": str(item.recurring_run_id),
            "name": str(item.display_name),
            "cron": (item.trigger and item.trigger.cron_schedule and item.trigger.cron_schedule.cron) or "",
            "paused": item.status == "DISABLED",
            "created": item.created_at.isoformat() if item.created_at else "",
            "page": kfp.page(f"recurringrun/details/{item.recurring_run_id}"),
        }
        for item in all_pages(kfp, kfp.client.list_recurring_runs, items="recurring_runs")
        if pipeline_of(item) == pipeline
    ]
