"""Laws of tables with signals: one result whatever their format, and no work before all of them are known to fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lwfed.types.errors import DataError
from tests import inertial
from tests.laws.test_laws_prefix import prefix_metrics
from tests.tiny import Finished, run_tiny

SHORT = "stages.rounds=[1, 1]"
WRONG = "accelerometer/train/7.npy"
"""One of the second client's files, of the table's row 9."""


def run(store: Path, root: Path | str, *more: str) -> Finished:
    return run_tiny(store, *inertial.table_overrides(root, SHORT, *more))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return inertial.write_table(tmp_path / "data")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(tmp_path_factory.mktemp("store"), inertial.write_table(tmp_path_factory.mktemp("data")))


def test_it_is_trained_on_as_other_windows_are(trained: Finished) -> None:
    assert trained.run.data.clients == {"client-000": 6, "client-001": 6, "client-002": 6}
    assert trained.run.data.classes == ["down", "up"]
    for plan, cost in zip(trained.plans, trained.run.predicted, strict=True):
        measured = trained.summary["stages"][plan.stage - 1]["ledger"]["measured"]
        assert measured["bytes_up"] == cost["upload_bytes"] and measured["bytes_down"] == cost["download_bytes"]


@pytest.mark.parametrize("kind", ["csv", "CSV", "parquet", "jsonl cells", "parquet cells"])
def test_the_format_changes_no_bit(trained: Finished, tmp_path: Path, kind: str) -> None:
    assert run(tmp_path / "store", inertial.write_table(tmp_path / "data", kind=kind)).digest == trained.digest


def test_a_table_that_moved_is_the_same_data(trained: Finished, root: Path, tmp_path: Path) -> None:
    elsewhere = root.rename(tmp_path / "elsewhere")
    done = run(tmp_path / "store", elsewhere)
    assert done.digest == trained.digest and done.keys == trained.keys
    assert done.run.data.version == trained.run.data.version


def test_it_learns_what_tells_the_classes_apart(root: Path, tmp_path: Path) -> None:
    one = [f"model.encoders.{name}.blocks_per_stage=2" for name in inertial.SENSORS.values()]
    more = ("stages.rounds=[12]", "training.learning_rate=3.0e-3", "training.local_epochs=4")
    assert run(tmp_path / "store", root, *one, *more).summary["metrics"]["test/accuracy"] == 1.0


def test_cached_outputs_are_used(root: Path, tmp_path: Path) -> None:
    kept = run(tmp_path / "store", root, "levers.prefix_cache=always", "stages.rounds=[1, 2]")
    assert prefix_metrics(kept, 2)[-1]["prefix"] == dict.fromkeys(inertial.SENSORS.values(), "kept")


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (np.zeros((31, 3)), r"\(accelerometer/train/7\.npy\) has the shape \[31, 3\].* 32 samples of 3 axes"),
        (np.zeros((32, 2)), r"\(accelerometer/train/7\.npy\) has the shape \[32, 2\]"),
        (np.full((32, 3), np.nan), r"\(accelerometer/train/7\.npy\) has a value that is not a finite number"),
        (np.array(["a"]), r"accelerometer/train/7\.npy has <U1"),
    ],
)
def test_one_wrong_signal_is_named_before_any_work_or_left_out(
    root: Path, tmp_path: Path, signal: np.ndarray, words: str
) -> None:
    np.save(root / WRONG, signal)
    with pytest.raises(DataError, match=rf"1 of 18 train examples .*table\.csv: row 9: the .*{words}.* -> .*skip"):
        run(tmp_path / "store", root)
    assert not list((tmp_path / "store").glob("runs/*"))
    done = run(tmp_path / "store", root, "data.on_bad_example=skip")
    assert done.run.data.clients == {"client-000": 6, "client-001": 5, "client-002": 6}
    assert done.run.data.left_out == {"unreadable examples": 1}


def test_what_does_not_fit_one_encoder_may_fit_another(trained: Finished, root: Path, tmp_path: Path) -> None:
    """The outcome of a check is kept for the windows that it was made for."""
    longer = "model.encoders.accelerometer.config.length=64"
    with pytest.raises(DataError, match=r"none can be read: .*row 2: .*\[32, 3\].*64 samples of 3 axes"):
        run(tmp_path / "store", root, longer, "data.on_bad_example=skip")
    assert run(tmp_path / "store", root, "data.on_bad_example=skip").run.data.clients == trained.run.data.clients
    with pytest.raises(DataError, match=r"6 of 6 test examples cannot be read"):
        run(tmp_path / "store", root, longer)


def test_a_client_s_own_wrong_signal_is_named_before_any_work(root: Path, tmp_path: Path) -> None:
    for who in ("server", "client-000", "client-001"):
        shutil.copytree(root, tmp_path / "own" / who)
    np.save(tmp_path / "own/client-001" / WRONG, np.zeros((32, 4)))
    own = f"data.root={tmp_path}/own/{{client}}"
    with pytest.raises(DataError, match=r"client-001/table\.csv: row 9: .*7\.npy\) has the shape \[32, 4\]"):
        run(tmp_path / "store", root, own, "federation={num_clients: 2, partition: {kind: local}}")
    assert not list((tmp_path / "store").glob("runs/*"))


def test_a_signal_that_changes_after_the_check_is_named(root: Path, tmp_path: Path) -> None:
    def change(kind: str, values: dict[str, object]) -> None:
        if kind == "stage_started":
            np.save(root / WRONG, np.ones((32, 3)))

    done = run_tiny(tmp_path / "store", *inertial.table_overrides(root, SHORT), emit=change)
    for record in done.reported("round"):
        (failed,) = record["failed"].items()
        assert (
            failed[0] == "client-001"
            and f"1 file(s) of client-001 changed after the run was prepared, such as {WRONG}" in failed[1]
        )
