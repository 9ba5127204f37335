"""Small data of inertial sensors in the layouts that users bring, and encoders for them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.tables import SIGNAL_FILES, WRITERS

LENGTH = 32
SUBJECTS: Mapping[str, Sequence[int]] = {"train": (1, 3, 4), "test": (2,)}
PER_SUBJECT = 6
SENSORS = {"acc": "accelerometer", "gyro": "gyroscope"}
CONFIG = {"length": LENGTH, "channels": [8, 12], "num_heads": 2, "depth": 2}
ENCODER: dict[str, Any] = {"family": "timeseries", "blocks_per_stage": 1, "config": CONFIG}
MODEL = f"model.encoders={{accelerometer: {ENCODER}, gyroscope: {ENCODER}}}"
SUPERVISED = "model.objective={kind: supervised, hidden: 12}"


def windows(split: str, sensor: str) -> np.ndarray:
    """Returns a split's windows [N, T, 3]: waves whose frequency is the class's, with noise."""
    rng = np.random.default_rng([len(split), len(sensor)])
    count = PER_SUBJECT * len(SUBJECTS[split])
    time = np.arange(LENGTH)[None, :, None] / LENGTH
    label = (np.arange(count) % 2)[:, None, None]
    wave = np.sin(2 * np.pi * (2 + 3 * label) * time + np.arange(3))
    return (wave + 0.1 * rng.normal(size=(count, LENGTH, 3))).astype(np.float32)


def write_har(root: Path, *, arrays: bool = False) -> Path:
    """Writes UCI-HAR's layout: two classes, three subjects to train on and one to test, six windows each."""
    for split, subjects in SUBJECTS.items():
        folder = root / split
        (folder / "Inertial Signals").mkdir(parents=True)
        count = PER_SUBJECT * len(subjects)
        people = [subject for subject in subjects for _ in range(PER_SUBJECT)]
        (folder / f"subject_{split}.txt").write_text("".join(f"{who}\n" for who in people))
        (folder / f"y_{split}.txt").write_text("".join(f"{n % 2 + 1}\n" for n in range(count)))
        for sensor in SENSORS:
            signal, place = windows(split, sensor), folder / "Inertial Signals"
            if arrays:
                np.save(place / f"body_{sensor}_{split}.npy", signal)
                continue
            for axis, values in zip("xyz", signal.transpose(2, 0, 1), strict=True):
                np.savetxt(place / f"body_{sensor}_{axis}_{split}.txt", values, fmt=" %.9e")
    (root / "activity_labels.txt").write_text("1 WALKING\n2 SITTING\n")
    return root


def write_pickles(root: Path, *, protocol: int = 5) -> Path:
    """Writes fed-multimodal's pickles: a training subject's windows in two clients' files, and dev and test."""
    for sensor in SENSORS:
        folder = root / sensor / "uci-har" / "alpha50"
        folder.mkdir(parents=True)
        clients: dict[str, list[Any]] = {"dev": [], "test": []}
        for split, subjects in SUBJECTS.items():
            for n, window in enumerate(windows(split, sensor).astype(np.float64)):
                who = subjects[n // PER_SUBJECT]
                name = "test" if split == "test" else "dev" if n % PER_SUBJECT == 0 else f"{who}-{n % 2}"
                clients.setdefault(name, []).append([str(who), n, n % 2, window])
        for name, items in clients.items():
            (folder / f"{name}.pkl").write_bytes(pickle.dumps(items, protocol=protocol))
    return root


def overrides(root: Path, *more: str) -> tuple[str, ...]:
    """Returns the changes of the tiny spec for these data: a client per subject, two stages, classification."""
    data = f"data={{source: har, root: {root}, workers: 0, augment: false}}"
    return (data, MODEL, SUPERVISED, "federation={partition: {kind: by_group, field: subject}}", *more)


def write_table(root: Path, *, kind: str = "npy") -> Path:
    """Writes the same windows as a table: as files of a kind, or in the cells of a table of a kind."""
    root.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for split, subjects in SUBJECTS.items():
        signals = {name: windows(split, sensor) for sensor, name in SENSORS.items()}
        for n in range(PER_SUBJECT * len(subjects)):
            row: dict[str, Any] = {"id": f"{split}-{n:02d}", "split": split, "label": "up" if n % 2 else "down"}
            row["site"] = f"s{subjects[n // PER_SUBJECT]}"
            for sensor, signal in signals.items():
                row[sensor] = signal[n].tolist()
                if kind in SIGNAL_FILES:
                    row[sensor] = f"{sensor}/{split}/{n}.{kind}"
                    (root / row[sensor]).parent.mkdir(parents=True, exist_ok=True)
                    SIGNAL_FILES[kind](root / row[sensor], signal[n])
            rows.append(row)
    WRITERS["csv" if kind in SIGNAL_FILES else kind.removesuffix(" cells")](root, rows)
    return root


def table_overrides(root: Path | str, *more: str) -> tuple[str, ...]:
    """Returns the changes of the tiny spec for such a table: a client per subject, two stages, classification."""
    columns = f"{{{', '.join(f'{name}: {name}' for name in SENSORS.values())}}}"
    data = f"data={{source: table, root: '{root}', workers: 0, augment: false, columns: {columns}}}"
    return (data, MODEL, SUPERVISED, "federation={partition: {kind: by_group, field: site}}", *more)
