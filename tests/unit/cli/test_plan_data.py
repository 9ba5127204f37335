"""A plan needs no data, but does not take broken data for absent ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.types.errors import DataError
from tests.tiny import VALUES

ROOT = "root"


def planned(folder: Path, **data: object) -> object:
    """Plans on COCO data in a folder; returns the error, if any."""
    values = {**VALUES, "data": {"source": "coco", "root": str(folder / ROOT), "workers": 0, **data}}
    (folder / "spec.json").write_text(json.dumps(values))
    return CliRunner().invoke(app, ["plan", str(folder / "spec.json"), "--json"]).exception


def test_absent_data_are_not_needed(tmp_path: Path) -> None:
    assert planned(tmp_path) is None
    assert planned(tmp_path, root=str(tmp_path / "none/{client}")) is not None, "which needs a local partition"


@pytest.mark.parametrize("broken", ["empty", "file", "below a file", "link to nothing", "no json", "loop"])
def test_broken_data_are_not_absent(broken: str, tmp_path: Path) -> None:
    root = tmp_path / ROOT
    match broken:
        case "empty":
            root.mkdir()
        case "file":
            root.touch()
        case "below a file":
            (tmp_path / "file").touch()
            error = planned(tmp_path, root=str(tmp_path / "file" / "x"))
            assert isinstance(error, DataError) and "file" in error.problem
            return
        case "link to nothing":
            root.symlink_to(tmp_path / "gone")
        case "no json":
            for name in ("train2017", "val2017", "annotations"):
                (root / name).mkdir(parents=True)
            for name in ("train2017", "val2017"):
                (root / "annotations" / f"captions_{name}.json").write_text("{")
        case _:
            root.symlink_to(root)
    error = planned(tmp_path)
    assert isinstance(error, DataError) and error.remedy and ROOT in error.problem
