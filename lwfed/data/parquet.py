"""Parquet files, column by column; lists of numbers and lists of such lists become arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwfed.types.errors import DataError


def read_columns(path: Path) -> list[tuple[str, list[Any]]]:
    """Reads a Parquet file.

    Args:
        path: The file.

    Returns:
        The name and the cells of each column, in order. A cell is None, a plain value, or for a list of numbers an
        array [N], for lists of equally many numbers an array [N, M]; missing numbers in it are NaN.

    Raises:
        DataError: It is no Parquet file, or pyarrow is not installed; the problem is to follow the file's name.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            "cannot be read: pyarrow is not installed", remedy="install pyarrow, or save the table as .csv or .jsonl"
        ) from None
    try:
        with path.open("rb") as file:
            table = parquet.read_table(file)
        return [(column, _cells(table.column(n))) for n, column in enumerate(table.column_names)]
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # Arrow raises errors of its own, Python's and the system's for damaged files
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"is no Parquet table: {reason}", remedy="write it again") from None


def _cells(column: Any) -> list[Any]:
    inner = _item(column.type)
    if inner is not None and (_is_number(inner) or _is_number(_item(inner))):
        return [None if cell.values is None else _array(cell) for cell in column]
    found: list[Any] = column.to_pylist()
    return found


def _array(cell: Any) -> npt.NDArray[Any] | list[Any]:
    """Returns a cell's numbers as an array; as a list if it is ragged."""
    from pyarrow import compute

    values = cell.values
    if _item(values.type) is None:
        flat: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return flat
    lengths = compute.list_value_length(values).unique().to_pylist()
    if len(lengths) != 1 or lengths[0] is None:
        ragged: list[Any] = cell.as_py()
        return ragged
    return np.reshape(values.flatten().to_numpy(zero_copy_only=False), (len(values), lengths[0]))


def _item(kind: Any) -> Any | None:
    """Returns the type of a list's items; None if the type is no list."""
    from pyarrow import types

    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return kind.value_type if listed else None


def _is_number(kind: Any | None) -> bool:
    from pyarrow import types

    return kind is not None and (types.is_integer(kind) or types.is_floating(kind))
