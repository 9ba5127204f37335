"""Data for whole runs: as many examples per client as asked for, in COCO's and in ADVANCE's layout.

Captioned pictures come from a folder in COCO's layout and repeat under other names if it has too few; without such a
folder they are drawn. Places with sounds are drawn.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 13
SECONDS = 10
"""Of a sound, as in ADVANCE."""
RATE = 16_000
SIDE = {"coco": (640, 480), "advance": (512, 512)}
"""Pixels of a drawn picture."""
DRAWN = 40
"""Different pictures that are drawn; more are copies."""


def make(task: str, folder: Path, *, data: Path | None, train: int, test: int | None) -> None:
    """Makes the data of a task, `coco` or `advance`, unless they are there.

    Args:
        task: The task.
        folder: Where they go.
        data: A folder in COCO's layout; None draws pictures.
        train: Number of training examples.
        test: Number of test examples; None: all pictures that `data` has for testing, or as many as are drawn.
    """
    if folder.is_dir():
        return
    making = folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    if task == "advance":
        _advance(making, train=train, test=DRAWN if test is None else test)
    else:
        for name, count in (("train2017", train), ("val2017", test)):
            _coco(making, name, count=count, data=data)
    making.rename(folder)


def _coco(folder: Path, name: str, *, count: int | None, data: Path | None) -> None:
    """Writes a folder of pictures and its captions."""
    images = folder / name
    images.mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    known = _drawn(images) if data is None else _known(data, name)
    entries: dict[str, list[Any]] = {"images": [], "annotations": []}
    for number in range(len(known) if count is None else count):
        path, captions = known[number % len(known)]
        file = f"{number:012}{path.suffix}"
        if not (images / file).exists():
            shutil.copyfile(path, images / file)
        entries["images"].append({"id": number, "file_name": file})
        for caption in captions:
            entries["annotations"].append({"id": len(entries["annotations"]), "image_id": number, "caption": caption})
    kept = {entry["file_name"] for entry in entries["images"]}
    for path in images.iterdir():
        if path.name not in kept:
            path.unlink()
    (folder / "annotations" / f"captions_{name}.json").write_text(json.dumps(entries), encoding="utf-8")


def _known(data: Path, name: str) -> list[tuple[Path, list[str]]]:
    """Returns the pictures of a folder in COCO's layout, with their captions."""
    values = json.loads((data / "annotations" / f"captions_{name}.json").read_text(encoding="utf-8"))
    captions: dict[int, list[str]] = {}
    for one in values["annotations"]:
        captions.setdefault(one["image_id"], []).append(one["caption"])
    files = sorted((one["file_name"], one["id"]) for one in values["images"] if one["id"] in captions)
    return [(data / name / file, captions[number]) for file, number in files]


def _drawn(folder: Path) -> list[tuple[Path, list[str]]]:
    """Draws pictures with five captions each."""
    paths = [folder / f"{number:012}.jpg" for number in range(DRAWN)]
    for number, path in enumerate(paths):
        _picture(path, number, side=SIDE["coco"])
    return [
        (path, [f"Caption {k} of the picture {n}, which shows nothing but coloured squares." for k in range(5)])
        for n, path in enumerate(paths)
    ]


def _picture(path: Path, number: int, *, side: tuple[int, int]) -> None:
    from PIL import Image

    squares = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(squares).resize(side).save(path, quality=90)


def _advance(folder: Path, *, train: int, test: int) -> None:
    """Draws pictures and sounds of `CLASSES` classes, in turn."""
    import soundfile

    times = np.arange(RATE * SECONDS) / RATE
    for split, count in (("train", train), ("test", max(test, CLASSES))):
        for number in range(max(count, CLASSES)):
            place = f"place{number % CLASSES:02}"
            for side in ("vision", "sound"):
                (folder / split / side / place).mkdir(parents=True, exist_ok=True)
            _picture(folder / split / "vision" / place / f"{number:05}.jpg", number, side=SIDE["advance"])
            noise = np.random.default_rng(number).normal(0, 0.05, len(times))
            wave = 0.3 * np.sin(2 * np.pi * (200 + 50 * (number % CLASSES)) * times) + noise
            soundfile.write(folder / split / "sound" / place / f"{number:05}.wav", wave, RATE)
