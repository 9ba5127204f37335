"""Small files in the layouts of the data that users bring: drawn images, captions, tones at two sampling rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from tests.e2e.command import AUDIO, IMAGE

CLASSES = ("forest", "sea")
RATES = (8_000, 44_100)


def write_coco(root: Path, *, train: int = 12, test: int = 6) -> None:
    """Writes captioned images: 000000.jpg ... to train on, 000020.jpg ... to test on; five captions a test image."""
    (root / "annotations").mkdir(parents=True)
    for folder, first, count, captions in (("train2017", 0, train, 1), ("val2017", 20, test, 5)):
        (root / folder).mkdir()
        names = {number: f"{number:06d}.jpg" for number in range(first, first + count)}
        for number, name in names.items():
            _write_image(root / folder / name, seed=number)
        notes = [
            {"id": 10 * number + n, "image_id": number, "caption": f"picture {number}, told for the {n}. time"}
            for number in names
            for n in range(captions)
        ]
        tree = {"images": [{"id": number, "file_name": name} for number, name in names.items()], "annotations": notes}
        (root / "annotations" / f"captions_{folder}.json").write_text(json.dumps(tree))


def write_advance(root: Path, *, pairs: int = 8) -> None:
    """Writes pairs of an image and a sound a class, their stems telling the site: 0_sea.jpg and 0_sea.wav ..."""
    for label, name in enumerate(CLASSES):
        for side in ("vision", "sound"):
            (root / side / name).mkdir(parents=True)
        for number in range(pairs):
            seed = pairs * label + number
            _write_image(root / "vision" / name / f"{number}_{name}.jpg", seed=seed)
            rate = RATES[number % 2]
            time = np.arange(rate) / rate
            tone = np.sin(2 * np.pi * 300 * (label + 1) * time) + 0.1 * np.random.default_rng(seed).normal(size=rate)
            soundfile.write(root / "sound" / name / f"{number}_{name}.wav", 0.3 * tone, rate, subtype="PCM_16")


def truncate(path: Path) -> Path:
    """Cuts a file to half its length."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def coco_spec(root: Path) -> dict[str, Any]:
    """Returns the changes of the tiny spec for captioned images."""
    return {"data": {"source": "coco", "root": str(root), "workers": 1}, "stages__rounds": [1, 1]}


def advance_spec(root: Path) -> dict[str, Any]:
    """Returns the changes of the tiny spec for classes of images and sounds."""
    return {
        "data": {"source": "advance", "root": str(root), "workers": 0, "test_fraction": 0.25},
        "model__encoders": {"image": IMAGE, "audio": AUDIO},
        "model__objective": {"kind": "supervised", "hidden": 16, "dropout": 0.0},
        "stages__rounds": [1, 1],
    }


def _write_image(path: Path, *, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
