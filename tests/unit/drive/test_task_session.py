"""A pipeline's task knows its run, and its client pods have what the task was given."""

from __future__ import annotations

import pytest

from lwfed.drive.task_resources import with_resources
from lwfed.drive.tasks import run_id_of
from lwfed.spec.load import build_spec
from tests.tiny import VALUES


def test_a_run_is_named_after_the_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = build_spec(VALUES)
    monkeypatch.delenv("LWFED_RUN_ID", raising=False)
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    by_digest = run_id_of(spec)
    assert by_digest == run_id_of(spec) and by_digest.startswith("tiny-")
    monkeypatch.setenv("KFP_RUN_ID", "0123456789abcdef-0123")
    assert run_id_of(spec) == "tiny-01234567"
    monkeypatch.setenv("LWFED_RUN_ID", "mine")
    assert run_id_of(spec) == "mine"


def test_resources_of_the_task_go_where_pools_say_nothing() -> None:
    spec = build_spec(
        {
            "kubernetes": {
                "image": "x",
                "pools": [{"name": "a"}, {"name": "b", "clients": ["client-000"], "gpus": 2, "memory": "1Gi"}],
            }
        }
    )
    told = {
        "resources": {
            "requests": {"cpu": "4", "memory": "16Gi"},
            "limits": {"memory": "32Gi", "nvidia.com/gpu": "1"},
        },
        "node_selector": {"gpu": "a100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    }
    first, second = with_resources(spec, told).kubernetes.pools
    assert (first.cpu, first.memory, first.memory_limit, first.gpus) == ("4", "16Gi", "32Gi", 1)
    assert first.node_selector == {"gpu": "a100"} and first.tolerations == ({"key": "gpu", "operator": "Exists"},)
    assert (second.cpu, second.memory, second.gpus) == ("4", "1Gi", 2)
    for nothing in (None, {}, {"resources": {}, "tolerations": None}):
        assert with_resources(spec, nothing) == spec
