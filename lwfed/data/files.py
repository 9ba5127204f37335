"""Reading of one image, sound or signal from disk; a damaged file is named in an error and is never partly used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from PIL import Image

from lwfed.data.pixels import decode_image
from lwfed.data.protocol import Signal, Waveform
from lwfed.types.errors import DataError

Decoded = TypeVar("Decoded")

_SKIP = ", or set data.on_bad_example=skip"


def read_image(path: Path, *, title: str | None = None) -> Image.Image:
    """Reads an image file.

    Args:
        path: A file that Pillow can read.
        title: Its name in errors; None: its path.

    Returns:
        The image as people see it, RGB; see `lwfed.data.pixels.as_seen`.

    Raises:
        DataError: The file is missing, truncated, too large or not an image, or its values have no known range.
    """

    def decode(path: Path) -> Image.Image:
        with path.open("rb") as file:
            return decode_image(file)

    return _read("image", path, decode, title)


def read_sound(path: Path, *, title: str | None = None) -> tuple[Waveform, int]:
    """Reads a sound file of any sampling rate and number of channels.

    Args:
        path: A file in one of `lwfed.data.sounds.FORMATS`.
        title: Its name in errors; None: its path.

    Returns:
        Samples [N], the mean over channels, and samples per second.

    Raises:
        DataError: The file is missing, truncated, empty or not a sound.
    """
    from lwfed.data.sounds import decode_sound  # soundfile loads a library that only sounds need

    return _read("sound", path, decode_sound, title)


def read_series(path: Path, *, title: str | None = None) -> Signal:
    """Reads a file with a signal.

    Args:
        path: A file with one of the endings in `lwfed.catalog.sources.table.SERIES_FORMATS`.
        title: Its name in errors; None: its path.

    Returns:
        Numbers [T, C], of the file's own type.

    Raises:
        DataError: The file is missing or damaged, or has something else than numbers.
    """
    from lwfed.data.signals import decode_signal

    return _read("signal", path, decode_signal, title)


def _read(what: str, path: Path, decode: Callable[[Path], Decoded], title: str | None) -> Decoded:
    """Decodes a file. Raises DataError for whatever goes wrong: decoders of damaged files raise errors of any type."""
    name = f"{what} {title or path}"
    try:
        if not path.is_file():  # reading from a pipe could wait for ever
            raise FileNotFoundError
        return decode(path)
    except FileNotFoundError:
        raise DataError(f"there is no {name}", remedy=f"restore or remove it{_SKIP}") from None
    except DataError as error:
        problem, remedy = error.problem, error.remedy or "fix or remove it"
        raise DataError(f"the {name} {problem}", remedy=f"{remedy}{_SKIP}") from None
    except PermissionError:
        problem = f"the {name} cannot be read: permission denied"
        raise DataError(problem, remedy=f"make it readable{_SKIP}") from None
    except MemoryError:
        raise
    except Exception as error:
        problem = f"the {name} cannot be read: {_line(error)}"
        raise DataError(problem, remedy=f"fix or remove it{_SKIP}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
