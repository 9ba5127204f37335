"""Whatever is done to a file, it is read or refused by name: no other error, no warning, no values out of range."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from lwfed.data.audio import log_mel
from lwfed.data.files import read_image, read_sound
from lwfed.data.protocol import open_source
from lwfed.data.transforms import square_pixels
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError
from tests.damage import altered, damaged, quiet_libraries
from tests.tables import write_csv, write_jsonl, write_parquet

TIMES = 60
"""Number of damaged copies of each file."""
IMAGES = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SOUNDS = {
    "WAV": "PCM_16", "RF64": "PCM_16", "W64": "PCM_16", "AIFF": "PCM_16", "AU": "PCM_16", "CAF": "PCM_16",
    "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III",
}  # fmt: skip


def refused(error: DataError, path: Path) -> None:
    assert str(path) in error.problem and error.remedy and str(error).isprintable(), str(error)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_damaged_image_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    content, rng = io.BytesIO(), np.random.default_rng(IMAGES.index(kind))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).save(content, kind, exif=exif)
    path = tmp_path / "a.png"
    with quiet_libraries():
        for _ in range(TIMES):
            path.write_bytes(damaged(content.getvalue(), rng))
            try:
                image = read_image(path)
            except DataError as error:
                refused(error, path)
            else:
                assert image.mode == "RGB" and square_pixels(image, size=8).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_damaged_sound_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    content, rng = io.BytesIO(), np.random.default_rng(list(SOUNDS).index(kind))
    soundfile.write(content, rng.uniform(-0.5, 0.5, (3_000, 2)), 8_000, format=kind, subtype=SOUNDS[kind])
    path = tmp_path / "a.wav"
    with quiet_libraries():
        for _ in range(TIMES):
            path.write_bytes(damaged(content.getvalue(), rng))
            try:
                samples, rate = read_sound(path)
            except DataError as error:
                refused(error, path)
            else:
                assert samples.ndim == 1 and len(samples) and np.isfinite(samples).all()
                assert log_mel(samples, rate=rate, num_mel_bins=16, frames=20).shape == (20, 16)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_captions_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"{n}.jpg" for n in range(3)]
    tree = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n % 3, "caption": f"text {n}"} for n in range(6)],
    }
    (tmp_path / "annotations").mkdir()
    for folder in ("train2017", "val2017"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
        (tmp_path / "annotations" / f"captions_{folder}.json").write_text(json.dumps(tree))
    path = tmp_path / "annotations" / "captions_train2017.json"
    for n in range(TIMES):
        if n % 2:
            path.write_bytes(damaged(json.dumps(tree).encode(), rng))
        else:
            path.write_text(json.dumps(altered(altered(tree, rng), rng)))
        for bad in ("fail", "skip"):
            try:
                source = open_source(DataSpec(source="coco", root=str(tmp_path), on_bad_example=bad))
            except DataError as error:
                assert path.name in error.problem and error.remedy and str(error).isprintable(), str(error)
            else:
                texts = [text for example in source.examples("train") for text in (example.id, *example.captions)]
                assert "".join(texts).encode() and len({example.id for example in source.examples("train")}) == len(
                    source.examples("train")
                )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_table_is_read_or_refused(tmp_path: Path, kind: str, seed: int) -> None:
    rng, path = np.random.default_rng(seed), tmp_path / f"table.{kind}"
    names = [f"{n}.png" for n in range(3)]
    for name in names:
        (tmp_path / name).touch()
    rows = [
        {"id": n, "image": names[n % 3], "text": f"text {n}", "label": "ab"[n % 2], "split": "train", "site": "s"}
        for n in range(6)
    ]
    write = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}[kind]
    for n in range(3 * TIMES):
        changed = rows
        if n % 2 and kind != "parquet":  # a column of Parquet has one type
            changed = altered(altered(rows, rng), rng)
        if not isinstance(changed, list) or not all(isinstance(row, dict) for row in changed):
            continue
        write(tmp_path, changed)
        if n % 2 == 0 or kind == "parquet":
            path.write_bytes(damaged(path.read_bytes(), rng))
        for bad in ("fail", "skip"):
            try:
                source = open_source(DataSpec(source="table", root=str(tmp_path), on_bad_example=bad))
            except DataError as error:
                assert path.name in error.problem and error.remedy and str(error).isprintable(), str(error)
            else:
                found = [e for split in ("train", "validation", "test") for e in source.examples(split)]
                texts = [text for e in found for text in (e.id, *e.captions, *e.fields, *e.fields.values())]
                assert "".join(texts).encode() and len({e.id for e in found}) == len(found) > 0
                assert all(e.label is None or 0 <= e.label < len(source.classes) for e in found)
                assert source.files.keys() == {e.id for e in found} and len(source.version()) == 64
                assert all(count > 0 for count in source.left_out().values())
