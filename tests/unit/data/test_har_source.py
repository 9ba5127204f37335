"""Windows of inertial sensors are read as they were written, by subject; what is damaged is refused by name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lwfed.data.batches import check_examples, eval_batches, train_batches
from lwfed.data.digests import FileDigests, changed_files, list_files, version_of
from lwfed.data.inputs import InputSettings, Window
from lwfed.data.left_out import ENDINGS, NOT_READ
from lwfed.data.partition import partition
from lwfed.data.protocol import Example, Source, open_source
from lwfed.data.series import standardised
from lwfed.spec.data import DataSpec, PartitionSpec
from lwfed.types.errors import DataError, SpecError
from tests import inertial

SENSORS = ("accelerometer", "gyroscope")
SHAPE = Window(inertial.LENGTH, 3)
SETTINGS = InputSettings(SENSORS, windows=dict.fromkeys(SENSORS, SHAPE))
WRITERS: dict[str, Callable[[Path], Path]] = {
    "text": inertial.write_har,
    "arrays": lambda root: inertial.write_har(root, arrays=True),
    "pickles": inertial.write_pickles,
    "old pickles": lambda root: inertial.write_pickles(root, protocol=2),
}


def opened(root: Path, **keys: Any) -> Source:
    return open_source(DataSpec(source="har", root=str(root), **keys))


def every(source: Source) -> list[Example]:
    return [example for split in ("train", "validation", "test") for example in source.examples(split)]


@pytest.mark.parametrize("layout", WRITERS)
def test_windows_are_read_as_they_were_written(layout: str, tmp_path: Path) -> None:
    source = opened(WRITERS[layout](tmp_path))
    pickled = "pickles" in layout
    for split in inertial.SUBJECTS:
        for short, sensor in inertial.SENSORS.items():
            written = inertial.windows(split, short)
            of_split = [e for e in every(source) if (e in source.examples("test")) == (split == "test")]
            numbers = [int(example.id.rpartition("/")[2]) - (0 if pickled else 1) for example in of_split]
            assert sorted(numbers) == list(range(len(written)))
            for n, example in zip(numbers, of_split, strict=True):
                assert np.array_equal(source.series(example, sensor), written[n])
                assert example.label == n % 2
                assert int(example.fields["subject"]) == inertial.SUBJECTS[split][n // inertial.PER_SUBJECT]
    assert len(source.examples("validation")) == (3 if pickled else 0)
    assert len({example.id for example in every(source)}) == 24
    assert source.classes[:2] == (("WALKING", "WALKING_UPSTAIRS") if pickled else ("WALKING", "SITTING"))


def test_each_axis_of_each_window_is_standardised(tmp_path: Path) -> None:
    source = opened(inertial.write_har(tmp_path))
    examples = source.examples("test")
    batches = list(eval_batches(source, examples=examples, settings=SETTINGS, batch_size=4, workers=0))
    assert [len(batch.ids) for batch in batches] == [4, 2]
    for short, sensor in inertial.SENSORS.items():
        found = torch.cat([batch.inputs[sensor] for batch in batches]).numpy()
        raw = inertial.windows("test", short).astype(np.float64)
        expected = (raw - raw.mean(axis=1, keepdims=True)) / (raw.std(axis=1, keepdims=True) + 1e-5)
        assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-6)
    still = standardised(np.full(SHAPE, 7.0), window=SHAPE, what="it")
    assert np.array_equal(still, np.zeros(SHAPE, np.float32))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(workers: int, tmp_path: Path) -> None:
    def seen(number: int) -> list[torch.Tensor]:
        source = opened(inertial.write_har(tmp_path / f"{number}"))
        batches = train_batches(
            source, examples=source.examples("train"), settings=SETTINGS, batch_size=5, seed="5", first_view=0,
            augment=True, workers=number, num_batches=8,
        )  # fmt: skip
        return [batch.inputs[sensor] for batch in batches for sensor in SENSORS]

    assert all(torch.equal(a, b) for a, b in zip(seen(7), seen(workers), strict=True))


def test_subjects_are_clients_and_may_be_set_apart(tmp_path: Path) -> None:
    inertial.write_har(tmp_path / "har")
    source = opened(tmp_path / "har")
    by_subject = PartitionSpec(kind="by_group", field="subject")
    shares = partition(source.examples("train"), plan=by_subject, num_clients=3, seed="0")
    people = [{source.examples("train")[n].fields["subject"] for n in share} for share in shares.values()]
    assert people == [{"01"}, {"03"}, {"04"}]
    apart = opened(tmp_path / "har", validation_subjects=1)
    assert {example.fields["subject"] for example in apart.examples("validation")} == {"04"}
    assert len(apart.examples("train")) == 12 and apart.version() != source.version()
    assert apart.examples("test") == source.examples("test")
    for keys in ({"validation_subjects": 3}, {"validation_subjects": 1, "validation_fraction": 0.1}):
        with pytest.raises(SpecError, match=r"data\.validation_subjects"):
            opened(tmp_path / "har", **keys)
    inertial.write_pickles(tmp_path / "pickles")
    clients = opened(tmp_path / "pickles")
    names = partition(
        clients.examples("train"), plan=PartitionSpec(kind="by_group", field="client"), num_clients=6, seed="0"
    )
    assert len(names) == 6
    with pytest.raises(SpecError, match=r"dev\.pkl"):
        opened(tmp_path / "pickles", validation_subjects=1)


@pytest.mark.parametrize("layout", WRITERS)
def test_data_are_known_by_their_content(layout: str, tmp_path: Path) -> None:
    one, other = (opened(WRITERS[layout](tmp_path / name)) for name in "ab")
    digests = FileDigests()
    listing = list_files(one, digests)
    assert version_of(one, listing) == version_of(other, list_files(other, digests))
    last = sorted(other.files[other.examples("test")[0].id])[-1]
    path = tmp_path / "b" / last
    path.write_bytes(path.read_bytes()[:-2] + b"9\n")
    changed = changed_files(other, every(other), listing=listing, digests=digests)
    assert set(changed.values()) == {last}
    sharing = {name for name, paths in other.files.items() if last in paths}
    assert changed.keys() == sharing and len(sharing) == 6, "all that the file holds"


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    inertial.write_har(tmp_path)
    (tmp_path / "train" / "Inertial Signals" / "total_acc_x_train.txt").write_text("0\n")
    (tmp_path / "features_info.md").write_text("further features")
    assert opened(tmp_path).left_out() == {NOT_READ: 1, ENDINGS: 1}


def test_a_value_that_is_no_number_is_left_out_or_stops(tmp_path: Path) -> None:
    inertial.write_har(tmp_path)
    path = tmp_path / "train" / "Inertial Signals" / "body_gyro_y_train.txt"
    lines = path.read_text().splitlines()
    lines[4] = " ".join([*lines[4].split()[:-1], "NaN"])
    path.write_text("\n".join(lines))
    source = opened(tmp_path)
    bad = check_examples(source, examples=source.examples("train"), modalities=SENSORS, workers=1)
    assert list(bad) == ["train/5"] and "gyroscope of train/5" in bad["train/5"]
    assert check_examples(source, examples=source.examples("train"), modalities=SENSORS[:1]) == {}


FIELDS = "train/Inertial Signals/body_acc_x_train.txt"
LATER = {
    "columns": (FIELDS, lambda text: text.replace("\n", " 1.0\n", 1), "body_acc_x_train.txt is no table of numbers"),
    "text": (FIELDS, lambda text: text.replace("e", "x", 1), "body_acc_x_train.txt is no table of numbers"),
    "rows": (FIELDS, lambda text: text.partition("\n")[2], "body_acc_x_train.txt has 17 windows for 18 labels"),
    "empty": (FIELDS, lambda _: "", "body_acc_x_train.txt"),
    "samples": (
        FIELDS,
        lambda text: "".join(f"{' '.join(line.split()[1:])}\n" for line in text.splitlines()),
        r"body_acc_y_train.txt has 32 samples per window, and body_acc_x_train.txt has 31",
    ),
}
"""Damage to a file of signals -> the file, what is done to its text, and words of the error."""


@pytest.mark.parametrize("damage", LATER)
def test_a_damaged_file_of_signals_is_named_for_each_example_and_read_once(damage: str, tmp_path: Path) -> None:
    inertial.write_har(tmp_path)
    name, change, words = LATER[damage]
    path = tmp_path / name
    path.write_text(change(path.read_text()))
    source = opened(tmp_path)
    for example in source.examples("train")[:2]:
        with pytest.raises(DataError, match=words):
            source.series(example, "accelerometer")
        path.unlink(missing_ok=True)
        assert source.series(example, "gyroscope").shape == SHAPE


AT_ONCE = {
    "no labels": ("train/y_train.txt", None, r"there is no file .*y_train\.txt"),
    "no subjects": ("test/subject_test.txt", None, r"there is no file .*subject_test\.txt"),
    "no signal": (FIELDS, None, r"there is no file .*body_acc_x_train\.txt"),
    "no classes": ("activity_labels.txt", None, r"there is no file .*activity_labels\.txt"),
    "classes": ("activity_labels.txt", "1 WALKING\n3 SITTING\n", "must have the lines `1 NAME`"),
    "range": ("train/y_train.txt", "3\n" * 18, "line 1 of .* has the label 3"),
    "zero": ("train/y_train.txt", "1\n0\n" * 9, "line 2 of .* has the label 0"),
    "text": ("train/y_train.txt", "1\nwalking\n", "line 2 of .*is no whole number: walking"),
    "fewer": ("train/subject_train.txt", "1\n" * 17, r"y_train\.txt has 18 lines and subject_train\.txt has 17"),
    "none": ("test/y_test.txt", "", r"y_test\.txt has 0 lines and subject_test\.txt has 6"),
}
"""Damage to UCI-HAR's files -> the file, its new text (None: it is missing), and words of the error."""


@pytest.mark.parametrize("damage", AT_ONCE)
def test_what_is_missing_or_wrong_is_refused_before_any_work(damage: str, tmp_path: Path) -> None:
    inertial.write_har(tmp_path)
    name, text, words = AT_ONCE[damage]
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["objects", "flat", "integers", "short", "broken"])
def test_an_array_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    inertial.write_har(tmp_path, arrays=True)
    path = tmp_path / "train" / "Inertial Signals" / "body_acc_train.npy"
    whole = np.load(path)
    others = {
        "objects": np.array([{}], dtype=object), "flat": whole[:, :, 0], "integers": whole.astype(int),
        "short": whole[1:],
    }  # fmt: skip
    if kind == "broken":
        path.write_bytes(path.read_bytes()[:90])
    else:
        np.save(path, others[kind])
    source = opened(tmp_path)
    with pytest.raises(DataError, match=r"body_acc_train\.npy"):
        source.series(source.examples("train")[0], "accelerometer")


ITEM = ["1", 0, 1, np.zeros(SHAPE)]
PICKLED: dict[str, Any] = {
    "other globals": (print, r"builtins\.print"),
    "no list": ({"1": 2}, "is not .subject, number, label, window"),
    "three": ([ITEM[:3]], "item 0 of .* is not"),
    "no array": ([[*ITEM[:3], [1.0]]], "item 0 of .* is not"),
    "label": ([[*ITEM[:2], 6, ITEM[3]]], "item 0 of .* has the label 6"),
    "negative": ([ITEM, [*ITEM[:2], -1, ITEM[3]]], "item 1 of .* has the label -1"),
    "truth": ([[*ITEM[:2], True, ITEM[3]]], "has the label True"),
    "flat": ([[*ITEM[:3], np.zeros(4)]], r"has float64 of shape \[4\]"),
    "integers": ([[*ITEM[:3], np.zeros(SHAPE, int)]], "has int64"),
    "twice": ([ITEM, ITEM], "has the window 0 twice"),
    "other windows": ([["2", *ITEM[1:]]], "name other windows or labels"),
}
"""Content of a client's pickle -> words of the error."""


@pytest.mark.parametrize("damage", PICKLED)
def test_a_wrong_pickle_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    inertial.write_pickles(tmp_path)
    content, words = PICKLED[damage]
    for sensor in inertial.SENSORS:
        path = tmp_path / sensor / "uci-har" / "alpha50" / "1-0.pkl"
        if sensor == "acc" or damage != "other windows":
            path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=words):
        opened(tmp_path)


def test_pickles_without_a_partner_or_of_two_partitions_are_refused(tmp_path: Path) -> None:
    inertial.write_pickles(tmp_path)
    acc = tmp_path / "acc" / "uci-har"
    (acc / "alpha01").mkdir()
    (acc / "alpha01" / "1-0.pkl").write_bytes((acc / "alpha50" / "1-0.pkl").read_bytes())
    with pytest.raises(DataError, match="pickles in 2 folders"):
        opened(tmp_path)
    (acc / "alpha01" / "1-0.pkl").unlink()
    (tmp_path / "gyro" / "uci-har" / "alpha50" / "3-1.pkl").unlink()
    with pytest.raises(DataError, match=r"there is no file .*3-1\.pkl"):
        opened(tmp_path)


def test_windows_of_another_shape_than_the_encoder_s_are_refused_by_name(tmp_path: Path) -> None:
    source = opened(inertial.write_har(tmp_path))
    other = InputSettings(SENSORS, windows=dict.fromkeys(SENSORS, Window(128, 3)))
    with pytest.raises(DataError, match=r"accelerometer of test/1 has the shape \[32, 3\].*128 samples of 3 axes"):
        next(eval_batches(source, examples=source.examples("test"), settings=other, batch_size=2, workers=0))
