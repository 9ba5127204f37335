"""Clients that do not take part: they never train or evaluate, their data are unused, and every view says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.spec.load import build_spec
from lwfed.store.local import LocalStore
from tests.e2e.own_data import coco_spec, write_coco
from tests.tiny import VALUES, Finished, prepared, run_tiny

SIX_OF_TEN = (
    "federation.num_clients=10",
    "federation.eligible_fraction=0.6",
    "federation.partition.kind=contiguous",
    "data.shapes.train=85",
    "evaluation.holdout_fraction=0.25",
    "evaluation.federated_every=1",
    "stages.rounds=[0,1]",
)
TOLD = "6 of 10 clients take part"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_tiny(tmp_path_factory.mktemp("store"), *SIX_OF_TEN)


def test_only_eligible_clients_train_and_evaluate(finished: Finished) -> None:
    clients = [f"client-{n:03d}" for n in range(6)]
    assert list(finished.run.data.clients) == clients
    records = finished.reported("round")
    assert len(records) == 1
    for record in records:
        assert record["cohort"] == clients == list(record["clients"])
        assert "failed_evaluations" not in record and record["metrics"]["federated/loss"] > 0


def test_what_the_others_have_is_counted_as_unused(finished: Finished) -> None:
    data = finished.run.data
    assert data.num_train == 6 * 8, "ten shards of eight; five examples remain"
    assert data.left_out == {"training examples of no client that takes part": 4 * 8 + 5}
    assert all(count == 6 for count in data.clients.values()), "two of eight are held out"


def test_every_view_says_who_takes_part(finished: Finished, tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        ended = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
        assert ended.exit_code == 0
        return " ".join(ended.stdout.split())

    unused = "37 training examples of no client"
    shown = call("show", finished.run.run_id, "--store", str(finished.store.uri))
    assert TOLD in shown and unused in shown
    overrides = [item for key in SIX_OF_TEN[:4] for item in ("-o", key)]
    divided = call("partition", *overrides, "-o", f"store.uri={tmp_path / 'store'}")
    assert TOLD in divided and unused in divided and "client-006" not in divided
    assert TOLD in call("plan", *overrides) and "take part" not in call("plan")
    page = tmp_path / "report.html"
    call("report", finished.run.run_id, "--store", str(finished.store.uri), "--output", str(page))
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert "<b>6</b> clients of 10" in text and "training examples of no client that takes part" in text


def test_the_folder_of_a_client_that_does_not_take_part_is_not_opened(tmp_path: Path) -> None:
    write_coco(tmp_path / "data" / "server")
    for name in ("client-000", "client-001"):
        shutil.copytree(tmp_path / "data" / "server", tmp_path / "data" / name)
    values = VALUES | {"data": coco_spec(tmp_path / "data" / "{client}")["data"], "store": {"uri": str(tmp_path / "s")}}
    local = ["federation.num_clients=3", "federation.partition.kind=local", "federation.eligible_fraction=0.7"]
    run = prepared(build_spec(values, overrides=local), store=LocalStore(tmp_path / "s"))
    assert run.data.clients == {"client-000": 12, "client-001": 12} and not run.data.left_out
    assert run.data.num_train == 24
