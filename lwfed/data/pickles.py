"""Pickles of numpy arrays, lists, numbers and texts: a pickle that asks for anything else is refused, not run."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray, numeric

from lwfed.types.errors import DataError


def _encode(text: str, encoding: str) -> bytes:
    """Encodes an array's bytes, which old protocols store as text; no other codec is looked up."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding[:100]}")
    return text.encode("latin1")


ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.{module.__name__.rpartition('.')[2]}", name): getattr(module, name)
        for core in ("core", "_core")
        for module, name in ((multiarray, "_reconstruct"), (multiarray, "scalar"), (numeric, "_frombuffer"))
    },
}
"""Module and name of what numpy's arrays and numbers are rebuilt with -> the function."""


class _Arrays(pickle.Unpickler):
    """An unpickler that knows `ALLOWED` alone."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns an allowed function. Raises UnpicklingError for any other."""
        found = ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module[:100]}.{name[:100]}, which is no part of an array")
        return found


def read_pickle(path: Path) -> Any:
    """Reads a file of lists, dicts, numbers, texts and numpy arrays: a pickle, or a .npy file with one inside.

    Raises:
        DataError: The file is damaged, or holds anything else.
    """
    return parse_pickle(path.read_bytes(), what=str(path))


def parse_pickle(content: bytes, *, what: str) -> Any:
    """Reads the content of such a file; `what` is its name in errors. See `read_pickle`."""
    stream = io.BytesIO(content)
    try:
        if content.startswith(np.lib.format.MAGIC_PREFIX):
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            header(stream)
        return _Arrays(stream).load()
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises errors of any type
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"{what} is not a pickle of numpy arrays alone: {line}",
            remedy="copy it again, or save its arrays with numpy.save; pickles that can run code are never loaded",
        ) from None
