"""Opening of the data that a spec names."""

from __future__ import annotations

import os
from importlib import import_module
from typing import cast

from lwfed.data.protocol import Source, SourceModule
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError, LwfedError


def open_source(data: DataSpec) -> Source:
    """Opens the data that a spec names, and checks for missing files before any work is done.

    Args:
        data: The data section of a spec.

    Returns:
        The source.

    Raises:
        DataError: A folder, a file or the partner of a file is missing or cannot be read; the message names it and a
            remedy.
    """
    module = cast(SourceModule, import_module(f"lwfed.data.sources.{data.source}"))
    try:
        return module.open_data(data)
    except LwfedError:
        raise
    except OSError as error:
        raise DataError(
            f"{error.filename or data.root} cannot be read: {error.strerror or error}",
            remedy=f"make data.root and what it holds readable for the user {os.getuid()}",
        ) from None
