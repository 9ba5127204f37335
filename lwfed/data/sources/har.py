"""Windows of inertial sensors, recorded from several subjects: UCI-HAR as it is shipped, or fed-multimodal's pickles.

A file has the windows of many examples. It is read when the first of them is, and stays in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from lwfed.data.folders import alike, data_root, listing_digest, of_split, require_folder
from lwfed.data.left_out import NOT_READ, of_folders
from lwfed.data.pickles import read_pickle
from lwfed.data.protocol import Example, Signal, Waveform
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError, SpecError

SIGNALS = {"accelerometer": "body_acc", "gyroscope": "body_gyro"}
"""Sensor -> name of its files."""
AXES = ("x", "y", "z")
INERTIAL = "Inertial Signals"
PICKLES = {"accelerometer": "acc", "gyroscope": "gyro"}
"""Sensor -> folder of its pickles."""
PICKLED_CLASSES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
"""UCI-HAR's activities; the pickles have their numbers, from 0."""
PICKLED_SPLITS = {"test": "test", "dev": "validation"}
"""Name of a pickle -> its split; all others are for training."""
LAYOUT = (
    f"data.root needs train/ and test/ with y_*.txt, subject_*.txt and {INERTIAL}/, and activity_labels.txt; or acc/ "
    "and gyro/ with pickles"
)

Windows = Sequence[Signal] | Signal


@dataclass(frozen=True)
class Har:
    """Windows of an accelerometer and a gyroscope.

    Attributes:
        rows: Example id -> the part of the data that has it, and its number there.
        loaded: Part and sensor -> its windows, or why they cannot be read.
    """

    root: Path
    splits: Mapping[str, tuple[Example, ...]] = field(repr=False)
    classes: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]] = field(repr=False)
    rows: Mapping[str, tuple[str, int]] = field(repr=False)
    loaded: dict[tuple[str, str], Windows | DataError] = field(repr=False)
    lock: Lock = field(default_factory=Lock, repr=False)

    def examples(self, split: str) -> tuple[Example, ...]:
        """Returns the examples of `train`, `validation` or `test`."""
        return of_split(split, **self.splits)

    def version(self) -> str:
        """Returns the digest of the examples' names and splits."""
        entries = [(f"{split}:{example.id}", "") for split, examples in self.splits.items() for example in examples]
        return listing_digest("har", entries=entries)

    def left_out(self) -> Mapping[str, int]:
        """Counts the files that are not read, such as UCI-HAR's features and total acceleration."""
        used = {path for paths in self.files.values() for path in paths}
        return of_folders(self.root, used=used, endings={Path(path).suffix for path in used}, otherwise=NOT_READ)

    def image(self, example: Example) -> Image.Image:
        """Raises DataError, because there are no images."""
        raise DataError(f"{example.id} has no image", remedy="use encoders of the accelerometer and the gyroscope")

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        """Raises DataError, because there are no sounds."""
        raise DataError(f"{example.id} has no sound", remedy="use encoders of the accelerometer and the gyroscope")

    def series(self, example: Example, modality: str) -> Signal:
        """Reads the window."""
        part, row = self.rows[example.id]
        with self.lock:
            if (part, modality) not in self.loaded:
                self.loaded[part, modality] = _load(self.root, part, modality, count=self._count(part))
        windows = self.loaded[part, modality]
        if isinstance(windows, DataError):
            raise windows
        return windows[row]

    def _count(self, part: str) -> int:
        return sum(name == part for name, _ in self.rows.values())


def open_data(data: DataSpec) -> Har:
    """Opens windows of inertial sensors.

    Args:
        data: Its `root` is a folder with UCI-HAR's train/, test/ and activity_labels.txt, in which a sensor's three
            files of one axis each may be one array [windows, samples, axes], such as `body_acc_train.npy`; or one with
            fed-multimodal's pickles, of the same names in acc/ and gyro/.

    Raises:
        DataError: A file is missing or damaged, or a label is out of range.
        SpecError: Validation examples are asked for twice, or from all subjects.
    """
    root = data_root(data)
    pickled = (root / PICKLES["accelerometer"]).is_dir()
    found = _pickled(root) if pickled else _shipped(root)
    for split in ("train", "test"):
        if not found.examples(split):
            raise DataError(f"{root} has no windows for {split}", remedy=LAYOUT)
    wanted, train = data.own["validation_subjects"], found.examples("train")
    if wanted and (data.validation_fraction or found.examples("validation")):
        other = "`data.validation_fraction`" if data.validation_fraction else "the pickle dev.pkl"
        raise SpecError(f"`data.validation_subjects` and {other} both name validation examples", remedy="use one")
    subjects = sorted({example.fields["subject"] for example in train})
    if wanted >= len(subjects):
        raise SpecError(
            f"`data.validation_subjects` is {wanted}, but there are {len(subjects)} training subjects",
            remedy=f"set it to less than {len(subjects)}",
        )
    if not wanted:
        return found
    chosen = set(subjects[-wanted:])
    splits = {
        "train": tuple(example for example in train if example.fields["subject"] not in chosen),
        "validation": tuple(example for example in train if example.fields["subject"] in chosen),
        "test": found.examples("test"),
    }
    return replace(found, splits=splits)


def _shipped(root: Path) -> Har:
    """Opens UCI-HAR's layout; signals are read later."""
    labels = _lines(root / "activity_labels.txt")
    classes = tuple(line.partition(" ")[2].strip() for line in labels)
    if [line.partition(" ")[0] for line in labels] != [str(n) for n in range(1, len(labels) + 1)] or not all(classes):
        raise DataError(
            f"{root / 'activity_labels.txt'} must have the lines `1 NAME`, `2 NAME` ...", remedy="copy it again"
        )
    examples: dict[str, list[Example]] = {"train": [], "test": []}
    files: dict[str, tuple[str, ...]] = {}
    rows: dict[str, tuple[str, int]] = {}
    for split in examples:
        folder = require_folder(root / split, remedy=LAYOUT)
        target, people = folder / f"y_{split}.txt", folder / f"subject_{split}.txt"
        numbers, subjects = _numbers(target), _numbers(people)
        if len(numbers) != len(subjects):
            raise DataError(
                f"{target} has {len(numbers)} lines and {people.name} has {len(subjects)}", remedy="copy them again"
            )
        signals = [path for sensor in SIGNALS for path in _signal_files(root, split, sensor)]
        used = [root / "activity_labels.txt", target, people, *signals]
        paths = tuple(path.relative_to(root).as_posix() for path in used)
        for row, (number, subject) in enumerate(zip(numbers, subjects, strict=True)):
            if not 1 <= number <= len(classes):
                raise DataError(
                    f"line {row + 1} of {target} has the label {number}, which activity_labels.txt does not name",
                    remedy=f"labels are from 1 to {len(classes)}",
                )
            name = f"{split}/{row + 1}"
            examples[split].append(Example(id=name, label=number - 1, fields={"subject": f"{subject:02d}"}))
            files[name], rows[name] = paths, (split, row)
    return Har(root, {split: tuple(its) for split, its in examples.items()}, classes, files, rows, {})


def _signal_files(root: Path, split: str, sensor: str) -> list[Path]:
    """Returns a sensor's array, or its three files of text. Raises DataError if one is missing."""
    folder, name = root / split / INERTIAL, SIGNALS[sensor]
    array = folder / f"{name}_{split}.npy"
    paths = [array] if array.is_file() else [folder / f"{name}_{axis}_{split}.txt" for axis in AXES]
    for path in paths:
        _require_file(path)
    return paths


def _load(root: Path, split: str, sensor: str, *, count: int) -> Windows | DataError:
    """Reads a sensor's windows of a split, or returns why they cannot be read, so that no file is read again."""
    paths = _signal_files(root, split, sensor)
    try:
        if len(paths) == 1:
            return _of_count(_array(paths[0]), paths[0], count=count)
        axes = [_of_count(_table(path), path, count=count) for path in paths]
        for path, axis in zip(paths, axes, strict=True):
            if axis.shape != axes[0].shape:
                raise DataError(
                    f"{path} has {axis.shape[1]} samples per window, and {paths[0].name} has {axes[0].shape[1]}",
                    remedy="copy both again",
                )
        return np.stack(axes, axis=2)
    except DataError as error:
        return error


def _array(path: Path) -> Any:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no array: {error}", remedy="write it again with numpy.save") from None
    if found.ndim != 3 or found.dtype.kind != "f":
        raise DataError(
            f"{path} has {found.dtype} of shape {list(found.shape)}", remedy="it needs floats [windows, samples, axes]"
        )
    return found


def _table(path: Path) -> Any:
    try:
        return np.loadtxt(path, dtype=np.float32, comments=None, ndmin=2)
    except (ValueError, UserWarning) as error:
        raise DataError(
            f"{path} is no table of numbers: {str(error).partition(';')[0]}", remedy="copy it again"
        ) from None


def _of_count(windows: Any, path: Path, *, count: int) -> Any:
    if len(windows) != count:
        raise DataError(f"{path} has {len(windows)} windows for {count} labels", remedy="copy both again")
    return windows


def _lines(path: Path) -> list[str]:
    try:
        lines = _require_file(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text", remedy="copy it again") from None
    return [line for line in lines if line.strip()]


def _numbers(path: Path) -> list[int]:
    """Reads a file of one number per line, none below 0."""
    numbers = []
    for n, line in enumerate(_lines(path), start=1):
        if not line.strip().isdecimal():
            raise DataError(f"line {n} of {path} is no whole number: {line[:100]}", remedy="copy it again")
        numbers.append(int(line))
    return numbers


def _require_file(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"there is no file {path}{alike(path.parent, path.name)}", remedy=LAYOUT)
    return path


def _pickled(root: Path) -> Har:
    """Opens fed-multimodal's pickles, lists of [subject, number, label, window]; a pickle is a client's."""
    folders = {sensor: require_folder(root / name, remedy=LAYOUT) for sensor, name in PICKLES.items()}
    pickles = sorted(folders["accelerometer"].rglob("*.pkl"))
    parents = {path.parent for path in pickles}
    if len(parents) != 1:
        raise DataError(
            f"{folders['accelerometer']} has pickles in {len(parents)} folders", remedy="keep those of one partition"
        )
    examples: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    files: dict[str, tuple[str, ...]] = {}
    rows: dict[str, tuple[str, int]] = {}
    loaded: dict[tuple[str, str], Windows | DataError] = {}
    for path in pickles:
        partner = folders["gyroscope"] / path.relative_to(folders["accelerometer"])
        both = {"accelerometer": path, "gyroscope": _require_file(partner)}
        items = {sensor: list(_items(place)) for sensor, place in both.items()}
        names = {sensor: [item[:3] for item in its] for sensor, its in items.items()}
        if names["accelerometer"] != names["gyroscope"]:
            raise DataError(f"{path} and {partner} name other windows or labels", remedy="make both again")
        for sensor, its in items.items():
            loaded[path.stem, sensor] = [window for *_, window in its]
        for row, (subject, number, label, _) in enumerate(items["accelerometer"]):
            name = f"{path.stem}/{number}"
            if name in rows:
                raise DataError(f"{path} has the window {number} twice", remedy="make it again")
            example = Example(id=name, label=label, fields={"subject": subject.zfill(2), "client": path.stem})
            examples[PICKLED_SPLITS.get(path.stem, "train")].append(example)
            files[name] = tuple(place.relative_to(root).as_posix() for place in both.values())
            rows[name] = (path.stem, row)
    return Har(root, {split: tuple(its) for split, its in examples.items()}, PICKLED_CLASSES, files, rows, loaded)


def _items(path: Path) -> Iterator[tuple[str, str, int, Signal]]:
    """Yields a pickle's windows: subject, number, label and window [T, C]."""
    items = read_pickle(path)
    for n, item in enumerate(items if isinstance(items, list) else [None]):
        if not isinstance(item, list | tuple) or len(item) != 4 or not isinstance(item[3], np.ndarray):
            raise DataError(
                f"item {n} of {path} is not [subject, number, label, window]", remedy="make it by fed-multimodal"
            )
        subject, number, label, window = item
        whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
        if not whole or not 0 <= label < len(PICKLED_CLASSES):
            raise DataError(
                f"item {n} of {path} has the label {str(label)[:100]}",
                remedy=f"labels are from 0 to {len(PICKLED_CLASSES) - 1}",
            )
        if window.ndim != 2 or window.dtype.kind != "f":
            raise DataError(
                f"the window of item {n} of {path} has {window.dtype} of shape {list(window.shape)}",
                remedy="it needs floats [samples, axes]",
            )
        yield str(subject), str(number), int(label), window
