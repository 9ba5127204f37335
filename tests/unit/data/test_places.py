"""Places that cannot be read, or whose names are no text."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from lwfed.data.batches import check_examples
from lwfed.data.protocol import open_source
from lwfed.data.tokens import open_tokenizer
from lwfed.models.identity import weights_version
from lwfed.spec.data import DataSpec
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import DataError

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Drops root's right to read everything."""
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(NOBODY)
    except OSError:
        pytest.skip("this user cannot become another")
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def root() -> Iterator[Path]:
    """Makes one folder with data of both kinds below a folder that everybody can search, which tmp_path's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
        (folder / "annotations").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / split / "a.jpg")
        note = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}
        (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(note))
    for side in ("vision", "sound"):
        (folder / side / "beach").mkdir(parents=True)
    for stem in ("a", "b"):
        Image.new("RGB", (4, 4)).save(folder / "vision" / "beach" / f"{stem}.jpg")
        soundfile.write(folder / "sound" / "beach" / f"{stem}.wav", np.zeros(800), 8_000)
    try:
        yield folder
    finally:
        for path in (folder, *folder.glob("*"), *folder.glob("*/*")):
            path.chmod(0o755)
        shutil.rmtree(folder)


CLOSED = [
    ("coco", "."), ("coco", "train2017"), ("coco", "annotations"), ("coco", "annotations/captions_val2017.json"),
    ("advance", "."), ("advance", "vision"), ("advance", "sound"), ("advance", "sound/beach"),
]  # fmt: skip


@pytest.mark.parametrize("on_bad_example", ["fail", "skip"])
@pytest.mark.parametrize(("source", "place"), CLOSED)
def test_a_place_without_read_permission_is_named(root: Path, source: str, place: str, on_bad_example: str) -> None:
    (root / place).chmod(0)
    data = DataSpec(source=source, root=str(root), on_bad_example=on_bad_example)
    with unprivileged(), pytest.raises(DataError, match=f"{root / place}.* -> .*read"):
        open_source(data)


@pytest.mark.parametrize(
    ("source", "place"),
    [("coco", "train2017/a.jpg"), ("advance", "vision/beach/a.jpg"), ("advance", "sound/beach/a.wav")],
)
def test_a_file_without_read_permission_is_a_bad_example(root: Path, source: str, place: str) -> None:
    (root / place).chmod(0)
    with unprivileged():
        opened = open_source(DataSpec(source=source, root=str(root), test_fraction=0.5))
        examples = [example for split in ("train", "test") for example in opened.examples(split)]
        modalities = ("image", "audio") if source == "advance" else ("image",)
        bad = check_examples(opened, examples=examples, modalities=modalities)
    assert len(bad) == len(examples) - 1
    (problem,) = bad.values()
    assert str(root / place) in problem
    assert "permission denied" in problem


@pytest.mark.parametrize(
    "place", ["vision/beach/b.jpg", "sound/beach/b.wav", "vision/beach", "."], ids=["image", "sound", "class", "root"]
)
def test_a_name_in_latin_1_is_refused_in_words_that_can_be_printed(root: Path, place: str) -> None:
    old = root / place
    new = Path(
        os.fsdecode(
            os.fsencode(old.parent if place != "." else old.resolve().parent) + b"/caf\xe9" + old.suffix.encode()
        )
    )
    old.rename(new)
    try:
        data = DataSpec(source="advance", root=str(new if place == "." else root))
        with pytest.raises(DataError, match=r"caf\\xe9.* is not UTF-8 -> rename") as caught:
            open_source(data)
        assert str(caught.value).isascii()
    finally:
        new.rename(old)


def test_a_file_in_latin_1_that_no_caption_names_is_left_alone(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/train2017/caf\xe9.jpg")).write_bytes(b"")
    assert len(open_source(DataSpec(source="coco", root=str(root))).examples("train")) == 1


def test_a_home_that_is_unknown_is_refused() -> None:
    with pytest.raises(DataError, match=r"there is no folder ~no-such-user/data"):
        open_source(DataSpec(source="coco", root="~no-such-user/data"))


@pytest.mark.parametrize("place", ["model.safetensors", "config.json", "vocab.txt", "."])
def test_weights_without_read_permission_are_named(root: Path, place: str) -> None:
    folder = root / "weights"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "vocab.txt"):
        (folder / name).write_text("{}")
    (folder / place).chmod(0)
    encoder = EncoderSpec(family="distilbert", weights=str(folder))
    with unprivileged(), pytest.raises(DataError, match=rf"{folder}.* cannot be read: .* -> "):
        weights_version(encoder)


def test_a_tokenizer_without_read_permission_is_named(root: Path) -> None:
    (root / "tokenizer").mkdir()
    for place in ("tokenizer/tokenizer.json", "tokenizer"):
        path = root / place
        if not path.exists():
            path.write_text("{}")
        path.chmod(0)
        with unprivileged(), pytest.raises(DataError, match=rf"tokenizer {root}/tokenizer cannot be .* -> "):
            open_tokenizer(str(root / "tokenizer"))
