"""Laws of gates: when a stage ends, and as which round."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lwfed.plan.gates import EFFECTIVE_MOVEMENT, Progress, progress, rounds_read
from lwfed.plan.stages import ImprovementGate, MovementGate, StagePlan, plan_stages
from lwfed.spec.load import build_spec
from lwfed.types.errors import SpecError
from tests.tiny import DEPTHS, VALUES

SUPERVISED = "model.objective={kind: supervised}"


def plan_of(*overrides: str, rounds: int = 9) -> StagePlan:
    """The plan of the first stage."""
    return plan_stages(build_spec(VALUES, overrides=[f"stages.rounds=[{rounds},1]", *overrides]), depths=DEPTHS)[0]


def walk(plan: StagePlan, values: list[float | None]) -> Progress:
    """Where a stage stands at its end, if its rounds have these values."""
    assert plan.gate is not None
    name = plan.gate.metric if isinstance(plan.gate, ImprovementGate) else EFFECTIVE_MOVEMENT
    metrics = [{} if value is None else {name: value} for value in values]
    found = [progress(plan, metrics[:count]) for count in range(len(metrics) + 1)]
    assert [one.over for one in found[:-1]] == [False] * len(metrics), "not before"
    return found[-1]


@pytest.mark.parametrize(
    ("gate", "values", "expected"),
    [
        ("patience: 2", [0.1, 0.3, 0.2, 0.3], (True, 2)),
        ("patience: 2, restore: last", [0.1, 0.3, 0.2, 0.3], (True, 4)),
        ("patience: 2", [0.1, 0.3, 0.2, 0.4], (False, 4)),
        ("patience: 1", [0.1, 0.1], (True, 1)),
        ("patience: 2, min_delta: 0.1", [0.1, 0.15, 0.19], (True, 1)),
        ("patience: 2, min_delta: 0.1", [0.1, 0.15, 0.25], (False, 3)),
        ("patience: 2, metric: validation/loss", [3.0, 2.0, 2.5, 2.0], (True, 2)),
        ("patience: 2", [0.1, math.nan, math.nan], (True, 1)),
        ("patience: 2", [math.nan, math.nan], (True, 2)),
        ("patience: 3", [0.1, *(0.1 + n / 100 for n in range(1, 9))], (True, 9)),
        ("patience: 8", [0.5, *[0.1] * 8], (True, 1)),
    ],
)
def test_a_stage_ends_when_its_metric_has_not_improved(
    gate: str, values: list[float | None], expected: tuple[bool, int]
) -> None:
    assert walk(plan_of(f"stages.gate={{{gate}}}"), values) == Progress(*expected)


def test_a_round_that_is_not_evaluated_ends_no_stage() -> None:
    plan = plan_of("stages.gate={patience: 2}", "evaluation.every=2")
    assert walk(plan, [None, 0.2, None, 0.1]) == Progress(True, 2)
    assert walk(plan, [None, 0.2, None]) == Progress(False, 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None, None, 0.9, 0.5, 0.49], (True, 5)),
        ([None, None, 0.1], (True, 3)),
        ([None, None, 0.5], (False, 3)),
        ([None, None, math.nan, 0.6], (False, 4)),
        ([None, None, *[0.9] * 7], (True, 9)),
    ],
)
def test_a_stage_ends_when_its_movement_is_below_the_threshold(
    values: list[float | None], expected: tuple[bool, int]
) -> None:
    plan = plan_of("stages.gate={kind: movement, threshold: 0.5, window: 3}")
    assert walk(plan, values) == Progress(*expected)
    assert rounds_read(plan) == 3


@pytest.mark.parametrize(
    ("gate", "kind"), [("{patience: 2}", ImprovementGate), ("{kind: movement, window: 4}", MovementGate)]
)
def test_a_gate_is_read_from_a_stored_plan_as_it_was(gate: str, kind: type) -> None:
    plan = plan_of(f"stages.gate={gate}")
    assert type(plan.gate) is kind and StagePlan.model_validate(plan.model_dump(mode="json")) == plan


def test_plans_of_the_first_kind_do_not_name_it() -> None:
    """They are as they were when it was the only one, and so are their keys."""
    dumped = plan_of("stages.gate={kind: improvement, patience: 2}").model_dump(mode="json")["gate"]
    metric = "validation/t2i/R@1"
    assert dumped == {"metric": metric, "patience": 2, "min_delta": 0.0, "restore": "best"}


def test_end_to_end_has_all_rounds_in_one_stage() -> None:
    build_spec(VALUES, overrides=["stages.gate={kind: movement, window: 4}", "strategy=end_to_end"])


def test_without_a_gate_the_last_round_is_the_result() -> None:
    plan = plan_of(rounds=2)
    assert [progress(plan, [{}] * n) for n in range(3)] == [Progress(n == 2, n) for n in range(3)]
    assert "gate" not in plan.model_dump(mode="json"), "and its key is what it was"


@pytest.mark.parametrize(("overrides", "metric"), [((), "validation/t2i/R@1"), ((SUPERVISED,), "validation/accuracy")])
def test_by_default_it_watches_the_headline(overrides: tuple[str, ...], metric: str) -> None:
    gate = plan_of("stages.gate={}", *overrides).gate
    assert isinstance(gate, ImprovementGate) and gate.metric == metric and gate.patience == 3


def test_a_stage_without_rounds_has_no_gate() -> None:
    assert plan_of("stages.gate={}", rounds=0).gate is None


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["stages.gate={metric: test/loss}"], "stages.gate.metric"),
        (["stages.gate={metric: validation/accuracy}"], "stages.gate.metric"),
        (["stages.gate={metric: ''}"], "stages.gate.metric"),
        (["stages.gate={patience: 0}"], "patience"),
        (["stages.gate={min_delta: -1}"], "min_delta"),
        (["stages.gate={min_delta: .inf}"], "min_delta"),
        (["stages.gate={restore: first}"], "restore"),
        (["stages.gate={patience: 2}", "evaluation.every=3"], "stages.gate.patience"),
        (["stages.window=0"], "window"),
        (["stages.gate={kind: movement, threshold: 0, window: 2}"], "stages.gate.threshold"),
        (["stages.gate={kind: movement, threshold: 1, window: 2}"], "stages.gate.threshold"),
        (["stages.gate={kind: movement, threshold: -0.1, window: 2}"], "stages.gate.threshold"),
        (["stages.gate={kind: movement, window: 1}"], "stages.gate.window"),
        (["stages.gate={kind: movement, window: 3}"], "stages.gate.window"),
        (["stages.gate={kind: movement, window: 2, patience: 3}"], "one gate"),
        (["stages.gate={patience: 3, threshold: 0.5}"], "one gate"),
        (["stages.gate=[{}, {kind: movement}]"], "one gate"),
        (["stages.gate={kind: foo}"], "stages.gate"),
        (["stages.gate={kind: movement, windw: 2}"], "stages.gate.windw"),
    ],
)
def test_nonsense_is_refused_by_name(overrides: list[str], named: Any) -> None:
    with pytest.raises(SpecError, match=named):
        build_spec(VALUES, overrides=overrides)
