"""Laws of who sends what: weights per unit, and the gaps that a round may have."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.round.senders import Counted, kept_units, refuse_gaps, weights_of
from lwfed.types.errors import QuorumError
from tests.tiny import DEPTHS, tiny_spec

WEAK = "federation.groups=[{name: weak, clients: [client-002], max_blocks: 1}]"


def plan_of(*overrides: str, lacks: dict[str, tuple[str, ...]] | None = None) -> StagePlan:
    """The last stage of progressive training: two blocks of each modality."""
    spec = tiny_spec("runs", "strategy=progressive", "federation.num_clients=4", *overrides)
    return plan_stages(spec, depths=DEPTHS, lacks=lacks or {})[-1]


def counted(*sizes: int, **examples: dict[str, int]) -> dict[str, Counted]:
    clients = [f"client-{n:03d}" for n in range(len(sizes))]
    return {
        client: Counted(size, examples.get(client.replace("-", "_"), {}))
        for client, size in zip(clients, sizes, strict=True)
    }


@pytest.mark.parametrize("sizes", [[7], [6, 4], [5, 3, 2], [12, 18, 30, 6], [10**6, 10**6 + 1]])
def test_alike_clients_have_their_examples_without_the_common_factor_as_weights(sizes: list[int]) -> None:
    plan, factor = plan_of(), math.gcd(*sizes)
    found = weights_of(plan, counted(*sizes))
    assert [one.weight for one in found.values()] == [size // factor for size in sizes]
    assert all(one.by_unit == dict.fromkeys(plan.trained, one.weight) for one in found.values())
    assert kept_units(plan, found) == ()


def test_a_unit_counts_the_clients_that_train_it() -> None:
    plan = plan_of(WEAK)
    found = weights_of(plan, counted(6, 4, 2))
    assert set(plan.trained) - set(found["client-002"].by_unit) == {
        "image.stem", "image.blocks.0", "text.stem", "text.blocks.0"
    }  # fmt: skip
    assert found["client-000"].by_unit["image.blocks.0"] == 3 and found["client-002"].by_unit["image.blocks.1"] == 1


def test_a_unit_counts_the_examples_that_have_its_modality() -> None:
    found = weights_of(plan_of(), counted(6, 4, client_000={"text": 3}))
    ratios = {unit: Fraction(found["client-000"].by_unit[unit], found["client-001"].by_unit[unit]) for unit in
              ("image.blocks.0", "text.blocks.0", "text.projection")}  # fmt: skip
    assert list(ratios.values()) == [Fraction(6, 4), Fraction(3, 4), Fraction(3, 4)]


@pytest.mark.parametrize("reached", [0, 1])
def test_a_modality_that_fewer_than_two_examples_have_was_not_trained(reached: int) -> None:
    found = weights_of(plan_of(), counted(6, 4, client_000={"text": reached}))
    assert not any(unit.startswith("text.") for unit in found["client-000"].by_unit)
    assert found["client-000"].weight == 3, "its images still count"


def test_a_client_without_a_modality_sends_nothing_of_it() -> None:
    plan = plan_of(lacks={"client-001": ("text",)})
    found = weights_of(plan, counted(6, 4, client_001={"text": 0}))
    assert {unit.partition(".")[0] for unit in found["client-001"].by_unit} == {"image"}
    assert plan.work_of("client-001").cut == {"image": 0}


def test_sampled_by_size_the_given_weights_count() -> None:
    found = weights_of(plan_of(), {"client-000": Counted(6, {}, weight=10), "client-001": Counted(4, {}, weight=15)})
    assert [one.weight for one in found.values()] == [2, 3]


def test_a_client_without_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="client-001 reports no examples"):
        weights_of(plan_of(), counted(6, 0))


def gaps(plan: StagePlan, *sizes: int, **examples: Any) -> None:
    refuse_gaps(plan, counted(*sizes, **examples), server_round=3, failed={}, resume="resume it")


def test_a_round_without_a_required_client_fails() -> None:
    plan = plan_of("federation.require=[client-001..client-002]")
    gaps(plan, 2, 2, 2)
    with pytest.raises(QuorumError, match=r"round 3 of stage 2 has no update of client-002, which"):
        gaps(plan, 2, 2)


def test_a_unit_that_nobody_sent_fails_the_round_or_stays() -> None:
    nobody = {"client_000": {"text": 0}, "client_001": {"text": 1}}
    with pytest.raises(
        QuorumError, match=r"has 0 update\(s\) of text.stem and 3 other unit\(s\) and needs 1"
    ) as caught:
        gaps(plan_of(), 6, 4, **nobody)
    assert "federation.unsent=keep" in str(caught.value.remedy)
    lenient = plan_of("federation.unsent=keep")
    gaps(lenient, 6, 4, **nobody)
    kept = kept_units(lenient, weights_of(lenient, counted(6, 4, **nobody)))
    assert kept == tuple(unit for unit in lenient.trained if unit.startswith("text."))


def test_a_modality_may_have_a_quorum_of_its_own() -> None:
    plan = plan_of("federation.modality_quorum={text: 2}", "federation.unsent=keep")
    weights = weights_of(plan, counted(6, 4, client_001={"text": 0}))
    assert set(kept_units(plan, weights)) == {unit for unit in plan.trained if unit.startswith("text.")}
    assert kept_units(plan, weights_of(plan, counted(6, 4))) == ()


def test_a_round_in_which_nothing_changes_fails_even_so() -> None:
    plan = plan_of("federation.unit_quorum=3", "federation.unsent=keep")
    with pytest.raises(QuorumError, match="no unit that enough clients sent"):
        gaps(plan, 6, 4)
