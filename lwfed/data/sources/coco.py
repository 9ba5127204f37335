"""Captioned images in COCO's layout: folders of images, with one json of captions per folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lwfed.data.files import read_image
from lwfed.data.folders import data_root, listing_digest, of_split, require_folder
from lwfed.data.left_out import of_captions
from lwfed.data.protocol import Example, Waveform
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

    def version(self) -> str:
        """Returns the digest of the captions and of the images' names and sizes."""
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


def open_data(data: DataSpec) -> Coco:
    """Opens the captioned images that a spec names; see `open_coco`."""
    return open_coco(data_root(data), missing_ok=data.on_bad_example == "skip")


def open_coco(root: Path, *, missing_ok: bool = False) -> Coco:
    """Opens captioned images.

    Args:
        root: A folder with train2017/, val2017/ and annotations/captions_{train,val}2017.json.
        missing_ok: Accept images that are not on disk; `check_examples` then reports and counts them.

    Raises:
        DataError: A folder or json is missing or damaged, or a caption has no image.
    """
    entries: list[tuple[str, int | str]] = []
    splits = {split: _read_split(root, folder, entries, missing_ok) for split, folder in FOLDERS.items()}
    return Coco(root=root, train=splits["train"], test=splits["test"], digest=listing_digest("coco", entries=entries))


def _read_split(root: Path, folder: str, entries: list[tuple[str, int | str]], missing_ok: bool) -> tuple[Example, ...]:
    layout = "data.root needs train2017/, val2017/ and annotations/captions_{train,val}2017.json"
    images = require_folder(root / folder, remedy=layout)
    path = root / "annotations" / f"captions_{folder}.json"
    if not path.is_file():
        raise DataError(f"there is no file {path}", remedy=layout)
    content = path.read_bytes()
    names, captions = _parse(path, content)
    with os.scandir(images) as listing:
        sizes = {entry.name: entry.stat().st_size for entry in listing if entry.is_file()}
    entries.append((f"annotations/{path.name}", hashlib.sha256(content).hexdigest()))
    examples = []
    for name, image_id in sorted((names[image_id], image_id) for image_id in captions):
        if name not in sizes and not missing_ok:
            raise DataError(
                f"the image {images / name} of a caption in {path.name} is missing",
                remedy="restore the image, or set data.on_bad_example=skip",
            )
        identity = f"{folder}/{name}"
        entries.append((identity, sizes.get(name, -1)))
        texts = tuple(text for _, text in sorted(captions[image_id]))
        examples.append(Example(id=identity, label=None, captions=texts, fields={"stem": Path(name).stem}))
    return tuple(examples)


def _parse(path: Path, content: bytes) -> tuple[dict[int, str], dict[int, list[tuple[int, str]]]]:
    """Returns image id -> file name, and image id -> (annotation id, caption) of a captions json."""
    remedy = "use a captions json in COCO format, with `images` and `annotations`"
    try:
        tree: Any = json.loads(content)
        names = {image["id"]: str(image["file_name"]) for image in tree["images"]}
        captions: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for note in tree["annotations"]:
            text = " ".join(note["caption"].split())
            if text:
                captions[note["image_id"]].append((note["id"], text))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", remedy="download it again") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a captions json: {type(error).__name__} at {error}", remedy=remedy) from None
    if not captions:
        raise DataError(f"{path} has no captions", remedy=remedy)
    orphan = next((image_id for image_id in sorted(captions) if image_id not in names), None)
    if orphan is not None:
        text = captions[orphan][0][1]
        raise DataError(
            f"{path}: the caption {text!r} has the image id {orphan}, which is not in `images`",
            remedy="add the image to `images`, or remove its captions",
        )
    return names, dict(captions)
