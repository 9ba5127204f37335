"""Laws of runs on people's own tables: what the spec needs is there, or is named before any work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.run import runs
from lwfed.spec.load import build_spec
from lwfed.store.local import LocalStore
from lwfed.types.errors import DataError, SpecError
from tests.tables import write_jsonl
from tests.tiny import VALUES, prepared, run_tiny

SUPERVISED = {
    "encoders": {"image": VALUES["model"]["encoders"]["image"]},
    "projection": VALUES["model"]["projection"],
    "objective": {"kind": "supervised", "hidden": 8},
}


def rows_of(root: Path, *, count: int = 12, splits: Sequence[str] = ("train", "train", "test")) -> list[dict[str, Any]]:
    """Draws pictures, and returns rows of two classes and two sites."""
    root.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.new("RGB", (16, 16), (n * 20, 90, 10)).save(root / f"{n:02d}.png")
    return [
        {
            "image": f"{n:02d}.png", "text": f"picture {n}", "label": ("cat", "dog")[n % 2],
            "site": ("north", "south")[n // 6], "split": splits[n % len(splits)],
        }
        for n in range(count)
    ]  # fmt: skip


def values(root: Path | str, **changes: Any) -> dict[str, Any]:
    federation = {"partition": {"kind": "by_group", "field": "site"}}
    data = {"source": "table", "root": str(root), "workers": 0, **changes.pop("data", {})}
    return {**VALUES, "data": data, "federation": federation, **changes}


def test_sites_are_clients_and_validation_rows_are_judged(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data", rows_of(tmp_path / "data", splits=("train", "train", "test", "validation")))
    data = f"data={{source: table, root: {tmp_path / 'data'}, workers: 0}}"
    by_site = "federation={partition: {kind: by_group, field: site}}"
    done = run_tiny(tmp_path / "store", data, by_site)
    assert done.run.data.clients.keys() == {"client-000", "client-001"} and sum(done.run.data.clients.values()) == 6
    assert (done.run.data.num_validation, done.run.data.num_test) == (3, 3)
    assert {"test/t2i/R@1", "validation/t2i/R@1"} <= done.summary["metrics"].keys()
    assert done.plans[0].data.model_dump()["columns"]["image"] == "image"
    assert done.plans[0].data.at(root=str(tmp_path / "data"), workers=0) == runs.spec_of(done.run).data


def test_a_row_that_lacks_a_modality_is_refused_or_skipped_and_counted(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "data")
    rows[0]["text"], rows[2]["text"] = "", None
    write_jsonl(tmp_path / "data", rows)
    store = LocalStore(tmp_path / "store")
    with pytest.raises(DataError, match=r"1 of 8 train .*: 00\.png has no text -> .*data\.incomplete=use"):
        prepared(build_spec(values(tmp_path / "data", data={"incomplete": "fail"})), store=store)
    reasons = {
        "use": "examples with fewer than 2 of the model's modalities",
        "skip": "examples that lack a modality",
    }
    for incomplete, reason in reasons.items():
        run = prepared(build_spec(values(tmp_path / "data", data={"incomplete": incomplete})), store=store)
        assert run.data.left_out == {reason: 2} and run.data.lacks == {}
        assert (sum(run.data.clients.values()), run.data.num_test) == (7, 3)
    run = prepared(build_spec(values(tmp_path / "data", model=SUPERVISED)), store=store)
    assert run.data.left_out == {} and sum(run.data.clients.values()) == 8, "it needs no text"


def test_an_unreadable_picture_for_validation_is_found_first(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data", rows_of(tmp_path / "data", splits=("train", "train", "validation", "test")))
    (tmp_path / "data/02.png").write_bytes(b"no picture")
    store = LocalStore(tmp_path / "store")
    with pytest.raises(DataError, match=r"1 of 3 validation .*02\.png"):
        prepared(build_spec(values(tmp_path / "data")), store=store)
    run = prepared(build_spec(values(tmp_path / "data", data={"on_bad_example": "skip"})), store=store)
    assert run.data.num_validation == 2 and run.data.left_out == {"unreadable examples": 1}


def test_what_no_row_has_is_named_with_the_columns_that_there_are(tmp_path: Path) -> None:
    rows = [{**row, "caption": row["text"]} for row in rows_of(tmp_path)]
    write_jsonl(tmp_path, [{key: row[key] for key in row if key not in ("text", "label")} for row in rows])
    for changes, words in (({}, "text"), ({"model": SUPERVISED}, "label")):
        match = rf"that the spec needs: {words}; .*caption.* -> name its column in data\.columns"
        with pytest.raises(DataError, match=match):
            prepared(build_spec(values(tmp_path, **changes)), store=LocalStore(tmp_path / "store"))
    (tmp_path / "spec.json").write_text(json.dumps(values(tmp_path)))
    ended = CliRunner().invoke(app, ["plan", str(tmp_path / "spec.json")])
    assert isinstance(ended.exception, DataError), "a plan says so, too"


def test_a_table_without_rows_for_a_split_is_refused_where_it_needs_them(tmp_path: Path) -> None:
    write_jsonl(tmp_path, rows_of(tmp_path, splits=("train",)))
    with pytest.raises(DataError, match="no test example"):
        prepared(build_spec(values(tmp_path)), store=LocalStore(tmp_path / "store"))


@pytest.mark.parametrize("given", [True, False])
def test_folders_of_clients_share_their_classes(tmp_path: Path, given: bool) -> None:
    """Each folder, a linked one too, has a part of the classes: their numbers agree if the spec names all of them."""
    for who, splits in (("server", ("test",)), ("client-000", ("train",)), ("client-001", ("train",))):
        rows = rows_of(tmp_path / who, count=4, splits=splits)
        if who == "client-001":
            rows = [{**row, "label": "dog"} for row in rows]
        write_jsonl(tmp_path / who, rows)
    (tmp_path / "client-001").rename(tmp_path / "elsewhere")
    (tmp_path / "client-001").symlink_to(tmp_path / "elsewhere")
    spec = values(
        tmp_path / "{client}",
        data={"classes": ["cat", "dog"]} if given else {},
        federation={"num_clients": 2, "partition": {"kind": "local"}},
        model=SUPERVISED,
    )
    store = LocalStore(tmp_path / "store")
    if given:
        run = prepared(build_spec(spec), store=store)
        assert run.data.clients == {"client-000": 4, "client-001": 4} and run.data.num_test == 4
    else:
        with pytest.raises(DataError, match=r"classes of client-001 .*cat -> .*data\.classes"):
            prepared(build_spec(spec), store=store)


def test_asking_for_validation_twice_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path, rows_of(tmp_path, splits=("train", "validation", "test")))
    with pytest.raises(SpecError, match="validation_fraction"):
        prepared(build_spec(values(tmp_path, data={"validation_fraction": 0.2})), store=LocalStore(tmp_path / "s"))
