"""Decodes a signal, time steps by channels, from a file: an array of NumPy's, a CSV or a Parquet table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwfed.data.parquet import read_columns
from lwfed.data.texts import decoded_text
from lwfed.types.errors import DataError

_MAGIC = b"\x93NUMPY"


def decode_signal(path: Path) -> npt.NDArray[Any]:
    """Reads a signal.

    Args:
        path: The file; its ending says its format and is one of
            `lwfed.catalog.sources.table.SERIES_FORMATS`.

    Returns:
        Numbers [T, C], a row per time step and a column per channel; a one-dimensional array is one channel.

    Raises:
        DataError: It is no file of that format, or has something else than numbers; the problem is to follow its name.
    """
    return as_signal(_DECODERS[path.suffix.lower()](path))


def as_signal(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns numbers [T] or [T, C] as a signal [T, C]. Raises DataError if they are something else."""
    signal = values[:, None] if values.ndim == 1 else values
    if signal.dtype.kind not in "fiu" or signal.ndim != 2 or not signal.size:
        raise DataError(
            f"has {values.dtype} of shape {list(values.shape)}", remedy="it needs numbers [time steps, channels]"
        )
    return signal


def _npy(path: Path) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise DataError("is no .npy file", remedy="write it again with numpy.save")
    try:
        with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # compares the file's size with its header
    except (ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"is no array: {error}", remedy="write numbers again with numpy.save") from None
    return np.array(mapped)


def _csv(path: Path) -> npt.NDArray[Any]:
    """Reads lines of numbers with commas between them, after a header if there is one: a line without a number."""
    text = decoded_text(path.read_bytes(), empty="write a line per time step")
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not any(map(_is_number, _split(lines[0][1]))):
        del lines[0]
    if not lines:
        raise DataError("has a header and no numbers", remedy="write a line per time step")
    try:
        return np.loadtxt([line for _, line in lines], delimiter=",", comments=None, quotechar='"', ndmin=2)
    except ValueError as error:
        raise _fault(lines) or DataError(f"is no table of numbers: {error}", remedy="write it again") from None


def _fault(lines: Sequence[tuple[int, str]]) -> DataError | None:
    """Returns what is wrong with the first wrong line."""
    count = len(_split(lines[0][1]))
    for number, line in lines:
        cells = _split(line)
        wrong = [cell for cell in cells if not _is_number(cell)]
        if wrong:
            return DataError(
                f"has {wrong[0][:60]!r} in line {number}, not a number",
                remedy="write numbers with commas between them, and names in the first line alone",
            )
        if len(cells) != count:
            return DataError(
                f"has {len(cells)} numbers in line {number}, and {count} in line {lines[0][0]}",
                remedy="write as many in each line",
            )
    return None


def _split(line: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(",")]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> npt.NDArray[Any]:
    """Reads columns of numbers, each a channel."""
    columns = read_columns(path)
    for column, cells in columns:
        wrong = [cell for cell in cells if isinstance(cell, bool) or not isinstance(cell, int | float | None)]
        if wrong:
            raise DataError(f"has {wrong[0]!r:.60} in its column {column}, not a number", remedy="keep numbers alone")
    return np.array([cells for _, cells in columns], dtype=np.float64).T


_DECODERS: Mapping[str, Callable[[Path], npt.NDArray[Any]]] = {".npy": _npy, ".csv": _csv, ".parquet": _parquet}
