"""Laws of sampling a cohort."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest

from lwfed.plan.cohort import by_size, client_ids, counts_of, sample_round, uniformly, weights_by_size
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.spec.load import build_spec
from lwfed.types.errors import QuorumError, SpecError
from lwfed.types.seeds import derive
from tests.tiny import DEPTHS, VALUES

CLIENTS = client_ids(20)
SIZES = {client: 1 + 3 * n for n, client in enumerate(CLIENTS)}
LARGE = {**SIZES, "client-003": 900, "client-007": 150}
"""Two clients have a share of the draws above 1, the second only once the first is drawn."""


def plan_of(seed: int = 0, **federation: object) -> StagePlan:
    """The plan of the first stage of a run of 20 clients."""
    values = {**VALUES, "seed": seed, "federation": {"num_clients": 20, "min_fit_clients": 1, **federation}}
    return plan_stages(build_spec(values), depths=DEPTHS)[0]


def test_ids_sort_as_they_count() -> None:
    for count in (1, 10, 1000, 1001):
        ids = client_ids(count)
        assert len(ids) == len(set(ids)) == count and list(ids) == sorted(ids)
    assert client_ids(2) == ("client-000", "client-001") and client_ids(1001)[-1] == "client-1000"


@pytest.mark.parametrize(
    ("fraction", "fewest", "size"),
    [(1.0, 1, 20), (0.5, 2, 10), (0.5, 15, 15), (0.01, 1, 1), (0.01, 2, 2), (0.29, 1, 5), (0.3, 1, 6), (1.0, 20, 20)],
)
def test_sizes_are_flowers(fraction: float, fewest: int, size: int) -> None:
    """max(int(available * fraction_fit), min_fit_clients), as users of Flower know it."""
    cohort = sample_round(plan_of(fraction_fit=fraction, min_fit_clients=fewest), 1, sizes={})
    assert len(cohort) == len(set(cohort)) == size
    assert set(cohort) <= set(CLIENTS) and list(cohort) == sorted(cohort)


def test_a_cohort_depends_on_the_seed_and_the_round_and_not_on_the_order_of_clients() -> None:
    shuffled = list(CLIENTS)
    for seed in ("a", "b"):
        random.Random(seed).shuffle(shuffled)
        assert uniformly(seed, shuffled) == uniformly(seed, CLIENTS)
    cohorts = {sample_round(plan_of(n, fraction_fit=0.4), r, sizes={}) for n in range(5) for r in range(1, 11)}
    assert len(cohorts) > 45


def test_a_larger_fraction_only_adds_clients() -> None:
    smaller = sample_round(plan_of(fraction_fit=0.3), 1, sizes={})
    assert set(smaller) < set(sample_round(plan_of(fraction_fit=0.6), 1, sizes={}))


def test_every_client_is_as_likely_as_any_other() -> None:
    plan = plan_of(fraction_fit=0.25)
    counts = Counter(client for r in range(2000) for client in sample_round(plan, r, sizes={}))
    assert set(counts) == set(CLIENTS)
    assert all(400 < count < 600 for count in counts.values()), "500 expected, five standard deviations allowed"


@pytest.mark.parametrize("change", [{"min_fit_clients": 21}, {"min_available_clients": 21}])
def test_too_few_clients_are_refused(change: dict[str, int]) -> None:
    plan = plan_of()
    plan = plan.model_copy(update={"cohort": plan.cohort.model_copy(update=change)})
    with pytest.raises(QuorumError, match="20 clients are available and 21 are needed") as caught:
        sample_round(plan, 1, sizes={})
    assert "federation.min_fit_clients" in caught.value.remedy
    assert caught.value.exit_code == 13


@pytest.mark.parametrize(
    ("fraction", "more", "counts"),
    [(0.5, 1.2, (10, 12)), (0.5, 1.1, (10, 11)), (0.5, 1.15, (10, 12)), (0.9, 1.3, (18, 20)), (1.0, 2.0, (20, 20))],
)
def test_spares_are_asked_besides_those_that_are_needed(fraction: float, more: float, counts: tuple[int, int]) -> None:
    plan = plan_of(fraction_fit=fraction, oversample=more)
    asked = sample_round(plan, 3, sizes={})
    assert counts_of(plan.cohort) == counts == (counts[0], len(set(asked)))
    assert asked[: counts[0]] == sample_round(plan_of(fraction_fit=fraction), 3, sizes={}), "and the spares are last"


def test_in_turn_every_client_takes_part_equally_often() -> None:
    plan = plan_of(fraction_fit=0.4, sampling="round_robin")
    cohorts = [sample_round(plan, r, sizes={}) for r in range(1, 6)]
    assert set(Counter(client for cohort in cohorts for client in cohort).values()) == {2}
    assert not set(cohorts[0]) & set(cohorts[1])
    later = plan.model_copy(update={"stage": 2, "first_round": 3})
    assert sample_round(later, 1, sizes={}) == cohorts[2], "the next stage goes on"
    others = {sample_round(plan_of(n, fraction_fit=0.4, sampling="round_robin"), 1, sizes={}) for n in range(5)}
    assert len(others) == 5, "each seed has its own order"


def chances(sizes: dict[str, int], *, count: int) -> dict[str, Fraction]:
    """Each client's probability of being drawn: its share of the draws, at most 1; the others share the rest."""
    found, left, total = dict[str, Fraction](), count, sum(sizes.values())
    for client in sorted(sizes, key=lambda name: -sizes[name]):
        chance = Fraction(left * sizes[client], total) if left else Fraction(0)
        found[client] = min(Fraction(1), chance)
        if chance >= 1:
            left, total = left - 1, total - sizes[client]
    return found


@pytest.mark.parametrize("sizes", [SIZES, LARGE, dict.fromkeys(CLIENTS, 7)])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_by_size_a_client_is_as_likely_as_its_examples_are_many(sizes: dict[str, int], count: int) -> None:
    draws = 3000
    cohorts = [by_size(derive("0", n), sizes=sizes, count=count) for n in range(draws)]
    assert all(len(set(cohort)) == count for cohort in cohorts)
    counts = Counter(client for cohort in cohorts for client in cohort)
    for client, exact in chances(sizes, count=count).items():
        chance = float(exact)
        assert abs(counts[client] / draws - chance) <= 5 * (chance * (1 - chance) / draws) ** 0.5 + 1e-12


@pytest.mark.parametrize("sizes", [SIZES, LARGE, dict.fromkeys(CLIENTS, 7)])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_by_size_the_weighted_mean_is_unbiased(sizes: dict[str, int], count: int) -> None:
    """A client's expected share of the mean is its share of all examples, exactly."""
    weights = weights_by_size(sizes, count=count)
    sums = {sum(weights[c] for c in by_size(derive("0", n), sizes=sizes, count=count)) for n in range(20)}
    assert len(sums) == 1, "the mean's denominator does not depend on who was drawn"
    whole, denominator = sum(sizes.values()), sums.pop()
    for client, chance in chances(sizes, count=count).items():
        assert chance * weights[client] / denominator == Fraction(sizes[client], whole)
    if count == len(sizes):
        assert weights == sizes, "with all clients it is FedAvg's mean"


@pytest.mark.parametrize("text", ["sampling=random", "oversample=0.9", "oversample=11", "oversample=nan"])
def test_nonsense_is_refused_by_name(text: str) -> None:
    with pytest.raises(SpecError, match=text.partition("=")[0]):
        build_spec(VALUES, overrides=[f"federation.{text}"])


def test_plans_that_draw_uniformly_have_no_key_for_it() -> None:
    plain = plan_of().model_dump(mode="json")["cohort"]
    assert not {"sampling", "oversample"} & plain.keys()
    used = plan_of(sampling="by_size", oversample=1.5).model_dump(mode="json")["cohort"]
    assert used == {**plain, "sampling": "by_size", "oversample": 1.5}
