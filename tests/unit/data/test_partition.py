from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lwfed.data.partition import describe, holdout, partition
from lwfed.data.protocol import Example
from lwfed.round.shares import shares_of
from lwfed.spec.data import PartitionSpec
from lwfed.types.errors import DataError

EXAMPLES = [
    Example(id=f"e{n}", label=n % 6, fields={"stem": f"{'abc'[n % 3]}_{n}", "site": "north" if n % 4 else "south"})
    for n in range(240)
]


@pytest.mark.parametrize(
    ("plan", "num_clients"),
    [
        (PartitionSpec(), 7),
        (PartitionSpec(kind="dirichlet", alpha=0.5), 7),
        (PartitionSpec(kind="dirichlet", alpha=50), 7),
        (PartitionSpec(kind="dirichlet", alpha=0.05), 4),
        (PartitionSpec(kind="by_group", pattern="^(?P<group>[a-z]+)_"), 3),
        (PartitionSpec(kind="by_group", field="site"), 2),
        (PartitionSpec(kind="by_group", field="label"), 6),
    ],
)
def test_a_partition_is_a_partition(plan: PartitionSpec, num_clients: int) -> None:
    shares = partition(EXAMPLES, plan=plan, num_clients=num_clients, seed="5")
    assert list(shares) == [f"client-{n:03d}" for n in range(num_clients)]
    assert sorted(n for share in shares.values() for n in share) == list(range(240))
    assert all(len(share) >= plan.min_size and share == sorted(share) for share in shares.values())
    assert shares == partition(EXAMPLES, plan=plan, num_clients=num_clients, seed="5")


@pytest.mark.parametrize("plan", [PartitionSpec(), PartitionSpec(kind="dirichlet", alpha=0.5)])
def test_another_seed_is_another_partition(plan: PartitionSpec) -> None:
    shares = [partition(EXAMPLES, plan=plan, num_clients=4, seed=seed) for seed in ("1", "2")]
    assert shares[0] != shares[1]


def test_iid_sizes_differ_by_one_at_most() -> None:
    sizes = [len(share) for share in partition(EXAMPLES, plan=PartitionSpec(), num_clients=7, seed="1").values()]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_clients", [1, 7, 10, 40])
def test_contiguous_shards_are_equal_and_leave_the_remainder(num_clients: int) -> None:
    shares = partition(EXAMPLES, plan=PartitionSpec(kind="contiguous"), num_clients=num_clients, seed="5")
    size = 240 // num_clients
    assert [index for share in shares.values() for index in share] == list(range(num_clients * size))
    assert {len(share) for share in shares.values()} == {size}
    assert shares == partition(EXAMPLES, plan=PartitionSpec(kind="contiguous"), num_clients=num_clients, seed="6")


def test_contiguous_shards_that_are_too_small_are_refused() -> None:
    with pytest.raises(DataError, match=r"-> lower federation\.num_clients"):
        partition(EXAMPLES, plan=PartitionSpec(kind="contiguous"), num_clients=121, seed="5")


@pytest.mark.parametrize(("num_clients", "classes"), [(10, 13), (40, 13)])
def test_the_paper_s_smallest_beta_works(num_clients: int, classes: int) -> None:
    examples = [Example(id=str(n), label=n % classes) for n in range(4056)]
    plan = PartitionSpec(kind="dirichlet", beta=0.05)
    shares = partition(examples, plan=plan, num_clients=num_clients, seed="0")
    assert sum(map(len, shares.values())) == 4056
    assert min(map(len, shares.values())) >= 2


def test_alpha_sets_how_unequal_clients_are() -> None:
    def spread(alpha: float) -> float:
        plan = PartitionSpec(kind="dirichlet", alpha=alpha)
        rows = describe(EXAMPLES, shares=partition(EXAMPLES, plan=plan, num_clients=4, seed="3"), classes="abcdef")
        table = np.array([list(row["labels"].values()) for row in rows]) / [[row["num_examples"]] for row in rows]
        return float(table.std(axis=0).mean())

    assert spread(0.05) > spread(0.5) > spread(500)


def test_a_vanishing_alpha_gives_no_nan() -> None:
    plan = PartitionSpec(kind="dirichlet", alpha=1e-300, min_size=1)
    shares = partition(EXAMPLES, plan=plan, num_clients=2, seed="1")
    assert sum(map(len, shares.values())) == 240
    owners = {label: {c for c, share in shares.items() for n in share if n % 6 == label} for label in range(6)}
    assert all(len(clients) == 1 for clients in owners.values())


def test_a_dirichlet_that_cannot_be_met_ends_with_an_error() -> None:
    plan = PartitionSpec(kind="dirichlet", alpha=0.001, min_size=10)
    with pytest.raises(DataError, match=r"no dirichlet partition with alpha 0.001 in 1000 tries.* -> raise"):
        partition(EXAMPLES, plan=plan, num_clients=12, seed="1")
    with pytest.raises(DataError, match="30 clients cannot have 10 of 240 examples each"):
        partition(EXAMPLES, plan=plan, num_clients=30, seed="1")


def test_dirichlet_needs_labels() -> None:
    plan = PartitionSpec(kind="dirichlet", alpha=1)
    with pytest.raises(DataError, match=r"needs class labels, .*x has none -> use .*iid or by_group"):
        partition([Example(id="x", label=None)] * 9, plan=plan, num_clients=2, seed="1")


def test_local_gives_each_client_all_of_its_root() -> None:
    shares = partition(EXAMPLES, plan=PartitionSpec(kind="local"), num_clients=2, seed="1")
    assert shares == {"client-000": list(range(240)), "client-001": list(range(240))}


def test_clients_without_data_are_named() -> None:
    with pytest.raises(DataError, match=r"2 of 5 clients have no data: client-003, client-004 -> lower"):
        partition(EXAMPLES[:3], plan=PartitionSpec(min_size=1), num_clients=5, seed="1")
    with pytest.raises(DataError, match=r"1 of 2 clients have fewer than 2 examples: client-001"):
        partition(EXAMPLES[:3], plan=PartitionSpec(), num_clients=2, seed="1")


def test_groups_that_do_not_fit_are_named() -> None:
    by_field = PartitionSpec(kind="by_group", field="site")
    with pytest.raises(DataError, match=r"2 groups.* 3 clients; groups: north, south -> set .* to 2"):
        partition(EXAMPLES, plan=by_field, num_clients=3, seed="1")
    with pytest.raises(DataError, match=r"e0 has no field speaker -> .* one of: label, site, stem"):
        partition(EXAMPLES, plan=PartitionSpec(kind="by_group", field="speaker"), num_clients=3, seed="1")
    with pytest.raises(DataError, match=r"finds no group in a_0 -> fix"):
        partition(EXAMPLES, plan=PartitionSpec(kind="by_group", pattern="(?P<group>z+)"), num_clients=3, seed="1")
    with pytest.raises(DataError, match=r"not a regular expression: .* -> fix"):
        partition(EXAMPLES, plan=PartitionSpec(kind="by_group", pattern="(?P<group>z+"), num_clients=3, seed="1")


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(100, 0.0, 0), (100, 0.1, 10), (5, 0.1, 1), (3, 0.9, 1), (2, 0.5, 0)]
)
def test_holdout(count: int, fraction: float, held_out: int) -> None:
    indices = list(range(7, 7 + count))
    train, out = holdout(indices, fraction=fraction, seed="9")
    assert len(out) == held_out
    assert sorted(train + out) == indices
    assert (train, out) == holdout(indices, fraction=fraction, seed="9")


def test_describe_counts_labels() -> None:
    shares = {"client-000": [0, 6, 1], "client-001": [2]}
    assert describe(EXAMPLES, shares=shares, classes=("u", "v", "w", "x", "y", "z"))[0] == {
        "client": "client-000",
        "num_examples": 3,
        "labels": {"u": 2, "v": 1, "w": 0, "x": 0, "y": 0, "z": 0},
    }
    rows = describe([Example(id="x", label=None)], shares={"client-000": [0]}, classes=())
    assert rows == [{"client": "client-000", "num_examples": 1, "labels": {}}]
    assert Counter(row["num_examples"] for row in rows) == {1: 1}


def test_the_remedy_names_what_helps() -> None:
    """A group's size does not depend on the number of clients, and a fraction set apart leaves fewer examples."""
    grouped = PartitionSpec(kind="by_group", field="site", min_size=len(EXAMPLES))
    with pytest.raises(DataError) as caught:
        partition(EXAMPLES, plan=grouped, num_clients=2, seed="0")
    assert "min_size" in caught.value.remedy and "num_clients" not in caught.value.remedy
    for fraction in (0.0, 0.9):
        with pytest.raises(DataError) as caught:
            shares_of(EXAMPLES[:3], kind=PartitionSpec(), num_clients=3, seed="0", validation_fraction=fraction)
        assert ("data.validation_fraction 0.9" in caught.value.problem) == bool(fraction)
