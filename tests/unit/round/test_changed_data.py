"""Data are known by content: replaced files are other data before a run, and are found by name while it trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.round.evaluate_round import evaluate_checkpoint
from lwfed.round.train_client import train_client
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.steps.prepare import draft
from lwfed.store import paths
from lwfed.types.errors import DataError
from tests.e2e import own_data
from tests.tiny import begun, client_task, run_tiny, tiny_spec

CLIENTS = ("client-000", "client-001", "client-002")


def on(root: Path, *, bad: str = "fail") -> tuple[str, ...]:
    return (f"data={{source: coco, root: {root}, workers: 0, on_bad_example: {bad}}}", "federation.num_clients=3")


def altered(image: Path) -> Path:
    """Changes one byte of an image and not its length."""
    content = bytearray(image.read_bytes())
    content[-3] ^= 1
    image.write_bytes(content)
    return image


@pytest.mark.parametrize("name", ["train2017/000003.jpg", "val2017/000021.jpg"])
def test_nothing_is_reused_once_a_file_has_another_content(tmp_path: Path, name: str) -> None:
    own_data.write_coco(tmp_path / "data")
    first = run_tiny(tmp_path / "store", *on(tmp_path / "data"), options=Options(run_id="first"))
    spec = tiny_spec(tmp_path / "store", *on(tmp_path / "data"))
    same = draft(spec, store=first.store, options=Options())
    assert runs.find_finished(first.store, same) == "first"
    altered(tmp_path / "data" / name)
    other = draft(spec, store=first.store, options=Options())
    assert other.data.version != same.data.version and runs.find_finished(first.store, other) is None


def test_a_client_names_a_file_that_changed_after_its_check(tmp_path: Path) -> None:
    own_data.write_coco(tmp_path / "data")
    bench, stage, place = begun(tmp_path / "store", *on(tmp_path / "data"))
    at = {"root": str(tmp_path / "data")}
    share, _ = bench.share(stage, place.model_copy(update=at), "client-001")
    altered(tmp_path / "data" / share[1].id)
    with pytest.raises(DataError, match=share[1].id) as caught:
        train_client(client_task(bench, stage, "client-001", **at), bench=bench)
    assert "client-001" in caught.value.problem and caught.value.exit_code == 11
    for client in ("client-000", "client-002"):
        update = train_client(client_task(bench, stage, client, **at), bench=bench)
        assert "changed_files" not in update["metrics"]


def test_changed_files_are_left_out_and_counted_where_the_spec_skips(tmp_path: Path) -> None:
    own_data.write_coco(tmp_path / "data")
    bench, stage, place = begun(tmp_path / "store", *on(tmp_path / "data", bad="skip"))
    place = place.model_copy(update={"root": str(tmp_path / "data")})
    share, _ = bench.share(stage, place, "client-001")
    altered(tmp_path / "data" / share[0].id)
    (tmp_path / "data" / share[1].id).unlink()
    update = train_client(client_task(bench, stage, "client-001", root=place.root), bench=bench)
    assert update["metrics"]["changed_files"] == 2
    assert update["num_examples"] == update["metrics"]["num_examples"] == len(share) - 2
    altered(tmp_path / "data" / "val2017/000020.jpg")
    ctx = bench.round(client_task(bench, stage, "client-000", root=place.root))
    metrics = evaluate_checkpoint(ctx, ctx.start(), trained={}, bench=bench)
    assert metrics["test/changed_files"] == 1


def test_data_of_a_client_s_own_folder_are_compared_as_a_whole(tmp_path: Path) -> None:
    for who in (*CLIENTS, "server"):
        own_data.write_coco(tmp_path / "data" / who)
    root = str(tmp_path / "data" / "{client}")
    local = "federation={num_clients: 3, partition: {kind: local}}"
    bench, stage, _ = begun(tmp_path / "store", f"data={{source: coco, root: '{root}', workers: 0}}", local)
    assert set(stage.data_versions) == {*CLIENTS, "server"}
    listing = paths.data_files(stage.data_versions["client-001"])
    assert bench.store.has(listing), "all folders are on this machine"
    altered(tmp_path / "data" / "client-001" / "train2017/000003.jpg")
    with pytest.raises(DataError, match="000003"):
        train_client(client_task(bench, stage, "client-001", root=root), bench=bench)
    bench.store.delete(listing)  # as where only the client sees its folder
    with pytest.raises(DataError, match="client-001"):
        train_client(client_task(bench, stage, "client-001", root=root), bench=bench)
    assert train_client(client_task(bench, stage, "client-000", root=root), bench=bench)["num_examples"] == 12
