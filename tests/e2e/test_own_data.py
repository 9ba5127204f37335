"""Supervised learning of images and sounds, and data that users bring in folders, run from end to end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import own_data
from tests.e2e.command import AUDIO, IMAGE, Ended, succeed, together, write_spec

COCO_MINI = Path(__file__).parents[2].parent / "shared" / "data" / "coco-mini"

pytestmark = pytest.mark.slow


def exchanged_as_predicted(ended: Ended) -> bool:
    """Whether every stage sent what was predicted."""
    ledgers = [stage["ledger"] for stage in ended.json["stages"]]
    return all(ledger["measured"]["bytes_up"] == ledger["predicted"]["exchanged_bytes"] for ledger in ledgers)


def frozen_bytes(ended: Ended) -> list[float]:
    """Returns the bytes of frozen blocks that a client fetched, for each stage."""
    return [stage["ledger"]["measured"]["bytes_down_frozen"] for stage in ended.json["stages"]]


def test_supervised_images_and_sounds(tmp_path: Path) -> None:
    """Built-in scenes by Dirichlet shares, and folders of pictures and of sounds at two sampling rates, by site."""
    own_data.write_advance(tmp_path / "advance")
    supervised = {
        "model__encoders": {"image": IMAGE, "audio": AUDIO},
        "model__objective": {"kind": "supervised", "hidden": 16, "dropout": 0.1},
        "stages__rounds": [1, 1],
    }
    shares = {"kind": "dirichlet", "alpha": 5.0}
    scenes = write_spec(tmp_path, name="scenes.yaml", **supervised, federation__partition=shares)
    sites = {"kind": "by_group", "pattern": r"_(?P<group>[a-z]+)$"}
    places = write_spec(
        tmp_path,
        name="places.yaml",
        **own_data.advance_spec(tmp_path / "advance"),
        strategy="progressive",
        federation__partition=sites,
    )
    drawn, brought, shared = together(
        partial(succeed, "run", scenes, "-o", "store.uri=./scenes", "--json", cwd=tmp_path),
        partial(succeed, "run", places, "-o", "store.uri=./places", "--json", cwd=tmp_path),
        partial(succeed, "partition", places, "--json", cwd=tmp_path),
    )
    for ended in (drawn, brought):
        metrics = ended.json["metrics"]
        assert {"test/accuracy", "test/precision", "test/recall", "test/f1", "test/loss"} <= metrics.keys()
        assert all(0 <= value <= 1 for name, value in metrics.items() if not name.endswith("loss"))
        assert exchanged_as_predicted(ended)
    frozen = [
        [stage["ledger"]["measured"]["bytes_down_frozen"] for stage in e.json["stages"]] for e in (drawn, brought)
    ]
    assert frozen[0][0] == 0 < frozen[0][1] and frozen[1] == [0, 0]  # layer-wise freezes, progressive does not
    assert [client["labels"] for client in shared.json["clients"]] == [{"forest": 6, "sea": 0}, {"forest": 0, "sea": 6}]


def test_captioned_photographs(tmp_path: Path) -> None:
    """The photographs of coco-mini with a tiny model; loader workers read and crop them."""
    if not COCO_MINI.is_dir():
        pytest.skip(f"there are no photographs at {COCO_MINI}")
    spec = write_spec(
        tmp_path,
        data={"source": "coco", "root": str(COCO_MINI), "workers": 2, "augment": True},
        strategy="end_to_end",
        stages__rounds=[1, 1],
        training__batch_size=16,
        launch={"kind": "in_process"},
    )
    ended = succeed("run", spec, "--json", cwd=tmp_path)
    metrics = ended.json["metrics"]
    for name in ("t2i", "i2t"):
        recalls = [metrics[f"test/{name}/R@{k}"] for k in (1, 5, 10, 50)]
        assert recalls == sorted(recalls) and recalls[-1] > 0
    run = json.loads((tmp_path / "lwfed-runs/runs" / ended.json["run_id"] / "run.json").read_bytes())
    assert run["data"]["num_train"] == 80 and sum(run["data"]["clients"].values()) == 80
    assert [stage["rounds"] for stage in ended.json["stages"]] == [2] and exchanged_as_predicted(ended)
    assert "reading train files 80/80" in ended.err
