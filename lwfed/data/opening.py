"""Opens the data that a spec names."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from lwfed.data.protocol import Opening, Source
from lwfed.spec.data import DataSpec


def open_source(data: DataSpec) -> Source:
    """Opens the data a spec names, and looks for what is missing before any work is done.

    Args:
        data: Which data, and where they lie.

    Returns:
        The source.

    Raises:
        DataError: A folder, a file or the partner of a file is missing; it says which, and what to do.
    """
    return cast(Opening, import_module(f"lwfed.data.sources.{data.source}")).open_data(data)
