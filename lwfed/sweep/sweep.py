"""A sweep on one screen: ask the study for a trial, train its runs, report each round, tell the result."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import Trial

from lwfed.report.sweep import TrialRow
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.sweep.space import Value
from lwfed.sweep.study import Study
from lwfed.sweep.trial import Trained, train
from lwfed.types.round_records import RoundRecord

SpecOf = Callable[[Mapping[str, Value], int], RunSpec]
"""Returns the spec of a trial's values and a seed."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep does.

    Attributes:
        spec_of: Returns a run's spec.
        metric: The validation metric that decides.
        trials: Number of trials.
        seeds: Seeds of each trial's runs; its value is their mean.
        jobs: Trials at a time.
        limit_s: Seconds per run; None: no limit.
        store: The runs' store.
        folder: Receives the runs' specs and output.
        variables: Further environment variables of the runs.
    """

    spec_of: SpecOf
    metric: str
    trials: int
    seeds: Sequence[int]
    jobs: int
    limit_s: float | None
    store: Store
    folder: Path
    variables: dict[str, str]


def run_sweep(plan: SweepPlan, *, study: Study, show: Callable[[TrialRow], None]) -> None:
    """Runs trials until the study has as many as wanted.

    Args:
        plan: What to do.
        study: The study; other processes may share it.
        show: Called with each trial that has ended.

    Raises:
        KeyboardInterrupt: The sweep is interrupted; trials in work stop, and the same sweep resumes them.
    """
    stop = threading.Event()
    running: set[Future[int]] = set()
    with ThreadPoolExecutor(plan.jobs) as pool:
        try:
            while running or study.num_left(plan.trials) > 0:
                while len(running) < plan.jobs and study.num_left(plan.trials) > 0:
                    trial, values = study.ask()
                    running.add(pool.submit(_run_trial, plan, study, trial, values, stop))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    number = future.result()
                    show(next(row for row in study.rows() if row.number == number))
        finally:
            stop.set()


def _run_trial(plan: SweepPlan, study: Study, trial: Trial, values: dict[str, Value], stop: threading.Event) -> int:
    """Trains a trial's runs, one per seed, and tells the study. Returns the trial's number."""
    ended: list[Trained] = []
    for seed in plan.seeds:
        first = not ended
        run_id = str(trial.user_attrs["run"]) + ("" if len(plan.seeds) == 1 else f"-s{seed}")

        def go_on(record: RoundRecord, compared: bool = first) -> bool:
            value = record.metrics.get(plan.metric)
            if compared and value is not None:
                trial.report(value, step=record.global_round)
                return not (stop.is_set() or trial.should_prune())
            return not stop.is_set()

        spec = plan.spec_of(values, seed)
        trained = train(
            spec, run_id=run_id, store=plan.store, folder=plan.folder, go_on=go_on, stopped=stop.is_set,
            limit_s=plan.limit_s, variables=plan.variables,
        )  # fmt: skip
        ended.append(trained)
        if trained.status != "finished":
            break
    last = ended[-1]
    if stop.is_set() or last.status == "interrupted":  # the trial stays open, to be resumed
        return trial.number
    metrics = {name: statistics.fmean(item.metrics[name] for item in ended) for name in _shared(ended)}
    status, reason = last.status, last.reason
    if status == "finished" and plan.metric not in metrics:
        status, reason = "failed", f"it has no metric {plan.metric}"
    study.tell(trial, metrics.get(plan.metric), status=status, reason=reason, metrics=metrics)
    return trial.number


def _shared(ended: Sequence[Trained]) -> list[str]:
    return sorted(set.intersection(*(set(item.metrics) for item in ended)))
