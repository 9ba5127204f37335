from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lwfed.data.files import read_sound
from lwfed.types.errors import DataError

RATE, LENGTH = 16_000, 32_000
FORMATS = (
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
)  # fmt: skip
EXACT = ("PCM_16", "PCM_24", "FLOAT", "ALAC_16")
ID3 = b"ID3\3\0\0\0\0\0\x0a" + bytes(10)
HEADER = 44
"""Bytes before the samples of a WAV that libsndfile writes."""


def wave() -> np.ndarray:
    time = np.arange(LENGTH) / RATE
    wave = 0.4 * np.sin(2 * np.pi * 440 * time) + 0.05 * np.random.default_rng(0).standard_normal(LENGTH)
    return (np.rint(wave * 32768) / 32768).astype(np.float32)


def encoded(folder: Path, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    soundfile.write(folder / "whole.bin", wave(), RATE, format=kind, subtype=subtype)
    return (folder / "whole.bin").read_bytes()


def read(folder: Path, content: bytes) -> np.ndarray:
    (folder / "a.wav").write_bytes(content)
    samples, rate = read_sound(folder / "a.wav")
    assert rate == RATE
    return samples


def wav(folder: Path, *, riff: int | None = None, data: int | None = None, tail: bytes = b"") -> bytes:
    """Encodes a whole WAV whose headers announce other sizes."""
    content = bytearray(encoded(folder))
    for position, size in ((4, riff), (HEADER - 4, data)):
        if size is not None:
            content[position : position + 4] = struct.pack("<I", size)
    return bytes(content) + tail


def without_total(flac: bytes) -> bytes:
    """Returns a FLAC whose header gives no number of samples, as of an encoder that writes to a pipe."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_whole_sounds_are_read_and_truncated_ones_are_refused(tmp_path: Path, kind: str, subtype: str) -> None:
    content = encoded(tmp_path, kind, subtype)
    samples = read(tmp_path, content)
    assert LENGTH <= len(samples) < LENGTH + 600  # compressed WAVs are padded to whole blocks
    if subtype in EXACT:
        assert np.array_equal(samples, wave())
    for count in (len(content) * 19 // 20, len(content) // 2, len(content) // 3, len(content) - 3):
        with pytest.raises(DataError, match=r"a\.wav (is truncated|cannot be read): .* -> fix"):
            read(tmp_path, content[:count])


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3"])
def test_a_tag_in_front_changes_nothing(tmp_path: Path, kind: str) -> None:
    content = encoded(tmp_path, kind, "MPEG_LAYER_III" if kind == "MP3" else "PCM_16")
    assert np.array_equal(read(tmp_path, ID3 + content), read(tmp_path, content))
    with pytest.raises(DataError, match=r"a\.wav (is truncated|cannot be read)"):
        read(tmp_path, ID3 + content[:-600])


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC"])
def test_what_follows_the_samples_is_no_sound(tmp_path: Path, kind: str) -> None:
    assert np.array_equal(read(tmp_path, encoded(tmp_path, kind) + b"TAG" + bytes(125)), wave())


@pytest.mark.parametrize("riff", [0, 10, 2 * LENGTH + 37, 70_000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wrong_riff_size_does_not_matter(tmp_path: Path, riff: int) -> None:
    assert np.array_equal(read(tmp_path, wav(tmp_path, riff=riff)), wave())


@pytest.mark.parametrize("riff", [None, 0, 0xFFFFFFFF])
@pytest.mark.parametrize("excess", [2, 1_000, 0x70000000])
def test_a_data_chunk_that_is_longer_than_the_file_is_truncated(tmp_path: Path, riff: int | None, excess: int) -> None:
    with pytest.raises(DataError, match=rf"a\.wav is truncated: its last {excess} bytes are missing"):
        read(tmp_path, wav(tmp_path, riff=riff, data=2 * LENGTH + excess))


def test_a_wav_of_a_pipe_has_the_length_of_its_file(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path, wav(tmp_path, riff=0xFFFFFFFF, data=0xFFFFFFFF)), wave())


def test_chunks_before_and_after_the_samples(tmp_path: Path) -> None:
    content = encoded(tmp_path)
    junk = b"junk" + struct.pack("<I", 3) + b"abc\0"  # padded to an even length
    assert np.array_equal(read(tmp_path, content[: HEADER - 8] + junk + content[HEADER - 8 :]), wave())
    with pytest.raises(DataError, match="its last 10 bytes are missing"):
        read(tmp_path, content[: HEADER - 8] + junk + content[HEADER - 8 : -10])
    assert np.array_equal(read(tmp_path, content + b"LIST" + struct.pack("<I", 100) + b"INFO"), wave())
    wave64 = encoded(tmp_path, "W64")
    guid = wave64[wave64.index(b"data") + 4 :][:12]
    with pytest.raises(DataError, match="behind its samples"):
        read(tmp_path, wave64 + b"list" + guid + struct.pack("<Q", 64) + b"x" * 40)


def test_a_flac_without_a_total_is_read_to_its_end(tmp_path: Path) -> None:
    content = without_total(encoded(tmp_path, "FLAC"))
    assert np.array_equal(read(tmp_path, content), wave())
    for count in (len(content) // 2, len(content) - 1):
        with pytest.raises(DataError, match=r"a\.wav cannot be read"):
            read(tmp_path, content[:count])


def test_a_flac_that_ends_between_two_frames_is_truncated(tmp_path: Path) -> None:
    content = encoded(tmp_path, "FLAC")
    frames = [n for n in range(100, len(content)) if content[n : n + 2] == b"\xff\xf8"]
    cut = content[: frames[len(frames) // 2]]
    with pytest.raises(DataError, match=r"a\.wav is truncated: \d+ of 32000 samples decode"):
        read(tmp_path, cut)


def test_a_header_that_announces_too_much_takes_no_memory(tmp_path: Path) -> None:
    content = bytearray(encoded(tmp_path, "FLAC"))
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4  # 2^36 - 1 samples
    with pytest.raises(DataError, match="is truncated: 32000 of 68719476735 samples"):
        read(tmp_path, bytes(content))


def test_an_ogg_that_ends_between_two_pages_is_truncated(tmp_path: Path) -> None:
    content = encoded(tmp_path, "OGG", "VORBIS")
    with pytest.raises(DataError, match="its last page is missing"):
        read(tmp_path, content[: content.rindex(b"OggS")])


def test_an_mp3_without_a_length_is_refused(tmp_path: Path) -> None:
    content = encoded(tmp_path, "MP3", "MPEG_LAYER_III")
    with pytest.raises(DataError, match="without a Xing or Info header"):
        read(tmp_path, content[288:])  # the first frame holds the header


@pytest.mark.parametrize("kind", ["VOC", "NIST"])
def test_a_format_whose_length_is_not_checked_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"a\.wav has the format .*, which is not supported -> convert"):
        read(tmp_path, encoded(tmp_path, kind))


@pytest.mark.parametrize("rate", [0, 0x7FFFFFFF])
def test_a_rate_that_cannot_be_is_refused(tmp_path: Path, rate: int) -> None:
    content = encoded(tmp_path)
    with pytest.raises(DataError, match=r"a\.wav "):
        read(tmp_path, content[:24] + struct.pack("<I", rate) + content[28:])


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")  # would be waited for
    for name in ("pipe.wav", ".", "none.wav"):
        with pytest.raises(DataError, match="there is no sound"):
            read_sound(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "subtype", "tag"), [*((*pair, b"") for pair in FORMATS), ("MP3", "MPEG_LAYER_III", ID3)]
)
def test_joined_sounds_are_refused(tmp_path: Path, kind: str, subtype: str, tag: bytes) -> None:
    """`cat a b > c` is one file, of which a decoder would use the first half."""
    content = encoded(tmp_path, kind, subtype)
    with pytest.raises(DataError, match=rf"a\.wav .*{len(content) if kind != 'W64' else 'samples'}") as caught:
        read(tmp_path, content + tag + content)
    assert caught.value.exit_code == 11 and caught.value.remedy
