"""Sounds, decoded as a whole or not at all: what decodes is compared with what the file announces.

libsndfile reads a truncated file up to its end without a word; only some formats fail. So each container's own length
is read here, and a format whose length this module cannot read is refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from lwfed.data.protocol import Waveform
from lwfed.types.errors import DataError

FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"})
"""libsndfile's names of the formats that are accepted, whatever the ending of the file."""
_BLOCK = 1 << 20
_MAX_RATE = 1_000_000
_NO_TOTAL = 1 << 62  # libsndfile gives 2^63 - 1 frames for a FLAC whose total is unknown
_UNKNOWN = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_CONVERT = "convert it to wav or flac"
_STARTS = {
    b"fLaC": rb"fLaC[\x00\x80]\x00\x00\x22",
    b"RIFF": rb"RIFF....WAVE",
    b"RIFX": rb"RIFX....WAVE",
    b"RF64": rb"RF64....WAVE",
    b"riff": rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb",
    b"FORM": rb"FORM....AIF[FC]",
    b"caff": rb"caff\x00\x01\x00\x00",
}
"""Magic -> how a file of this container starts: too long to appear among samples by chance."""


@dataclass(frozen=True, slots=True)
class _Chunks:
    """How a container lays out its chunks.

    Attributes:
        start: Position of the first chunk.
        name: Number of bytes of a chunk's name.
        length: Format of a chunk's length.
        align: Chunks start at multiples of this many bytes.
        data: How the name of the chunk of samples starts.
        counts_header: Whether the length includes name and length.
    """

    start: int
    name: int
    length: str
    align: int
    data: bytes
    counts_header: bool = False


_RIFF = _Chunks(start=12, name=4, length="<I", align=2, data=b"data")
_CHUNKS = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"RIFX": _Chunks(start=12, name=4, length=">I", align=2, data=b"data"),
    b"riff": _Chunks(start=40, name=16, length="<Q", align=8, data=b"data", counts_header=True),  # Sony Wave64
    b"FORM": _Chunks(start=12, name=4, length=">I", align=2, data=b"SSND"),
    b"caff": _Chunks(start=8, name=4, length=">Q", align=1, data=b"data"),
}


class _Forward(soundfile.SoundFile):
    """A sound that is only read forwards: soundfile seeks after each block, which some formats cannot."""

    def seekable(self) -> bool:
        return False


def decode_sound(place: Path | BinaryIO) -> tuple[Waveform, int]:
    """Decodes a sound of any sampling rate and number of channels.

    Args:
        place: A file on disk, or an open one.

    Returns:
        Samples [N], the mean over channels, and samples per second.

    Raises:
        DataError: The sound is truncated, empty, not finite, several in one file, or in a format whose length cannot be
            checked; the problem lacks its subject.
        RuntimeError: libsndfile cannot decode it.
    """
    if isinstance(place, Path):
        with place.open("rb") as file:
            lacks, counted, second = _lacking(file), _counts_mpeg_frames(file), _second(file)
    else:
        lacks, counted, second = _lacking(place), _counts_mpeg_frames(place), _second(place)
        place.seek(0)
    if lacks:
        raise DataError(f"is truncated: {lacks}")
    if second is not None:
        problem = f"is several sounds in one file, and only the first would be heard: another starts at byte {second}"
        raise DataError(problem, remedy="split it into one file per sound, or join them as wav")
    with _Forward(place) as sound:
        if sound.format not in FORMATS:
            raise DataError(f"has the format {sound.format_info}, which is not supported", remedy=_CONVERT)
        if sound.subtype.startswith("MPEG") and not counted:
            raise DataError("is an MP3 of unknown length, without a Xing or Info header", remedy=_CONVERT)
        if not 0 < sound.samplerate <= _MAX_RATE:
            raise DataError(f"has {sound.samplerate} samples per second")
        samples, announced, rate = _read(sound), sound.frames, int(sound.samplerate)
    if len(samples) < announced < _NO_TOTAL:
        raise DataError(f"is truncated: {len(samples)} of {announced} samples decode")
    mono = samples.mean(axis=1, dtype=np.float32)
    if not mono.size or not np.isfinite(mono).all():
        raise DataError("has values that are not finite" if mono.size else "is empty")
    return mono, rate


def _read(sound: _Forward) -> npt.NDArray[np.float32]:
    """Returns all samples [N, channels]; what a damaged header announces is not allocated before it decodes."""
    blocks, left = [np.zeros((0, sound.channels), np.float32)], sound.frames
    while left and len(block := sound.read(min(_BLOCK, left), dtype="float32", always_2d=True)):
        blocks.append(block)
        left -= len(block)
    return np.concatenate(blocks)


def _lacking(file: BinaryIO) -> str | None:
    """Returns what is missing at the end of a sound by its container, in words; None: nothing, or it does not say."""
    size = file.seek(0, 2)
    start = _tag_length(file)
    magic = _at(file, start, 4)
    if magic == b"OggS":
        return None if _ogg_ends(file, start, size) else "its last page is missing"
    end: int | None = None
    if magic in _CHUNKS:
        end = _data_end(file, _CHUNKS[magic], start)
    elif magic == b".snd":
        offset, length = struct.unpack(">II", _at(file, start + 4, 8).ljust(8, b"\0"))
        end = None if length in _UNKNOWN else start + offset + length
    if magic == b"riff" and end is not None and size - end >= 8:
        raise DataError("has chunks behind its samples, which libsndfile would take for samples", remedy=_CONVERT)
    missing = 0 if end is None else end - size
    return f"its last {missing} bytes are missing" if missing > 0 else None


def _data_end(file: BinaryIO, layout: _Chunks, start: int) -> int | None:
    """Returns where the samples of a container of chunks end; None if it does not say."""
    position, large = start + layout.start, 0
    header = layout.name + struct.calcsize(layout.length)
    while len(head := _at(file, position, header)) == header:
        length = struct.unpack(layout.length, head[layout.name :])[0] - (header if layout.counts_header else 0)
        if head.startswith(b"ds64"):  # RF64's lengths, of the file and of the samples
            large = struct.unpack("<QQ", _at(file, position + header, 16).ljust(16, b"\0"))[1]
        if head.startswith(layout.data):
            length = large if large and length == 0xFFFFFFFF else length
            return None if length in _UNKNOWN else position + header + length
        position += header + max(length, 0)
        position += -(position - start) % layout.align
    return None


def _ogg_pages(file: BinaryIO, position: int) -> Iterator[tuple[int, bytes, int]]:
    """Yields the position of each page of an Ogg file, its header, and the position behind it (RFC 3533, section 6)."""
    while (head := _at(file, position, 27)).startswith(b"OggS") and len(head) == 27:
        behind = position + 27 + head[26] + sum(_at(file, position + 27, head[26]))
        yield position, head, behind
        position = behind


def _ogg_ends(file: BinaryIO, position: int, size: int) -> bool:
    """Returns whether each stream of an Ogg file has its last page."""
    open_streams: set[bytes] = set()
    for _, head, behind in _ogg_pages(file, position):
        if behind > size:
            return False
        open_streams.add(head[14:18])
        if head[5] & 4:
            open_streams.discard(head[14:18])
    return not open_streams


def _second(file: BinaryIO) -> int | None:
    """Returns where a second sound starts in a file, which libsndfile would leave out; None: there is one alone."""
    start = _tag_length(file)
    magic = _at(file, start, 4)
    if magic == b"OggS":
        return next((at for at, head, _ in _ogg_pages(file, start) if head[5] & 2 and at > start), None)
    if magic in _STARTS:
        return _found(file, re.compile(_STARTS[magic], re.DOTALL), start + 1)
    if magic == b".snd":
        offset, length = struct.unpack(">II", _at(file, start + 4, 8).ljust(8, b"\0"))
        end = start + offset + length
        return end if length not in _UNKNOWN and _at(file, end, 4) == magic else None
    return _second_mpeg(file, start)


def _found(file: BinaryIO, pattern: re.Pattern[bytes], start: int) -> int | None:
    """Returns where a pattern of at most 16 bytes occurs from a position on."""
    while block := _at(file, start, _BLOCK + 16):
        if found := pattern.search(block):
            return start + found.start()
        start += _BLOCK
    return None


def _second_mpeg(file: BinaryIO, start: int) -> int | None:
    """Returns where another MP3 follows the bytes that the first one's Xing or Info header counts."""
    head = _at(file, start, 256)
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or len(head) < at + 16 or head[at + 7] & 3 != 3:
        return None
    end = start + struct.unpack(">I", head[at + 12 : at + 16])[0]
    follows = end + _tag_length(file, end)
    sync = _at(file, follows, 2)
    return end if len(sync) == 2 and sync[0] == 0xFF and sync[1] & 0xE0 == 0xE0 else None


def _counts_mpeg_frames(file: BinaryIO) -> bool:
    """Returns whether an MP3 has a header with the number of its frames; libsndfile else guesses, and reads no more."""
    start = _at(file, _tag_length(file), 4096)
    found = max(start.find(b"Xing"), start.find(b"Info"))
    return found >= 0 and len(start) > found + 7 and bool(start[found + 7] & 1)


def _tag_length(file: BinaryIO, position: int = 0) -> int:
    """Returns the length of the ID3 tag in front of a sound, in bytes."""
    head = _at(file, position, 10)
    if len(head) < 10 or not head.startswith(b"ID3"):
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)
