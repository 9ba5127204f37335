"""Supervised learning of images and sounds, and data that users bring in folders, run from end to end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import own_data
from tests.e2e.command import AUDIO, IMAGE, committed, succeed, together, write_spec

COCO_MINI = Path(__file__).parents[2].parent / "shared" / "data" / "coco-mini"

pytestmark = pytest.mark.slow


def test_supervised_image_and_audio(tmp_path: Path) -> None:
    """On built-in scenes, and on classes of pictures and sounds at two sampling rates whose sites are the clients."""
    own_data.write_advance(tmp_path / "advance")
    supervised = {
        "model__encoders": {"image": IMAGE, "audio": AUDIO},
        "model__objective": {"kind": "supervised", "hidden": 16, "dropout": 0.1},
        "stages__rounds": [1, 1],
    }
    scenes = write_spec(tmp_path, name="scenes.yaml", **supervised, federation__partition={"kind": "dirichlet", "alpha": 5})
    advance = own_data.advance_spec(tmp_path / "advance")
    by_site = {"kind": "by_group", "pattern": r"^(?P<group>\d)_"}
    places = write_spec(
        tmp_path, name="places.yaml", **advance, strategy="progressive", name_="",
        federation={"num_clients": 8, "partition": {**by_site, "min_size": 1}, "fraction_fit": 0.5},
    ) if False else write_spec(tmp_path, name="places.yaml", **advance, strategy="progressive")
    drawn, brought, shared = together(
        partial(succeed, "run", scenes, "-o", "store.uri=./scenes", "--json", cwd=tmp_path),
        partial(succeed, "run", places, "-o", "store.uri=./places", "--json", cwd=tmp_path),
        partial(succeed, "partition", places, "--json", cwd=tmp_path),
    )
    for ended in (drawn, brought):
        metrics = ended.json["metrics"]
        assert {"test/accuracy", "test/precision", "test/recall", "test/f1", "test/loss"} <= metrics.keys()
        assert all(0 <= metrics[name] <= 1 for name in metrics if not name.endswith("loss"))
        for stage in ended.json["stages"]:
            assert stage["ledger"]["measured"]["bytes_up"] == stage["ledger"]["predicted"]["exchanged_bytes"]
    assert [stage["ledger"]["measured"]["bytes_down_frozen"] for stage in brought.json["stages"]] == [0, 0]
    assert [client["labels"] for client in shared.json["clients"]]


def test_captioned_images_on_disk(tmp_path: Path) -> None:
    """Eighty photographs where they are at hand, else drawn ones."""
