"""Laws of naming clients: ids, ranges with both ends, and patterns name the same in groups, quorums and pools."""

from __future__ import annotations

import pytest

from lwfed.spec.kubernetes import KubernetesSpec
from lwfed.types.clients import client_ids, expand_clients
from lwfed.types.errors import SpecError

IDS = client_ids(12)


@pytest.mark.parametrize(
    ("named", "numbers"),
    [
        (["client-003"], [3]),
        (["client-009..client-011", "client-001"], [1, 9, 10, 11]),
        (["client-00[0-2]", "client-004..client-004"], [0, 1, 2, 4]),
        (["client-01*"], [10, 11]),
        ([], []),
    ],
)
def test_a_name_is_an_id_a_range_or_a_pattern(named: list[str], numbers: list[int]) -> None:
    expected = tuple(IDS[n] for n in numbers)
    assert expand_clients(named, known=IDS, where="key") == expected
    pools = [{"name": "a", "clients": named or ["none"]}, {"name": "b"}]
    spec = KubernetesSpec.model_validate({"pools": pools})
    assert tuple(client for client in IDS if spec.pool_of(client).name == "a") == expected


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        (["client-012"], r"`key` names 'client-012', which is no client -> the clients are client-000..client-011"),
        (["client-1"], "names 'client-1', which is no client"),
        (["client-000..client-099"], "names 'client-099', which is no client"),
        (["hospital-*"], r"names 'hospital-\*', which is no client"),
        (["client-004..client-002"], r"runs backwards -> write client-002..client-004"),
        (["client-00*", "client-003"], "names client-003 twice"),
    ],
)
def test_what_names_no_client_is_refused(named: list[str], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        expand_clients(named, known=IDS, where="key")
