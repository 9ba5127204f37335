"""What a report tells of clients that are not alike: each kind, what each client did, and who never took part."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.report.clients import client_rows, kind_rows
from lwfed.run import runs
from tests.tiny import ONE_STAGE, Finished, run_tiny

GROUPS = (
    "strategy=end_to_end", *ONE_STAGE, "federation.num_clients=5", "data.shapes.train=40",
    "federation.groups=[{name: weak, clients: [client-001..client-002], max_blocks: 1}]",
    "federation.require=[client-000..client-001]", "federation.fraction_fit=0.4", "exchange.upload=int8",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_tiny(tmp_path_factory.mktemp("store"), *GROUPS)


def test_each_client_has_a_row_and_those_that_never_trained_too(finished: Finished) -> None:
    _, rounds = runs.history(finished.store, runs.read_run(finished.store, finished.run.run_id))
    rows = {row.client: row for row in client_rows(finished.run, finished.plans, rounds)}
    assert [(row.kind, row.asked, row.counted) for row in rows.values()] == [
        ("others", 2, 2), ("weak", 2, 2), ("weak", 0, 0), ("others", 0, 0), ("others", 0, 0)
    ]  # fmt: skip
    sent = {
        client: sum(record.clients[client].bytes_up for record in rounds) for client in ("client-000", "client-001")
    }
    assert {client: rows[client].bytes_up for client in sent} == sent and sent["client-001"] < sent["client-000"]
    assert rows["client-000"].trains == "image: stem, blocks 0-1, norm, projection; text: stem, blocks 0-1, projection"
    assert rows["client-001"].trains == "image: block 1, norm, projection; text: block 1, projection"
    assert rows["client-001"].keeps == "its rounding error" and rows["client-002"].trains == ""


def test_each_kind_has_its_prediction_and_its_measurement(finished: Finished) -> None:
    stages, _ = runs.history(finished.store, runs.read_run(finished.store, finished.run.run_id))
    others, weak = sorted(kind_rows(finished.run, finished.plans, stages), key=lambda row: row.kind)
    assert (others.kind, others.clients, weak.kind, weak.clients) == ("others", 3, "weak", 2)
    for row in (others, weak):
        assert row.measured["bytes_up"] == row.predicted["upload_bytes"]
        assert row.measured["peak_tensor_bytes"] == pytest.approx(row.predicted["peak_bytes"], rel=0.15)
    assert weak.predicted["upload_bytes"] < others.predicted["upload_bytes"]


def test_every_view_says_so(finished: Finished, tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        ended = CliRunner().invoke(app, [*arguments], catch_exceptions=False, env={"COLUMNS": "200"})
        assert ended.exit_code == 0
        return " ".join(ended.stdout.split())

    shown = call("show", finished.run.run_id, "--store", str(finished.store.uri))
    assert "3 of 5 clients never took part: client-002, client-003, client-004" in shown and "never asked" in shown
    page = tmp_path / "report.html"
    call("report", finished.run.run_id, "--store", str(finished.store.uri), "--output", str(page))
    text = page.read_text(encoding="utf-8")
    assert "3 of 5 clients never took part: client-002, client-003, client-004." in text
    assert "Kinds of clients" in text and "image: block 1, norm, projection; text: block 1, projection" in text


def test_alike_clients_have_no_kinds(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, "stages.rounds=[1,0]")
    assert kind_rows(done.run, done.plans, []) == []
    assert all("kinds" not in cost for cost in done.run.predicted)
