"""Laws of sampling a cohort."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lwfed.plan.cohort import client_ids, sample
from lwfed.types.errors import QuorumError
from lwfed.types.seeds import derive

CLIENTS = client_ids(20)


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
    cohort = sample("s", clients=CLIENTS, fraction_fit=fraction, min_fit_clients=fewest)
    assert len(cohort) == len(set(cohort)) == size
    assert set(cohort) <= set(CLIENTS) and list(cohort) == sorted(cohort)


def test_a_cohort_depends_on_the_seed_and_not_on_the_order_of_clients() -> None:
    shuffled = list(CLIENTS)
    for seed in ("a", "b"):
        random.Random(seed).shuffle(shuffled)
        assert sample(seed, clients=shuffled, fraction_fit=0.4, min_fit_clients=1) == (
            sample(seed, clients=CLIENTS, fraction_fit=0.4, min_fit_clients=1)
        )
    cohorts = {sample(str(n), clients=CLIENTS, fraction_fit=0.4, min_fit_clients=1) for n in range(50)}
    assert len(cohorts) > 45


def test_a_larger_fraction_only_adds_clients() -> None:
    smaller = sample("s", clients=CLIENTS, fraction_fit=0.3, min_fit_clients=1)
    assert set(smaller) < set(sample("s", clients=CLIENTS, fraction_fit=0.6, min_fit_clients=1))


def test_every_client_is_as_likely_as_any_other() -> None:
    counts = Counter(
        client
        for n in range(2000)
        for client in sample(derive("0", n), clients=CLIENTS, fraction_fit=0.25, min_fit_clients=1)
    )
    assert set(counts) == set(CLIENTS)
    assert all(400 < count < 600 for count in counts.values()), "500 expected, five standard deviations allowed"


@pytest.mark.parametrize(("fit", "available"), [(21, 1), (1, 21)])
def test_too_few_clients_are_refused(fit: int, available: int) -> None:
    with pytest.raises(QuorumError, match="20 clients are available and 21 are needed") as caught:
        sample("s", clients=CLIENTS, fraction_fit=1.0, min_fit_clients=fit, min_available_clients=available)
    assert "federation.min_fit_clients" in caught.value.remedy
    assert caught.value.exit_code == 13
