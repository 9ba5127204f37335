"""The last lines of a run name what works where they are read."""

from __future__ import annotations

import pytest

from lwfed.cli.run import _how_to_see


@pytest.mark.parametrize("uri", ["http://lwfed-mlflow:5000", "https://mlflow.example.com/base"])
def test_a_server_of_mlflow_is_opened(uri: str) -> None:
    assert _how_to_see(uri) == f"open {uri}"


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "file:///data/mlruns", "./mlruns", "postgresql://db/mlflow"])
def test_what_is_no_server_is_shown_by_one(uri: str) -> None:
    assert _how_to_see(uri) == f"mlflow ui --backend-store-uri {uri}"
