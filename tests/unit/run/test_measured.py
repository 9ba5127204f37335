"""Laws of what clients measured: late joiners do not count twice what a client fetches once."""

from __future__ import annotations

import pytest

from lwfed.run.measured import clients_in, frozen_bytes, in_every_round, measured_ledger
from lwfed.types.round_records import RoundRecord

NAMES = ("bytes_up", "bytes_down", "bytes_down_frozen")


def rounds_of(*rounds: dict[str, int]) -> list[RoundRecord]:
    """RoundRecords, from the frozen bytes of each round's clients."""
    common = {"stage": 1, "digest": "", "metrics": {}}
    client = {"num_examples": 1, "steps": 1, "loss": 1.0}
    return [
        RoundRecord.of(
            {
                **common,
                "round": n,
                "global_round": n,
                "clients": {c: {**client, **dict.fromkeys(NAMES, nbytes)} for c, nbytes in clients.items()},
            }
        )
        for n, clients in enumerate(rounds, start=1)
    ]


@pytest.mark.parametrize(
    ("rounds", "been", "expected"),
    [
        ([{"a": 8, "b": 8}, {"a": 0, "b": 0}, {"a": 0, "b": 0}], "", [8, 0, 0]),  # all in each
        ([{"a": 8}, {"b": 8}, {"c": 8}, {"a": 0}], "", [8, 0, 0, 0]),  # they join one after another
        ([{"a": 8}, {"b": 8}], "", [8, 0]),  # and none comes twice
        ([{"a": 8, "b": 8}, {"a": 8, "c": 8}, {"b": 8, "d": 8}], "", [8, 8, 8]),  # without a folder
        ([{"a": 8, "b": 8}, {"a": 8, "c": 8}, {"b": 0, "d": 8}], "", [8, 4, 4]),  # one of two has a folder
        ([{"a": 8, "b": 24}, {"c": 24, "d": 8}], "ad", [8, 0]),  # b and c make up for the stage before
        ([{"b": 24}, {"c": 16}], "ad", [20, 0]),  # nobody else is there
        ([], "a", []),
    ],
)
def test_what_a_client_in_every_round_fetches(rounds: list[dict[str, int]], been: str, expected: list[int]) -> None:
    records = rounds_of(*rounds)
    found = in_every_round(records, frozen_bytes, earlier=been)
    assert found == expected
    assert clients_in(records) == {client for clients in rounds for client in clients}
    ledger = measured_ledger(records, earlier=been)
    assert ledger.get("bytes_down_frozen", 0) * len(rounds) == sum(expected)
