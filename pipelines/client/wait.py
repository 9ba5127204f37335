"""A run on the cluster is waited for: with progress for people, one JSON object for programs, and its own outcome."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from lwfed.drive.console import print_json
from lwfed.formats import metric_text, natural_order, seconds_text
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.types.errors import LwfedError, exit_name
from pipelines.client.cluster import waiting_in
from pipelines.client.kubeflow import Kfp
from pipelines.client.runs import get_run, is_over
from pipelines.follow.display import TaskDisplay, row_of
from pipelines.follow.follow import Outcome, Pace, follow

STORE_PATIENCE_S = 5.0
"""Seconds for a store: many are within reach of pods alone."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A run that may be waited for.

    Attributes:
        run_id: Kubeflow Pipelines' id of it.
        name: lwfed's; None where it cannot be known.
        namespace: Where its pods are.
        store: The store's URI.
        told: What else is known of it already, for programs.
    """

    run_id: str
    name: str | None
    namespace: str
    store: str | None
    told: Mapping[str, Any] = field(default_factory=dict)


def settle(
    kfp: Kfp,
    run: Awaited,
    *,
    line: str,
    console: Console,
    as_json: bool,
    wait: bool,
    pace: Pace | None = None,
    again: bool = False,
) -> None:
    """Tells of a run that was started, and ends the command: at once, or when and as the run ends.

    Args:
        kfp: The server.
        run: The run.
        line: Says for people what has been started.
        console: For people.
        as_json: Print one JSON object as the last line.
        wait: Follow it to its end.
        pace: How often to look, and how long to wait; None: as is usual.
        again: It had ended before and is started anew: what it was then is no end.

    Raises:
        LwfedError: The run's own error, or that of following it.
    """
    url = kfp.page(f"runs/details/{run.run_id}")
    for words in (line, url or f"{kfp.run_page(run.run_id)} (set KF_PIPELINES_UI_ENDPOINT to have its address here)"):
        console.print(words, highlight=False, markup=False, soft_wrap=True)
    told: dict[str, Any] = {"run_id": run.name, "kfp_run_id": run.run_id, "url": url, **run.told}
    if not wait:
        console.print(f"lwfed logs {run.run_id} --follow", highlight=False, soft_wrap=True)
        if as_json:
            print_json(told)
        return
    began, pace = time.monotonic(), pace or Pace()
    error: LwfedError | None = None
    outcome: Outcome | None = None
    try:
        if again:
            _until_begun(kfp, run.run_id, pace=pace)
        with TaskDisplay(console) as display:
            outcome = follow(
                kfp, run.run_id, watcher=display, pace=pace, waiting=waiting_in(run.namespace), namespace=run.namespace
            )
        error = outcome.error
    except LwfedError as stopped:
        error = stopped
    told["wall_s"] = round(time.monotonic() - began, 1)
    told["state"] = outcome.run.state if outcome else None
    told["tasks"] = [row_of(state) for state in outcome.states] if outcome else []
    told["error"] = error_values(error)
    if error is None:
        result = _result(run)
        told |= result
        for line in _closing_lines(run, result, seconds=told["wall_s"]):
            console.print(line, highlight=False, soft_wrap=True)
    if as_json:
        print_json(told)
    if error is not None:
        raise error


def error_values(error: LwfedError | None) -> dict[str, Any] | None:
    """Gives an error as plain values."""
    if error is None:
        return None
    return {
        "exit_code": error.exit_code,
        "name": exit_name(error.exit_code),
        "problem": error.problem,
        "remedy": error.remedy,
    }


def _until_begun(kfp: Kfp, run_id: str, *, pace: Pace) -> None:
    """Waits until a run that is retried no longer says that it is over."""
    ends_at = time.monotonic() + 10 * pace.first_poll_s
    while is_over(get_run(kfp, run_id)) and time.monotonic() < ends_at:
        time.sleep(pace.first_poll_s / 4)


def _result(run: Awaited) -> dict[str, Any]:
    """Reads what came of a run from its store; nothing where that is out of reach."""
    if run.store is None or run.name is None:
        return {}
    try:
        summary = _open(run.store).read_ref(paths.summary(run.name))
    except (LwfedError, OSError):
        return {}
    return {} if summary is None else {"digest": summary["digest"], "metrics": summary["metrics"]}


def _open(uri: str) -> Store:
    if not uri.startswith("s3://"):
        return open_store(uri)
    from lwfed.store.s3.store import S3Store

    return S3Store(uri, patience_s=STORE_PATIENCE_S)


def _closing_lines(run: Awaited, result: Mapping[str, Any], *, seconds: float) -> list[str]:
    if not result:
        return [f"{run.name or run.run_id} succeeded after {seconds_text(seconds)}; its digest is in {run.store}"]
    metrics = result["metrics"]
    shown = natural_order(name for name in metrics if not name.startswith("train/"))
    return [
        "  ".join(metric_text(name, metrics[name]) for name in shown),
        f"    time  {seconds_text(seconds)}",
        f"  digest  {result['digest']}",
    ]
