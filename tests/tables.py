"""Writes tables, and files with signals, in the formats that the source `table` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet


def write_csv(root: Path, rows: Sequence[Mapping[str, Any]], name: str = "table.csv") -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(names), *(",".join(f'"{row.get(key, "")}"' for key in names) for row in rows)]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")


def write_jsonl(root: Path, rows: Sequence[Mapping[str, Any]], name: str = "table.jsonl") -> None:
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(root: Path, rows: Sequence[Mapping[str, Any]], name: str = "table.parquet") -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), root / name)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}
"""Ending -> how such a table is written."""


def write_lines(path: Path, signal: np.ndarray, *, header: str = "x,y,z") -> None:
    lines = [header] * bool(header) + [",".join(map(str, row)) for row in signal.tolist()]
    path.write_text("\n".join(lines) + "\n")


def write_columns(path: Path, signal: np.ndarray) -> None:
    pyarrow.parquet.write_table(pyarrow.table({f"c{n}": column for n, column in enumerate(signal.T)}), path)


SIGNAL_FILES: dict[str, Callable[[Path, np.ndarray], None]] = {
    "npy": lambda path, signal: np.save(path, signal),
    "csv": write_lines,
    "parquet": write_columns,
    "CSV": lambda path, signal: write_lines(path, signal, header=""),
}
"""Ending -> how a file with a signal is written; the upper-case one has no header."""
