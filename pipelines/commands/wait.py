"""Waits for a started run: shows progress for people, prints one JSON object for programs, and ends as the run does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lwfed.formats import metric_text, natural_order, seconds_text
from lwfed.store import paths
from lwfed.types.errors import LwfedError
from pipelines.client.cluster import waiting_reasons
from pipelines.client.pace import Pace
from pipelines.client.runs import KnownRun, wait_until
from pipelines.commands.screen import Screen, error_values
from pipelines.follow.display import TaskDisplay, row_of
from pipelines.follow.follow import Outcome, follow

STORE_PATIENCE_S = 5.0
"""Seconds of retries for a store, since many stores are only reachable from pods."""


def report_and_wait(
    run: KnownRun,
    *,
    line: str,
    screen: Screen,
    wait: bool,
    pace: Pace,
    values: Mapping[str, Any] | None = None,
    again: bool = False,
) -> None:
    """Reports that a run has started, and ends the command: at once, or when the run ends and with its outcome.

    Args:
        run: The run.
        line: What has started, for people.
        screen: The command's output.
        wait: Whether to follow it to its end.
        pace: How often to poll, and how long to wait.
        values: Further values, for programs.
        again: Whether it had ended before and was started again, so that its earlier end does not count.

    Raises:
        LwfedError: The run's own error, or an error of following it.
    """
    url = run.kfp.page(f"runs/details/{run.id}")
    screen.say(line)
    screen.say(url or f"{run.page} (set KF_PIPELINES_UI_ENDPOINT to see its URL here)")
    known: dict[str, Any] = {"run_id": run.name, "kfp_run_id": run.id, "url": url, **(values or {})}
    if not wait:
        screen.say(f"lwfed logs {run.id} --follow")
        screen.result(known)
        return
    began = time.monotonic()
    outcome: Outcome | None = None
    try:
        if again:
            wait_until(run, over=False, seconds=10 * pace.first_poll_s, poll_s=pace.first_poll_s / 4)
        with TaskDisplay(screen.console) as display:
            outcome = follow(run, watcher=display, pace=pace, waiting=waiting_reasons)
        error = outcome.error
    except LwfedError as stopped:
        error = stopped
    seconds = round(time.monotonic() - began, 1)
    known |= {"wall_s": seconds, "state": outcome.run.state if outcome else None}
    known |= {"tasks": [row_of(state) for state in outcome.states] if outcome else [], "error": error_values(error)}
    if error is None:
        result = _result(run)
        known |= result
        for closing in _closing_lines(run, result, seconds=seconds):
            screen.say(closing)
    screen.result(known)
    if error is not None:
        raise error


def _result(run: KnownRun) -> dict[str, Any]:
    """Reads a run's result from its store; empty if the store is not reachable."""
    if run.store is None or run.name is None:
        return {}
    from lwfed.store.s3.store import S3Store  # loads botocore

    try:
        store = S3Store(run.store, patience_s=STORE_PATIENCE_S)  # pods share no other kind of store
        summary = store.read_ref(paths.summary(run.name))
    except (LwfedError, OSError):
        return {}
    return {} if summary is None else {"digest": summary["digest"], "metrics": summary["metrics"]}


def _closing_lines(run: KnownRun, result: Mapping[str, Any], *, seconds: float) -> list[str]:
    if not result:
        return [f"{run.title} succeeded after {seconds_text(seconds)}; its digest is in {run.store}"]
    metrics = result["metrics"]
    shown = natural_order(name for name in metrics if not name.startswith("train/"))
    return [
        "  ".join(f"{metric_text(name, metrics[name])}" for name in shown),
        f"    time  {seconds_text(seconds)}",
        f"  digest  {result['digest']}",
    ]
