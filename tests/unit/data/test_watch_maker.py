"""The smartwatch's set becomes windows by subject, wherever the package lies; anything else is refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.data.makers import watch
from lwfed.data.protocol import open_source
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError, SpecError, UnreachableError

MEMBER = "seglearn/data/watch_dataset.npy"
CLASSES = ["PEN", "ABD", "ROW"]


def values(**changes: Any) -> dict[str, Any]:
    """Returns a set of the same form: four subjects, each doing three exercises for 300 samples or a few more."""
    rng = np.random.default_rng(0)
    numbers = np.arange(12)
    return {
        "X": [rng.normal(size=(300 + n, 6)) for n in numbers],
        "y": numbers % 3,
        "subject": 7 + numbers // 3,
        "side": (numbers % 2).astype(float),
        "X_labels": list(watch.COLUMNS),
        "y_labels": CLASSES,
        **changes,
    }


def write_set(path: Path, **changes: Any) -> Path:
    """Writes a set as the package has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array(values(**changes), dtype=object), file, protocol=2)
    return path


def write_wheel(path: Path, data: Path) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(data, MEMBER)
    return path


def test_windows_overlap_by_half_and_belong_to_their_subject(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set.npy")
    made = watch.make(tmp_path / "made", source=data)
    assert made["splits"] == {"train": {"windows": 18, "subjects": 2}, "test": {"windows": 18, "subjects": 2}}
    source = open_source(DataSpec(source="har", root=str(tmp_path / "made")))
    assert source.classes == tuple(CLASSES) and source.left_out() == {}
    whole = values()
    for split, first in (("train", 0), ("test", 6)):
        for n, example in enumerate(source.examples(split)):
            recording, start = first + n // 3, 64 * (n % 3)
            signal = whole["X"][recording][start : start + 128].astype(np.float32)
            assert np.array_equal(source.series(example, "accelerometer"), signal[:, :3])
            assert np.array_equal(source.series(example, "gyroscope"), signal[:, 3:])
            assert example.label == recording % 3 and example.fields["subject"] == f"{7 + recording // 3:02d}"


def test_every_place_of_the_package_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages"
    data = write_set(package / MEMBER)
    (package / "seglearn" / "__init__.py").write_text("raise AssertionError('it is imported')\n")
    (tmp_path / "wheels").mkdir()
    wheel = write_wheel(tmp_path / "wheels" / "seglearn-1.2.5-py3-none-any.whl", data)
    monkeypatch.syspath_prepend(str(package))
    for n, place in enumerate((None, data, package, package / "seglearn", wheel, wheel.parent)):
        watch.make(tmp_path / f"{n}", source=place)
    files = [sorted((p.relative_to(tmp_path / f"{n}"), p.read_bytes()) for p in (tmp_path / f"{n}").rglob("*.*"))
             for n in range(6)]  # fmt: skip
    assert len(files[0]) == 9 and all(other == files[0] for other in files)


@pytest.mark.parametrize(
    "changes",
    [
        {"X_labels": ["ax", "ay", "az", "gx", "gy", "gz"]},
        {"y": np.full(12, 3)},
        {"X": [np.zeros((300, 5))] * 12},
        {"X": [np.full((300, 6), np.nan)] * 12},
        {"subject": np.arange(3)},
    ],
)
def test_another_set_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not the smartwatch's data set.*pip install seglearn==1\.2\.5"):
        watch.make(tmp_path / "made", source=write_set(tmp_path / "set.npy", **changes))


def test_where_nothing_is_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PACKAGE", "seglearn_that_nobody_has")
    for place in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"pip install seglearn==1\.2\.5"):
            watch.make(tmp_path / "made", source=place)
    monkeypatch.undo()
    empty = tmp_path / "seglearn-1.2.5-py3-none-any.whl"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(DataError, match="pip download"):
        watch.make(tmp_path / "made", source=empty)
    (tmp_path / "set.npy").write_bytes(pickle.dumps(print))
    with pytest.raises(DataError, match=r"builtins\.print"):
        watch.make(tmp_path / "made", source=tmp_path / "set.npy")
    assert not (tmp_path / "made").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set.npy")
    with pytest.raises(SpecError, match=r"already has set\.npy"):
        watch.make(tmp_path, source=data)
    with pytest.raises(SpecError, match="is no folder"):
        watch.make(data, source=data)
    with pytest.raises(UnreachableError, match="for the data"):
        watch.make(data / "made", source=data)


def test_the_command_makes_it_and_says_what(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set.npy")
    call = CliRunner().invoke(app, ["data", "make", "watch", str(tmp_path / "made"), "--from", str(data), "--json"])
    assert call.exit_code == 0
    made = json.loads(call.stdout.splitlines()[-1])
    assert made["folder"] == str(tmp_path / "made") and made["classes"] == CLASSES
    assert made["splits"]["test"] == {"windows": 18, "subjects": 2}
