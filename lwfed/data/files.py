"""Reading of one image or sound from disk; a damaged file raises an error with its name and is never partly used."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from lwfed.data.protocol import Waveform
from lwfed.types.errors import DataError

_SKIP = "fix or remove it, or set data.on_bad_example=skip"
_LENGTH_UNKNOWN = (0, 0xFFFFFFFF)


def read_image(path: Path) -> Image.Image:
    """Reads an image file.

    Args:
        path: A file that Pillow can read.

    Returns:
        The decoded image, RGB.

    Raises:
        DataError: The file is missing, truncated or not an image.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"there is no image {path}", remedy=_SKIP.replace("fix or remove", "restore")) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"the image {path} cannot be read: {_line(error)}", remedy=_SKIP) from None


def read_sound(path: Path) -> tuple[Waveform, int]:
    """Reads a sound file of any sampling rate and number of channels.

    Args:
        path: A file that libsndfile can read (wav, flac, ogg).

    Returns:
        Samples [N], the mean over channels, and samples per second.

    Raises:
        DataError: The file is missing, truncated, empty or not a sound.
    """
    import soundfile

    if not path.is_file():
        raise DataError(f"there is no sound {path}", remedy=_SKIP.replace("fix or remove", "restore"))
    try:
        missing = _missing_bytes(path)
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"the sound {path} cannot be read: {_line(error)}", remedy=_SKIP) from None
    if missing:
        raise DataError(f"the sound {path} is truncated: its last {missing} bytes are missing", remedy=_SKIP)
    mono = samples.mean(axis=1, dtype=np.float32)
    if not mono.size or not np.isfinite(mono).all():
        what = "has values that are not finite" if mono.size else "is empty"
        raise DataError(f"the sound {path} {what}", remedy=_SKIP)
    return mono, int(rate)


def _missing_bytes(path: Path) -> int:
    """Returns the number of bytes missing from a RIFF (wav) file by its header, which libsndfile does not report."""
    with path.open("rb") as file:
        header = file.read(8)
    if len(header) < 8 or header[:4] != b"RIFF":
        return 0
    promised = struct.unpack("<I", header[4:])[0]
    return 0 if promised in _LENGTH_UNKNOWN else max(promised + 8 - path.stat().st_size, 0)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
