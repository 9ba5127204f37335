"""Captioned images in COCO's layout: folders of images, with one json of captions per folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lwfed.data.captions import parse_captions
from lwfed.data.files import read_image
from lwfed.data.folders import alike, data_root, listing_digest, of_split, require_folder
from lwfed.data.left_out import of_captions
from lwfed.data.protocol import Example, Signal, Waveform
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError

FOLDERS = {"train": "train2017", "test": "val2017"}
"""Split -> folder of its images; the captions are in annotations/captions_<folder>.json."""


@dataclass(frozen=True)
class Coco:
    """Captioned images; the id of an example is its image's path below the root."""

    root: Path
    train: tuple[Example, ...] = field(repr=False)
    test: tuple[Example, ...] = field(repr=False)
    digest: str
    classes: tuple[str, ...] = ()

    def examples(self, split: str) -> tuple[Example, ...]:
        """Returns the examples of `train` or `test`."""
        return of_split(split, train=self.train, test=self.test)

    @property
    def files(self) -> dict[str, tuple[str, ...]]:
        """Example id -> path of its image, which is the same."""
        return {example.id: (example.id,) for example in (*self.train, *self.test)}

    def version(self) -> str:
        """Returns the digest of the captions and of the images' names."""
        return self.digest

    def left_out(self) -> Mapping[str, int]:
        """Counts blank captions and files without captions."""
        found: Counter[str] = Counter()
        for split, folder in FOLDERS.items():
            used = {example.id.removeprefix(f"{folder}/") for example in self.examples(split)}
            path = self.root / "annotations" / f"captions_{folder}.json"
            found += of_captions(path, self.root / folder, used=used)
        return found

    def image(self, example: Example) -> Image.Image:
        """Reads the image."""
        return read_image(self.root / example.id)

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        """Raises DataError, because there are no sounds."""
        raise DataError(f"the coco data have no sound for {example.id}", remedy="use the image and text encoders")

    def series(self, example: Example, modality: str) -> Signal:
        """Raises DataError, because there are no sensors."""
        raise DataError(f"the coco data have no {modality} for {example.id}", remedy="use the image and text encoders")


def open_data(data: DataSpec) -> Coco:
    """Opens captioned images.

    Args:
        data: Its `root` is a folder with train2017/, val2017/ and annotations/captions_{train,val}2017.json; with
            `on_bad_example: skip`, images may be missing: `check_examples` then reports and counts them.

    Raises:
        DataError: A folder or json is missing or damaged, or a caption has no image.
    """
    root, missing_ok = data_root(data), data.on_bad_example == "skip"
    entries: list[tuple[str, str]] = []
    splits = {split: _read_split(root, folder, entries, missing_ok) for split, folder in FOLDERS.items()}
    return Coco(root=root, train=splits["train"], test=splits["test"], digest=listing_digest("coco", entries=entries))


def _read_split(root: Path, folder: str, entries: list[tuple[str, str]], missing_ok: bool) -> tuple[Example, ...]:
    layout = "data.root needs train2017/, val2017/ and annotations/captions_{train,val}2017.json"
    images = require_folder(root / folder, remedy=layout)
    path = root / "annotations" / f"captions_{folder}.json"
    if not path.is_file():
        raise DataError(f"there is no file {path}", remedy=layout)
    content = path.read_bytes()
    captions = parse_captions(path, content)
    with os.scandir(images) as listing:
        there = {entry.name for entry in listing if entry.is_file()}
    entries.append((f"annotations/{path.name}", hashlib.sha256(content).hexdigest()))
    examples = []
    for name, texts in sorted(captions.items()):
        if name not in there and not (images / name).is_file() and not missing_ok:
            raise DataError(
                f"the image {images / name} of a caption in {path.name} is missing"
                f"{alike((images / name).parent, Path(name).name)}",
                remedy="restore the image, or set data.on_bad_example=skip",
            )
        identity = f"{folder}/{name}"
        entries.append((identity, ""))
        examples.append(Example(id=identity, label=None, captions=texts, fields={"stem": Path(name).stem}))
    return tuple(examples)
