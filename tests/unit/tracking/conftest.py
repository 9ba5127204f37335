"""Records of a small run, and one MLflow database for all tests that write to one: its migrations take seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lwfed import environment

Record = dict[str, Any]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in environment.QUIET.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_RUN_ID", "LWFED_MLFLOW_PARENT_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sqlite tracking store."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def make_run() -> Callable[..., Record]:
    """Makes a RunRecord of three stages, the second without rounds."""

    def make(run_id: str, **changes: Any) -> Record:
        return {
            "run_id": run_id,
            "name": "small",
            "created": "2024-05-01T10:00:00+00:00",
            "spec": {
                "name": "small", "seed": 3, "data": {"source": "shapes", "root": None}, "stages": {"rounds": [2, 0, 1]},
            },
            "strategy": "layerwise",
            "stages": [{"stage": s, "key": f"key{s}"} for s in (1, 2, 3)],
            "parent": None,
            "data": {
                "source": "shapes", "version": "ab" * 32, "num_train": 40, "num_test": 10,
                "clients": {"client-000": 20, "client-001": 20}, "classes": ["a", "b"],
            },
            "code_version": "cd" * 32,
            "predicted": [],
            "end_to_end": {},
            **changes,
        }  # fmt: skip

    return make


@pytest.fixture
def rounds() -> list[Record]:
    """RoundRecords of three rounds."""
    return [_round(1, 1, 1), _round(1, 2, 2), _round(3, 1, 3)]


@pytest.fixture
def stages() -> list[Record]:
    """StageRecords of three stages."""
    return [
        {
            "stage": stage, "key": f"key{stage}", "digest": f"out{stage}", "input_digest": f"out{stage - 1}",
            "rounds": rounds, "metrics": {"test/loss": 0.5},
            "ledger": {
                "predicted": {"stage": stage, "exchanged_bytes": 900, "tokens": {"image": 17}, "batch_size": 8},
                "measured": {"bytes_up": 900, "bytes_down": 900},
            },
            "wall_s": 2.0, "plan_digest": f"plan{stage}", "reused": False,
        }
        for stage, rounds in ((1, 2), (2, 0), (3, 1))
    ]  # fmt: skip


def _round(stage: int, server_round: int, number: int) -> Record:
    client = {
        "num_examples": 20, "steps": 3, "loss": 1.0 / number, "loss_first": 2.0, "bytes_up": 100, "bytes_down": 200,
        "bytes_down_frozen": 50, "wall_s": 1.0, "peak_tensor_bytes": 1000, "peak_rss_bytes": 5000,
        "step_flops": {"forward": 10, "backward": 20, "batch": 8},
    }  # fmt: skip
    return {
        "stage": stage,
        "round": server_round,
        "global_round": number,
        "digest": f"round{number}",
        "metrics": {"train/loss": 1.0 / number, "test/t2i/R@1": 0.1 * number, "test/loss": None},
        "cohort": ["client-000", "client-001", "client-002"],
        "clients": {"client-000": client, "client-001": {**client, "loss": 3.0 / number, "peak_rss_bytes": 7000}},
        "failed": {"client-002": "lost"},
        "wall_s": {"round": 2.0, "train": 1.5},
    }
