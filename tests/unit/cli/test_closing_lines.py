"""The last lines of a run name what works where they are read."""

from __future__ import annotations

import shlex

import pytest

from lwfed.cli.run import _how_to_see


@pytest.mark.parametrize("uri", ["http://lwfed-mlflow:5000", "HTTPS://mlflow.example.com/base", "databricks"])
def test_a_server_of_mlflow_is_opened(uri: str) -> None:
    assert _how_to_see(uri) == f"open {uri}"


@pytest.mark.parametrize("uri", ["http://mlflow.svc", "sqlite:///mlflow.db", "databricks"])
def test_the_address_for_people_is_opened_whatever_the_store(uri: str) -> None:
    assert _how_to_see(uri, ui="mlflow.example.com") == "open mlflow.example.com"


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "file:///data/mlruns",
        "./mlruns",
        "postgresql://db/mlflow",
        "sqlite:////my runs/it's $HOME",
    ],
)
def test_what_is_no_server_is_shown_by_one(uri: str) -> None:
    assert shlex.split(_how_to_see(uri)) == ["mlflow", "ui", "--backend-store-uri", uri]
