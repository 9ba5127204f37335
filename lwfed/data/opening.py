"""Opening of the data that a spec names."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from lwfed.data.protocol import Source, SourceModule
from lwfed.spec.data import DataSpec


def open_source(data: DataSpec) -> Source:
    """Opens the data that a spec names, and checks for missing files before any work is done.

    Args:
        data: The data section of a spec.

    Returns:
        The source.

    Raises:
        DataError: A folder, a file or the partner of a file is missing; the message names it and a remedy.
    """
    return cast(SourceModule, import_module(f"lwfed.data.sources.{data.source}")).open_data(data)
