"""Laws of what data leave out: every file and caption is part of an example, or counted by its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.data.partition import split_validation
from lwfed.data.protocol import open_source
from lwfed.run import runs
from lwfed.spec.load import build_spec
from lwfed.store.local import LocalStore
from tests.e2e import own_data
from tests.tiny import VALUES, prepared

ENCODERS = {
    "image": VALUES["model"]["encoders"]["image"],
    "audio": {
        "family": "ast",
        "config": {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "num_mel_bins": 32, "max_length": 72,
        },
    },
}  # fmt: skip


def coco(folder: Path) -> dict[str, Any]:
    own_data.write_coco(folder)
    return {**VALUES, "data": {"source": "coco", "root": str(folder), "workers": 0}}


def advance(folder: Path) -> dict[str, Any]:
    own_data.write_advance(folder)
    model = {"encoders": ENCODERS, "objective": {"kind": "supervised"}}
    return {**VALUES, "data": {"source": "advance", "root": str(folder), "workers": 0}, "model": model}


def note(folder: Path, *, captions: tuple[tuple[int, str], ...] = (), images: tuple[str, ...] = ()) -> None:
    """Adds captions, as (image id, text), and images from id 500 on to the training json."""
    path = folder / "annotations/captions_train2017.json"
    tree = json.loads(path.read_bytes())
    tree["images"] += [{"id": 500 + n, "file_name": name} for n, name in enumerate(images)]
    tree["annotations"] += [{"id": 900 + n, "image_id": image, "caption": c} for n, (image, c) in enumerate(captions)]
    path.write_text(json.dumps(tree))


def add(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


CASES = [
    # (data, what is added, what is left out)
    (coco, (), {}),
    (coco, ("train2017/extra.jpg", "val2017/deep/extra.JPG"), {"images without captions": 2}),
    (coco, ("train2017/notes.txt", "val2017/x.png"), {"files with other endings": 2}),
    (coco, ("train2017/.DS_Store", "val2017/.thumbs/x.jpg"), {"hidden files": 2}),
    (advance, (), {}),
    (advance, ("vision/sea/1.bmp", "sound/sea/x.mp3", "readme.txt"), {"files with other endings": 3}),
    (advance, ("vision/sea/deep/1.jpg", "vision/1.jpg", "sound/2.wav", "other/3.wav"), {"files in other folders": 4}),
    (advance, ("vision/.x.jpg", "vision/sea/.DS_Store", ".git/config"), {"hidden files": 3}),
]


@pytest.mark.parametrize(("make", "added", "expected"), CASES)
def test_files_of_no_example_are_counted(make: Any, added: tuple[str, ...], expected: Any, tmp_path: Path) -> None:
    spec = build_spec(make(tmp_path))
    before = open_source(spec.data)
    for name in added:
        add(tmp_path / name)
    source = open_source(spec.data)
    assert dict(source.left_out()) == expected
    assert source.examples("train") == before.examples("train") and source.examples("test") == before.examples("test")


@pytest.mark.parametrize(
    ("captions", "images", "expected"),
    [
        (((0, "  "), (0, "\n\t"), (1, "")), (), {"blank captions": 3}),
        (((500, " "),), ("gone.jpg",), {"blank captions": 1, "images without captions": 1}),
        ((), ("gone.jpg", "also.jpg"), {"images without captions": 2}),
        (((0, "one more"),), (), {}),
    ],
)
def test_blank_captions_and_images_without_captions_are_counted(
    captions: Any, images: Any, expected: Any, tmp_path: Path
) -> None:
    spec = build_spec(coco(tmp_path))
    note(tmp_path, captions=captions, images=images)
    assert dict(open_source(spec.data).left_out()) == expected


def test_the_counts_are_in_the_partition_and_in_the_run(tmp_path: Path) -> None:
    values = coco(tmp_path / "data")
    note(tmp_path / "data", captions=((0, " "),))
    add(tmp_path / "data/train2017/notes.txt")
    (tmp_path / "data/train2017/000003.jpg").write_bytes(b"no image")
    (tmp_path / "data/val2017/000021.jpg").unlink()
    values["data"]["on_bad_example"] = "skip"
    expected = {"blank captions": 1, "files with other endings": 1, "unreadable examples": 2}
    store = LocalStore(tmp_path / "store")
    run = prepared(build_spec({**values, "store": {"uri": store.uri}}), store=store)
    assert run.data.left_out == expected and runs.read_run(store, run.run_id).data.left_out == expected
    (tmp_path / "spec.json").write_text(json.dumps({**values, "store": {"uri": store.uri}}))
    ended = CliRunner().invoke(app, ["partition", str(tmp_path / "spec.json"), "--json"])
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["left_out"] == {**expected, "unreadable examples": 1}, "of the training examples alone"
    assert sum(client["num_examples"] for client in told["clients"]) == 11


def test_clients_are_counted_by_the_groups_that_are_left(tmp_path: Path) -> None:
    """A group of examples that are skipped or set apart for validation is no client."""
    values = coco(tmp_path / "data")
    store = LocalStore(tmp_path / "store")
    for name in ("000010", "000011"):
        (tmp_path / f"data/train2017/{name}.jpg").write_bytes(b"no image")
    skipping = {**values, "data": {**values["data"], "on_bad_example": "skip"}}
    skipping["federation"] = {"partition": {"kind": "by_group", "pattern": "^0000(?P<group>[01])"}}
    run = prepared(build_spec({**skipping, "store": {"uri": store.uri}}), store=store)
    assert run.data.clients == {"client-000": 10}
    (tmp_path / "spec.json").write_text(json.dumps({**skipping, "store": {"uri": store.uri}}))
    ended = CliRunner().invoke(app, ["partition", str(tmp_path / "spec.json"), "--json"])
    assert [client["num_examples"] for client in json.loads(ended.stdout.splitlines()[-1])["clients"]] == [10]

    own_data.write_coco(tmp_path / "whole")
    values["data"] |= {"root": str(tmp_path / "whole"), "validation_fraction": 0.2}
    _, chosen = split_validation(open_source(build_spec(values).data).examples("train"), fraction=0.2)
    pattern = "|".join(example.fields["stem"] for example in chosen)
    values["federation"] = {"partition": {"kind": "by_group", "pattern": f"^(?P<group>{pattern}|0000)"}}
    run = prepared(build_spec(values), store=LocalStore(tmp_path / "other"))
    assert len(chosen) == 2 and run.data.clients == {"client-000": 10}


def test_every_clients_own_folder_is_counted(tmp_path: Path) -> None:
    values = {}
    for who in ("server", "client-000", "client-001"):
        values = coco(tmp_path / who)
        add(tmp_path / who / "train2017/notes.txt")
    values["data"]["root"] = str(tmp_path / "{client}")
    values["federation"] = {"num_clients": 2, "partition": {"kind": "local"}}
    run = prepared(build_spec(values), store=LocalStore(tmp_path / "store"))
    assert run.data.left_out == {"files with other endings": 3}


def test_drawn_data_leave_nothing_out(tmp_path: Path) -> None:
    run = prepared(build_spec(VALUES), store=LocalStore(tmp_path))
    assert run.data.left_out == {} and "left_out" not in run.to_values()["data"]
