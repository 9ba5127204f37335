"""Tests that break things take no cluster by accident: only one on this machine; off the loopback, by its full name."""

from __future__ import annotations

import pytest

from tests.cluster.bed import address_of

ELSEWHERE = "https://192.0.2.1:6443"
EVERYWHERE = "https://0.0.0.0:6443"


@pytest.mark.parametrize("server", ["https://127.0.0.1:6443", "https://127.96.0.1:443", "https://localhost:6443"])
def test_a_cluster_of_the_loopback_is_taken(server: str) -> None:
    assert address_of(server, named=None) == "127.0.0.1"


@pytest.mark.parametrize("named", [None, "", "yes", "192.0.2.1", "https://192.0.2.1", f"{ELSEWHERE}/", ELSEWHERE])
def test_a_cluster_of_another_machine_is_never_taken(named: str | None) -> None:
    assert address_of(ELSEWHERE, named=named) is None


def test_a_cluster_of_this_machine_is_taken_by_its_full_name_alone() -> None:
    assert address_of(EVERYWHERE, named=EVERYWHERE) == "0.0.0.0"
    assert [address_of(EVERYWHERE, named=named) for named in (None, "0.0.0.0", ELSEWHERE, "https://0.0.0.0")] == [
        None
    ] * 4
    assert address_of("https://127.evil.example.com:6443", named=None) is None
