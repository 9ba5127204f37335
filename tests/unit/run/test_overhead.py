"""The gap between two rounds is measured from the last update to the next client at work, and work is no overhead."""

from __future__ import annotations

from typing import Any

from lwfed.run.events import read_event
from lwfed.run.overhead import Overhead
from tests.events import emit_to


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def play(*events: tuple[float, str, dict[str, Any]]) -> tuple[list[dict[str, float]], list[tuple[str, dict[str, Any]]]]:
    """Plays events at their times; `close` ends a round with its walls."""
    clock, told = Clock(), list[tuple[str, dict[str, Any]]]()
    overhead = Overhead(emit_to(lambda kind, values: told.append((kind, values))), clock=clock)
    closed = []
    for when, kind, values in events:
        clock.now = when
        if kind == "close":
            closed.append(overhead.close_round(values))
        else:
            overhead.emit(read_event(kind, {"stage": 1, "round": 1, **values} if kind == "client_done" else values))
    return closed, told


def started(client: str, step: str = "train-client") -> dict[str, Any]:
    return {"client": client, "step": step}


def test_overhead_is_the_gap_without_the_servers_work() -> None:
    closed, told = play(
        (1, "client_started", started("a")),
        (5, "client_done", {"client": "a"}),
        (6, "client_done", {"client": "b"}),
        (9, "close", {"aggregate": 1.5, "evaluate": 0.5, "round": 8}),
        (10, "client_started", started("a")),
        (11, "client_started", started("b")),
        (12, "client_done", {"client": "a"}),
        (13, "close", {}),
    )
    assert closed == [{}, {"between_rounds": 4.0, "overhead": 2.0}]
    assert [values for kind, values in told if kind == "overhead"] == [{"seconds": 2.0, "between_rounds": 4.0}]


def test_clients_that_evaluate_do_not_start_a_round() -> None:
    closed, _ = play(
        (1, "client_done", {"client": "a"}),
        (2, "close", {}),
        (3, "client_started", started("a", "evaluate-client")),
        (5, "client_started", started("a")),
        (6, "close", {}),
    )
    assert closed == [{}, {"between_rounds": 4.0, "overhead": 4.0}]


def test_a_round_that_waited_for_nobody_reports_nothing() -> None:
    closed, told = play((1, "close", {"aggregate": 1.0}), (2, "client_started", started("a")), (3, "close", {}))
    assert closed == [{}, {}]
    assert all(kind != "overhead" for kind, _ in told)
