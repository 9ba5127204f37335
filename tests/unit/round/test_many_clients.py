"""Laws of rounds with many clients: one request where it serves all, and the same bits however updates are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.plan.groups import GroupPlan
from lwfed.round import updates
from tests.bench.coordinating import Measured, measure_rounds
from tests.tiny import run_tiny


@pytest.fixture(scope="module")
def few_and_many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measured, Measured]:
    """Rounds of 4 of 8 clients, and of 12 of 24."""
    few, many = (tmp_path_factory.mktemp(name) for name in ("few", "many"))
    return measure_rounds(str(few), clients=8, cohort=4), measure_rounds(str(many), clients=24, cohort=12)


@pytest.mark.parametrize("part", ["begin", "prune"])
def test_a_round_begins_and_ends_with_as_many_requests_for_any_cohort(
    few_and_many: tuple[Measured, Measured], part: str
) -> None:
    few, many = few_and_many
    assert few.requests[part] == many.requests[part]


def test_an_update_is_read_once_by_the_coordinator_and_once_by_the_server(
    few_and_many: tuple[Measured, Measured],
) -> None:
    few, many = few_and_many
    assert many.requests["collect"] == {"read_ref": 12}
    for part in ("accept", "aggregate"):
        more = many.requests[part]["read_ref"] - few.requests[part]["read_ref"]
        assert more == {"accept": 0, "aggregate": 12 - 4}[part]


def test_small_units_are_read_whole(few_and_many: tuple[Measured, Measured]) -> None:
    few, many = few_and_many
    assert many.tensors > 3 * many.units, "otherwise this says nothing"
    more = sum(
        many.requests["aggregate"].get(kind, 0) - few.requests["aggregate"].get(kind, 0)
        for kind in ("get", "read_into", "read_parts")
    )
    assert more == (12 - 4) * many.units


@pytest.mark.parametrize(
    "overrides",
    [(), ("exchange.upload=int8",), ('federation.aggregators=[{"kind":"clipped","max_norm":0.05}]',)],
    ids=["mean", "int8", "clipped"],
)
def test_units_read_whole_and_tensor_by_tensor_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    wanted = ("federation.num_clients=3", "stages.rounds=[1,1]", *overrides)
    whole = run_tiny(tmp_path / "whole", *wanted)
    monkeypatch.setattr(updates, "SMALL_BYTES", 0)
    assert run_tiny(tmp_path / "single", *wanted).digest == whole.digest


def test_a_group_knows_its_members_and_is_dumped_without_them() -> None:
    group = GroupPlan(name="weak", clients=("client-1", "client-3"), trained=("fusion",), cut={})
    assert group.members == {"client-1", "client-3"}
    assert set(group.model_dump()) == {"name", "clients", "trained", "cut"}
    assert group == GroupPlan(name="weak", clients=("client-1", "client-3"), trained=("fusion",), cut={})
