"""What a sweep varies: words are read as they are written, and what is wrong is named before any work."""

from __future__ import annotations

import pytest

from lwfed.sweep.space import (
    Choices,
    Range,
    grid_of,
    overrides_of,
    parse_choices,
    parse_search,
    probes_of,
    refuse_repeated,
)
from lwfed.types.errors import SpecError


def test_values_keep_their_brackets() -> None:
    axis = parse_choices("stages.rounds=[2,2],[1, 3]")
    assert axis == Choices("stages.rounds", ("[2,2]", "[1, 3]"))
    assert parse_choices("strategy=layerwise, progressive").values == ("layerwise", "progressive")


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("a=1..8", Range("a", 1, 8, False)),
        ("a=1..8:log", Range("a", 1, 8, True)),
        ("a=1e-4..1:log", Range("a", 1e-4, 1.0, True)),
        ("a=-1..0.5", Range("a", -1.0, 0.5, False)),
        ("a=x,y", Choices("a", ("x", "y"))),
    ],
)
def test_ranges(text: str, axis: Choices | Range) -> None:
    assert parse_search(text) == axis and type(axis.ends[0]) is type(parse_search(text).ends[0])
    assert parse_search(str(axis)) == axis, "its text is read as the same"


@pytest.mark.parametrize(
    "text", ["a", "a=", "=1", "a=2..1", "a=1..1", "a=0..1:log", "a=x..y", "a=1..inf", "a=1,1", "a=,"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_search(text)
    assert caught.value.exit_code == 10


def test_a_grid_has_every_combination_once() -> None:
    axes = [Choices("a", ("1", "2")), Choices("b", ("x", "y", "z"))]
    combinations = [tuple(values.values()) for values in grid_of(axes)]
    assert len(set(combinations)) == len(combinations) == 6 and combinations[1] == ("1", "y")
    assert [overrides_of(values) for values in probes_of([Range("c", 1, 2, False)])] == [["c=1"], ["c=2"]]


@pytest.mark.parametrize("axes", [[], [Choices("a", ("1",)), Range("a", 1, 2, False)]])
def test_nothing_and_twice_the_same_are_refused(axes: list[Choices | Range]) -> None:
    with pytest.raises(SpecError):
        refuse_repeated(axes)
