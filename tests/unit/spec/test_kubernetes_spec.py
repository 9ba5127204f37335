"""Pools share clients out, and what cannot run is refused before anything is made."""

from __future__ import annotations

from typing import Any

import pytest

from lwfed.spec.kubernetes import KubernetesSpec
from lwfed.spec.load import build_spec
from lwfed.types.errors import SpecError

CLIENTS = [f"client-{n:03d}" for n in range(4)]


def kubernetes(**values: Any) -> KubernetesSpec:
    return build_spec({"kubernetes": {"image": "lwfed:1", **values}}).kubernetes


def test_the_first_pool_that_names_a_client_has_it_and_the_one_without_names_the_rest() -> None:
    spec = kubernetes(
        pools=[
            {"name": "rest"},
            {"name": "silo", "clients": ["client-002"]},
            {"name": "low", "clients": ["client-00[01]"]},
        ]
    )
    assert [(pool.name, clients) for pool, clients in spec.by_pool(CLIENTS)] == [
        ("rest", ["client-003"]),
        ("silo", ["client-002"]),
        ("low", ["client-000", "client-001"]),
    ]


def test_client_1_is_not_client_10() -> None:
    spec = kubernetes(pools=[{"name": "one", "clients": ["client-1"]}, {"name": "rest"}])
    assert spec.pool_of("client-1").name == "one"
    assert spec.pool_of("client-10").name == spec.pool_of("client-100").name == "rest"


def test_a_client_without_a_pool_is_named() -> None:
    with pytest.raises(SpecError, match="client-003"):
        kubernetes(pools=[{"name": "a", "clients": ["client-000"]}]).by_pool(["client-000", "client-003"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pools": [{"name": "a"}, {"name": "b"}]}, "only one"),
        ({"pools": [{"name": "a"}, {"name": "a", "clients": ["x"]}]}, "name a"),
        ({"pools": [{"name": "server"}]}, "name server"),
        ({"server": {"name": "server", "clients": ["x"]}}, "has no clients"),
        ({"pools": [{"name": "a", "memory": "8 GB"}]}, "`memory` 8 GB"),
        ({"pools": [{"name": "A_b"}]}, "name"),
        ({"pools": [{"name": "a", "volumes": [{"name": "v", "mount_path": "/d"}]}]}, "exactly one of"),
        ({"heartbeat_s": 100}, "heartbeat_timeout_s"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        kubernetes(**values)


def test_pods_need_an_image_and_devices_that_agree() -> None:
    with pytest.raises(SpecError, match=r"kubernetes\.image"):
        build_spec({"launch": {"kind": "kubernetes"}})
    with pytest.raises(SpecError, match=r"launch\.devices=4"):
        build_spec(
            {"launch": {"kind": "kubernetes"}, "kubernetes": {"image": "x", "pools": [{"name": "a", "gpus": 4}]}}
        )
