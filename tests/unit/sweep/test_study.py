"""A study outlives its processes: what has ended is kept, what was in work is resumed, and nothing is done twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lwfed.report.sweep import SweepResult
from lwfed.sweep.space import Axis, Choices, Range
from lwfed.sweep.study import OWNER, Study, storage_uri
from lwfed.types.errors import SpecError

GRID = (Choices("a", ("1", "2")), Choices("b", ("x", "y")))


def study(folder: Path, axes: tuple[Axis, ...] = GRID, **changes: Any) -> Study:
    settings: dict[str, Any] = {"maximise": True, "prune": True, "seed": 0, "fixed": {"metric": "m"}} | changes
    return Study("s", storage=storage_uri(folder), axes=axes, **settings)


def finish(opened: Study, value: float) -> dict[str, Any]:
    trial, values = opened.ask()
    opened.tell(trial, value, status="finished", reason=None, metrics={"m": value})
    return values


def test_a_grid_is_tried_once_over_all_processes(tmp_path: Path) -> None:
    first = study(tmp_path)
    assert first.begin_grid() == 4 and first.num_left(4) == 4
    tried = [finish(first, 0.1), finish(first, 0.4)]
    second = study(tmp_path)
    assert second.begin_grid() == 4 and second.resume(failed=False) == 0 and second.num_left(4) == 2
    tried += [finish(second, 0.3), finish(second, 0.2)]
    assert second.num_left(4) == 0 and len({tuple(values.values()) for values in tried}) == 4
    result = SweepResult("s", "m", True, ("a", "b"), tuple(second.rows()))
    assert result.best is not None and dict(result.best.values) == tried[1]
    assert [row.value for row in result.ranked] == [0.4, 0.3, 0.2, 0.1]


def test_a_trial_whose_process_died_is_taken_up_again_under_its_run(tmp_path: Path) -> None:
    opened = study(tmp_path)
    opened.begin_grid()
    trial, values = opened.ask()
    assert opened.resume(failed=False) == 0, "its process lives"
    trial.set_user_attr(OWNER, f"{trial.user_attrs[OWNER].split()[0]} 4194305 0")  # beyond any process id
    again = study(tmp_path)
    assert again.resume(failed=False) == 1
    for _ in range(3):
        finish(again, 0.0)
    resumed, same = again.ask()
    assert same == values and resumed.user_attrs["run"] == trial.user_attrs["run"] == "s-t000"
    assert [row.run_id for row in again.rows()].count("s-t000") == 1 and again.num_left(4) == 0


def test_failed_trials_are_tried_again_on_request(tmp_path: Path) -> None:
    opened = study(tmp_path)
    opened.begin_grid()
    trial, _ = opened.ask()
    opened.tell(trial, None, status="failed", reason="exit code 18: memory", metrics={})
    assert [row.reason for row in opened.rows() if row.status == "failed"] == ["exit code 18: memory"]
    assert opened.resume(failed=False) == 0 and opened.num_left(4) == 3
    assert opened.resume(failed=True) == 1 and opened.num_left(4) == 4
    assert opened.resume(failed=True) == 0


@pytest.mark.parametrize(
    "changes", [{"maximise": False}, {"fixed": {"metric": "n"}}, {"axes": (Choices("a", ("1", "3")), GRID[1])}]
)
def test_a_study_is_not_resumed_as_another(tmp_path: Path, changes: dict[str, Any]) -> None:
    study(tmp_path)
    study(tmp_path)
    with pytest.raises(SpecError, match="--study"):
        study(tmp_path, **changes)


def test_a_search_stays_within_its_ranges_and_is_seeded(tmp_path: Path) -> None:
    axes = (Range("a", 1, 4, False), Range("b", 1e-4, 1e-1, True), Choices("c", ("x", "y")))
    drawn = []
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        opened = study(tmp_path / str(n), axes)
        drawn.append([finish(opened, 0.1 * k) for k in range(8)])
    assert drawn[0] == drawn[1]
    assert all(type(v["a"]) is int and 1 <= v["a"] <= 4 and 1e-4 <= v["b"] <= 1e-1 and v["c"] in "xy" for v in drawn[0])


def test_a_trial_below_the_median_is_pruned(tmp_path: Path) -> None:
    opened = study(tmp_path, (Range("a", 0.0, 1.0, False),))
    for _ in range(4):
        trial, _ = opened.ask()
        trial.report(0.5, step=1)
        opened.tell(trial, 0.5, status="finished", reason=None, metrics={})
    worse, _ = opened.ask()
    worse.report(0.4, step=1)
    better, _ = opened.ask()
    better.report(0.6, step=1)
    assert worse.should_prune() and not better.should_prune()
    opened.tell(worse, None, status="stopped early", reason="below", metrics={})
    row = next(row for row in opened.rows() if row.number == worse.number)
    assert (row.status, row.value) == ("stopped early", 0.4)


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--storage"):
        study(tmp_path / "missing" / "folder")
