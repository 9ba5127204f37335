"""One trial: a run in a process of its own, followed by its committed rounds and stopped early on request."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lwfed import environment
from lwfed.run import runs
from lwfed.spec.document import write_yaml
from lwfed.spec.load import to_values
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import LwfedError
from lwfed.types.round_records import RoundRecord

POLL_S = 0.5
INTERRUPTED = 130
"""Exit code of a run that was interrupted; on a terminal Ctrl-C reaches runs too."""
GRACE_S = 30.0
"""Seconds that a run has to record its early end."""


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended.

    Attributes:
        status: `finished`, `stopped early`, `failed`, or `interrupted`: it can be resumed.
        metrics: Metrics of its last evaluated round.
        reason: Why it did not finish.
    """

    status: str
    metrics: dict[str, float]
    reason: str | None = None


def train(
    spec: RunSpec,
    *,
    run_id: str,
    store: Store,
    folder: Path,
    go_on: Callable[[RoundRecord], bool],
    stopped: Callable[[], bool],
    limit_s: float | None = None,
    variables: dict[str, str] | None = None,
) -> Trained:
    """Trains a run in its own process, or resumes it.

    Args:
        spec: The experiment.
        run_id: The run.
        store: Its store.
        folder: Receives the run's spec and output, `RUN.yaml` and `RUN.log`.
        go_on: Called with each committed round, in order; False stops the run.
        stopped: Whether the sweep is interrupted; the run is stopped then, and can be resumed.
        limit_s: Seconds after which the run is stopped; None: none.
        variables: Further environment variables.
    """
    file, log = folder / f"{run_id}.yaml", folder / f"{run_id}.log"
    file.write_text(write_yaml(to_values(spec), width=120), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "lwfed", "run", str(file), "--run-id", run_id, "--json"]
    ends_at = time.monotonic() + limit_s if limit_s else None
    last: dict[str, float] = {}
    seen = 0
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment.child_environment(**environment.import_path(), **(variables or {})),
        )
        try:
            while True:
                ended = _ended(process)
                for record in _new_rounds(store, run_id, seen):
                    seen += 1
                    last = {**last, **record.metrics}
                    if not go_on(record) and not ended:
                        return Trained("stopped early", last, "its validation metric is below the median of others")
                if ended:
                    return _outcome(process, log, last)
                if stopped():
                    return Trained("interrupted", last)
                if ends_at is not None and time.monotonic() > ends_at:
                    return Trained("stopped early", last, f"{limit_s:g} s have passed")
        finally:
            _stop(process)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(POLL_S)
    return process.returncode is not None


def _new_rounds(store: Store, run_id: str, seen: int) -> list[RoundRecord]:
    """Returns the committed rounds after the first `seen`; none while the run is being prepared."""
    try:
        run = runs.find_run(store, run_id)
    except LwfedError:  # the run itself reports it
        return []
    rounds = [record for item in run.stages for record in runs.rounds_of(store, item.key)] if run else []
    return rounds[seen:]


def _outcome(process: subprocess.Popen[bytes], log: Path, last: dict[str, float]) -> Trained:
    if process.returncode == 0 and process.stdout is not None:
        return Trained("finished", json.loads(process.stdout.read().splitlines()[-1])["metrics"])
    if process.returncode == INTERRUPTED:
        return Trained("interrupted", last)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    return Trained("failed", last, f"exit code {process.returncode}: {reason.removeprefix('error: ')[:500]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a run that has not ended, so that it records its end, and waits for it."""
    if process.poll() is None:
        process.terminate()  # not SIGINT, which a job in the background of a shell ignores
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
