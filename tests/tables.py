"""Writes tables in the formats that the source `table` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
