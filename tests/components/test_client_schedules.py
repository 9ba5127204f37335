"""`lwfed schedules`, over HTTP: made, listed and changed as was recorded."""

from __future__ import annotations

from tests.components.conftest import Command
from tests.components.kfp_server import State


def test_schedules_are_listed_with_what_they_do(lwfed: Command, kfp: State) -> None:
    schedule = kfp.add_schedule()
    ended = lwfed("schedules")
    assert ended.code == 0, ended.err
    assert schedule[:8] in ended.out and "paused" in ended.out and "0 */2 * * * *" in ended.out
    (told,) = lwfed("schedules", schedule[:8], "--json").json["schedules"]
    assert (told["id"], told["paused"], told["cron"]) == (schedule, True, "0 */2 * * * *")


def test_without_schedules_it_says_how_to_make_one(lwfed: Command, kfp: State) -> None:
    ended = lwfed("schedules")
    assert ended.code == 0 and "--cron" in ended.out
    ended = lwfed("schedules", "nothing", "--pause")
    assert ended.code == 19 and "nothing" in ended.error


def test_a_schedule_is_paused_resumed_and_deleted(lwfed: Command, kfp: State, spec: str) -> None:
    schedule = lwfed("submit", spec, "--cron", "0 3 * * 1", "--name", "weekly", "--json").json["recurring_run_id"]
    for action, paused in (("pause", True), ("resume", False)):
        ended = lwfed("schedules", "weekly", f"--{action}", "--json")
        assert ended.code == 0, ended.err
        assert ended.json["paused"] is paused and ended.json["done"] == action
        (told,) = lwfed("schedules", "weekly", "--json").json["schedules"]
        assert told["paused"] is paused
    assert f"POST /apis/v2beta1/recurringruns/{schedule}:disable" in kfp.asked
    assert lwfed("schedules", schedule[:8], "--delete").code == 0
    assert not kfp.schedules and lwfed("schedules", "weekly", "--pause").code == 19


def test_what_to_do_with_which_schedule_has_to_be_clear(lwfed: Command, kfp: State) -> None:
    for wrong in (["--pause"], ["weekly", "--pause", "--delete"]):
        assert lwfed("schedules", *wrong).code == 10
    assert not kfp.asked
