"""A sweep's study: Optuna's record of its trials in a database, from which a sweep resumes and processes share work.

Optuna (Akiba et al. 2019, arXiv 1907.10902) chooses a search's values by a tree-structured Parzen estimator (Bergstra
et al. 2011) and stops trials below the median of earlier ones at the same round.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from lwfed.report.sweep import TrialRow
from lwfed.sweep.space import Axis, Choices, Value, grid_of
from lwfed.types.errors import SpecError

STARTUP_TRIALS = 4
"""Finished trials before one can be pruned."""
SWEEP = "lwfed.sweep"
"""The study's attribute with what must not change when it resumes."""
OWNER, REASON, METRICS, RUN, RESUMES = "owner", "reason", "metrics", "run", "resumes"
"""Attributes of a trial: its process, why it ended, its last metrics, its run, and the trial that it resumes."""
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class Study:
    """A study.

    Args:
        name: Its name.
        storage: The database's URL.
        axes: What varies.
        maximise: Whether larger values are better.
        prune: Whether trials below the median are stopped early.
        seed: Seed of the search.
        fixed: What must be equal for the study to resume, such as the spec.

    Raises:
        SpecError: The study exists with another space, spec or metric; or the database cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        storage: str,
        axes: Sequence[Axis],
        maximise: bool,
        prune: bool,
        seed: int,
        fixed: Mapping[str, Any],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self._axes = axes
        self._distributions = {axis.key: _distribution(axis) for axis in axes}
        try:
            self._study = optuna.create_study(
                study_name=name,
                storage=storage,
                sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, 2 * len(axes) + 2)),
                pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS) if prune else optuna.pruners.NopPruner(),
                direction="maximize" if maximise else "minimize",
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's and the database driver's own types
            reason = " ".join(str(error).split())[:200]
            raise SpecError(
                f"the study's database {storage} cannot be used: {reason}",
                remedy="name another with --storage sqlite:///FILE",
            ) from None
        self._refuse_another({**fixed, "space": [str(axis) for axis in axes], "maximise": maximise})

    def _refuse_another(self, sweep: Mapping[str, Any]) -> None:
        known = self._study.user_attrs.get(SWEEP)
        if known is None:
            self._study.set_user_attr(SWEEP, dict(sweep))
            return
        differ = [key for key in sweep if known.get(key) != json.loads(json.dumps(sweep[key]))]
        if differ:
            raise SpecError(
                f"the study {self.name} exists with another {', '.join(differ)}",
                remedy="name another with --study, or repeat the command that began it",
            )

    def begin_grid(self) -> int:
        """Adds each combination of the choices once, and returns their number. All axes must be choices."""
        count = 0
        for values in grid_of([axis for axis in self._axes if isinstance(axis, Choices)]):
            self._study.enqueue_trial(dict(values), skip_if_exists=True)
            count += 1
        return count

    def resume(self, *, failed: bool) -> int:
        """Puts trials whose process has died on this machine back in the queue. Returns their number.

        Args:
            failed: Whether to put failed ones back too.
        """
        again = [trial for trial in self._trials(TrialState.RUNNING) if not _alive(trial.user_attrs.get(OWNER, ""))]
        for trial in again:
            self._study.tell(trial.number, state=TrialState.FAIL)
        if failed:
            again += [trial for trial in self._trials(TrialState.FAIL) if trial.number not in self._resumed()]
        for trial in again:
            self._study.enqueue_trial(
                dict(trial.params), user_attrs={RUN: trial.user_attrs.get(RUN), RESUMES: trial.number}
            )
        return len(again)

    def _resumed(self) -> set[int]:
        """Returns the numbers of trials that later ones resume."""
        return {trial.user_attrs[RESUMES] for trial in self._trials() if RESUMES in trial.user_attrs}

    def ask(self) -> tuple[Trial, dict[str, Value]]:
        """Begins a trial: the next in the queue, else one that the search chooses. Returns its values too."""
        trial = self._study.ask(self._distributions)
        me = psutil.Process()
        trial.set_user_attr(OWNER, f"{socket.gethostname()} {me.pid} {me.create_time():.0f}")
        if not trial.user_attrs.get(RUN):
            trial.set_user_attr(RUN, f"{self.name}-t{trial.number:03d}")
        return trial, {axis.key: trial.params[axis.key] for axis in self._axes}

    def tell(self, trial: Trial, value: float | None, *, status: str, reason: str | None, metrics: Any) -> None:
        """Records a trial's end; its status is one of `finished`, `stopped early` and `failed`."""
        if reason:
            trial.set_user_attr(REASON, reason)
        trial.set_user_attr(METRICS, metrics)
        state = next(state for state, name in STATES.items() if name == status)
        self._study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)

    def num_left(self, wanted: int) -> int:
        """Returns how many of the wanted number of trials have not begun."""
        return wanted - sum(row.status != "waiting" for row in self.rows())

    def rows(self) -> list[TrialRow]:
        """Returns all trials, in order, for tables and figures; a trial that another resumes is left out."""
        resumed = self._resumed()
        return [
            TrialRow(
                number=trial.number,
                status=STATES[trial.state],
                values=dict(trial.params) or dict(trial.system_attrs.get("fixed_params", {})),
                value=trial.value if trial.value is not None else _last(trial),
                run_id=str(trial.user_attrs.get(RUN, "")),
                metrics=trial.user_attrs.get(METRICS) or {},
                reason=trial.user_attrs.get(REASON),
                seconds=trial.duration.total_seconds() if trial.duration else None,
            )
            for trial in self._trials()
            if trial.number not in resumed
        ]

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)


def storage_uri(folder: Path) -> str:
    """Returns the database of a sweep that names none."""
    return f"sqlite:///{folder.absolute() / 'sweep.db'}"


def _distribution(axis: Axis) -> BaseDistribution:
    if isinstance(axis, Choices):
        return CategoricalDistribution(axis.values)
    if isinstance(axis.low, int) and isinstance(axis.high, int):
        return IntDistribution(axis.low, axis.high, log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _alive(owner: str) -> bool:
    """Whether the process that began a trial lives; one on another machine is taken to."""
    host, _, rest = owner.partition(" ")
    pid, _, created = rest.partition(" ")
    if host != socket.gethostname() or not pid.isdecimal():
        return bool(owner) and host != socket.gethostname()
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == created
    except psutil.Error:
        return False


def _last(trial: FrozenTrial) -> float | None:
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None
