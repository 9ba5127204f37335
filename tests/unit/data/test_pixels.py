from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lwfed.data.files import read_image
from lwfed.data.pixels import ORIENTATION, as_seen
from lwfed.types.errors import DataError

GREYS = {0: 0, 256: 1, 32768: 128, 65535: 255}
"""16-bit value -> the 8 bits that people see."""


def pixels(path: Path) -> Any:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def grey(*values: int) -> list[list[list[int]]]:
    return [[[value] * 3 for value in values]]


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(rows: np.ndarray, *, kind: int, extra: bytes = b"") -> bytes:
    """Encodes a PNG of uint8 or uint16 [H, W] or [H, W, C], with chunks that Pillow does not write."""
    height, width = rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * rows.itemsize, kind, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in rows)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: np.ndarray, *, bits: int, sample: int, width: int, photometric: int = 1) -> bytes:
    """Encodes one row of grey values as a TIFF of any type."""
    content = values.tobytes()
    tags = [(256, 4, width), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, 1), (279, 4, len(content)), (339, 3, sample)]
    entries = b"".join(struct.pack("<HHIHxx" if kind == 3 else "<HHII", tag, kind, 1, v) for tag, kind, v in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2", "a.pgm"])
def test_16_bits_are_scaled_by_65535(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    values = np.array([list(GREYS)], dtype=np.uint16)
    if name.endswith("pgm"):
        path.write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    assert pixels(path) == grey(*GREYS.values())


def test_floats_within_0_and_1_are_taken(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.2, 1]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif") == grey(0, 51, 255)


@pytest.mark.parametrize(
    ("values", "bits", "sample", "words"),
    [
        (np.array([0, 300], "<u4"), 32, 1, "32-bit integers"),
        (np.array([0, 300], "<i4"), 32, 2, "32-bit signed integers"),
        (np.array([0, 300], "<i2"), 16, 2, "16-bit signed integers"),
        (np.array([0, 100], "<i1"), 8, 2, "8-bit signed integers"),
        (np.array([0, 16, 255], "u1"), 12, 1, "12-bit integers"),
        (np.array([0, 1.5], "<f4"), 32, 3, r"floats from 0 to 1\.5"),
        (np.array([-0.1, 0.5], "<f4"), 32, 3, r"floats from -0\.1 to 0\.5"),
        (np.array([np.nan, 0.5], "<f4"), 32, 3, "floats from nan"),
        (np.array([0, 300], "<u8"), 64, 1, "cannot be read"),
    ],
)
def test_values_of_an_unknown_range_are_refused_by_name(
    tmp_path: Path, values: np.ndarray, bits: int, sample: int, words: str
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(values, bits=bits, sample=sample, width=2))
    with pytest.raises(DataError, match=rf"a\.tif .*{words}.* -> "):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("values", "bits", "sample"), [(np.array([0, 9], "<u2"), 16, 1), (np.array([0, 1], "<f4"), 32, 3)]
)
def test_wide_values_with_white_as_0_are_refused(tmp_path: Path, values: np.ndarray, bits: int, sample: int) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(values, bits=bits, sample=sample, width=2, photometric=0))
    with pytest.raises(DataError, match="white as 0"):
        read_image(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(tiff(np.array([0, 255], "u1"), bits=8, sample=1, width=2, photometric=0))
    assert pixels(tmp_path / "b.tif") == grey(255, 0)


def palette(alphas: bytes) -> bytes:
    return chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0])) + chunk(b"tRNS", alphas)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(np.array([[[9, 9, 9, 0], [0, 0, 255, 255]]], np.uint8), kind=6), [[[255] * 3, [0, 0, 255]]]),
        (png(np.array([[[0, 0, 0, 51]]], np.uint8), kind=6), grey(204)),
        (png(np.array([[[9, 0], [9, 255]]], np.uint8), kind=4), grey(255, 9)),
        (png(np.array([[[9, 0], [65535, 65535]]], np.uint16), kind=4), grey(255, 255)),
        (png(np.array([[5, 9]], np.uint8), kind=0, extra=chunk(b"tRNS", b"\0\5")), grey(255, 9)),
        (png(np.array([[257, 514]], np.uint16), kind=0, extra=chunk(b"tRNS", b"\1\1")), grey(255, 2)),
        (
            png(np.array([[[5, 6, 7], [9, 9, 9]]], np.uint8), kind=2, extra=chunk(b"tRNS", b"\0\5\0\6\0\7")),
            grey(255, 9),
        ),
        (png(np.array([[0, 1]], np.uint8), kind=3, extra=palette(b"\0")), [[[255] * 3, [0, 255, 0]]]),
        (png(np.array([[0, 1]], np.uint8), kind=3, extra=palette(b"\xff\0")), [[[255, 0, 0], [255] * 3]]),
    ],
    ids=["rgba", "part", "la", "la16", "grey-key", "grey16-key", "rgb-key", "palette-one", "palette-many"],
)
def test_transparency_is_composed_on_white(tmp_path: Path, content: bytes, expected: Any) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert pixels(tmp_path / "a.png") == expected


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_transparency_of_other_formats_is_composed_on_white(tmp_path: Path, kind: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 255, 255))
    image.putpixel((0, 0), (200, 0, 0, 0))
    image.save(tmp_path / f"a.{kind}", **({"lossless": True, "exact": True} if kind == "webp" else {}))
    assert pixels(tmp_path / f"a.{kind}") == [[[255] * 3, [0, 0, 255]]]


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path: Path) -> None:
    key = chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))
    (tmp_path / "a.png").write_bytes(png(np.array([[[1000, 2000, 3000]]], np.uint16), kind=2, extra=key))
    with pytest.raises(DataError, match=r"a\.png has a transparent colour of 16 bits"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_the_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    upright = np.full((24, 16), 200, np.uint8)  # blocks of 8 x 8, which JPEG keeps
    upright[:8, :8], upright[:8, 8:] = 0, 100
    stored = {
        2: np.fliplr(upright), 3: np.rot90(upright, 2), 4: np.flipud(upright), 5: upright.T,
        6: np.rot90(upright), 7: np.rot90(upright, 2).T, 8: np.rot90(upright, -1),
    }.get(orientation, upright)  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(tmp_path / name, exif=exif, quality=95)
    seen = np.asarray(read_image(tmp_path / name)).astype(int)
    assert seen.shape == (24, 16, 3)
    assert np.abs(seen - upright[..., None]).max() <= (12 if name == "a.webp" else 2)
    assert np.array_equal(as_seen(read_image(tmp_path / name)), seen)  # and applied once


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"x" * 40])
def test_a_damaged_exif_block_leaves_the_picture_as_it_is(tmp_path: Path, block: bytes) -> None:
    Image.new("RGB", (3, 2), (7, 7, 7)).save(tmp_path / "a.jpg", exif=block)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.jpg").size == (3, 2)


@pytest.mark.parametrize("times", [1, 3])  # of the limit: Pillow warns of the one and refuses the other
def test_a_picture_over_the_limit_is_refused_by_name(
    tmp_path: Path, times: int, recwarn: pytest.WarningsRecorder
) -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    rows = times * Image.MAX_IMAGE_PIXELS // 30_000 + 1
    header = struct.pack(">IIBBBBB", 30_000, rows, 1, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(DataError, match=r"a\.png .*pixels.* -> "):
        read_image(tmp_path / "a.png")
    assert not recwarn.list


FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_truncated_picture_is_refused_by_name(tmp_path: Path, kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, kind)
    (tmp_path / "a.png").write_bytes(content.getvalue()[: int(part * len(content.getvalue()))])
    with pytest.raises(DataError, match=r"a\.png cannot be read: .+ -> fix"):
        read_image(tmp_path / "a.png")


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # would be waited for
    for name in ("pipe.jpg", ".", "none.jpg"):
        with pytest.raises(DataError, match="there is no image"):
            read_image(tmp_path / name)
