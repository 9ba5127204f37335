"""Laws of numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lwfed import formats

WRITERS = [
    formats.bytes_text, formats.flops_text, formats.amount_text, formats.count_text, formats.number_text,
    formats.percent_text, formats.factor_text, formats.seconds_text,
]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (2_031_234, "2.03 MB"),
        (190_700_000, "191 MB"),
        (999_700, "1.00 MB"),
        (5.04e12, "5.04 TB"),
        (1e19, "10,000 PB"),
    ],
)
def test_bytes_have_three_digits_and_powers_of_a_thousand(count: float, written: str) -> None:
    assert formats.bytes_text(count) == written
    assert formats.flops_text(count) == written.replace("B", "FLOP")
    assert formats.amount_text(count) == written.replace("B", "").strip()


def test_what_is_written_is_what_was_meant_and_grows_with_it() -> None:
    factors = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}
    last = 0.0
    for exponent in range(120):
        count = 1.3**exponent
        number, unit = formats.bytes_text(count).split()
        value = float(number.replace(",", "")) * factors[unit]
        assert value >= last and value == pytest.approx(count, rel=0.4 if count < 100 else 0.006)
        last = value


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (42, "42 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"),
     (7380, "2 h 3 min")],
)  # fmt: skip
def test_times_have_two_units_at_most(seconds: float, written: str) -> None:
    assert formats.seconds_text(seconds) == written


@pytest.mark.parametrize(
    ("write", "value", "written"),
    [
        (formats.number_text, 1, "1.00"), (formats.number_text, 0, "0"), (formats.number_text, -0.01234, "-0.0123"),
        (formats.number_text, 123.4, "123"), (formats.number_text, 12345.6, "12,346"),
        (formats.number_text, 1.2e-5, "1.2e-05"), (formats.count_text, 1234567, "1,234,567"),
        (formats.percent_text, 0.1234, "12.3 %"), (formats.percent_text, 1, "100.0 %"),
        (formats.factor_text, 2.345, "2.35x"), (formats.factor_text, 1234.5, "1,234x"),
    ],
)  # fmt: skip
def test_numbers_without_a_unit(write: Callable[[Any], str], value: float, written: str) -> None:
    assert write(value) == written


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_missing_is_written_so(write: Callable[[Any], str]) -> None:
    assert {write(value) for value in (None, math.nan, math.inf, "a", True)} == {formats.MISSING}


@pytest.mark.parametrize(
    ("text", "short"),
    [("2.00 MB", "2 MB"), ("2.50 MB", "2.5 MB"), ("100 MB", "100 MB"), ("20.0 %", "20 %"), ("1.00", "1"),
     ("1.0e-05", "1.0e-05")],
)  # fmt: skip
def test_axes_leave_zeros_at_the_end_out(text: str, short: str) -> None:
    assert formats.trimmed(text) == short


def test_metrics_are_named_and_ordered_as_people_count() -> None:
    assert formats.natural_order(["test/t2i/R@10", "test/t2i/R@1", "test/t2i/R@5", "test/t2i/R@50"]) == [
        f"test/t2i/R@{k}" for k in (1, 5, 10, 50)
    ]
    assert formats.metric_title("test/t2i/R@1") == "text to image R@1"
    titles = {
        "test/t2i/R@1": "t2i R@1",
        "train/loss": "train loss",
        "test/loss": "test loss",
        "federated/f1": "federated f1",
    }
    assert {metric: formats.metric_title(metric, short=True) for metric in titles} == titles
    assert formats.metric_text("test/loss", 1.23456) == "test loss 1.235"
    assert formats.metric_text("test/t2i/R@1", 0.1234) == "t2i R@1 12.3 %"
    assert formats.score_text("test/accuracy", None) == formats.MISSING
