"""Windows of a sensor's signal, each standardised by itself: how strong a movement was is left out, its shape stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lwfed.data.inputs import Window
from lwfed.data.protocol import Example
from lwfed.types.errors import DataError

EPSILON = 1e-5
"""Added to the standard deviations, as in Feng et al. 2023 (arXiv 2306.09486); an axis that never changes becomes 0."""


def title_of(example: Example, modality: str) -> str:
    """Returns the name of an example's signal in errors."""
    if not example.place:
        return f"the {modality} of {example.id}"
    return f"{example.place}: the {modality} ({example.items[modality]})"


def checked(signal: npt.NDArray[Any], *, what: str) -> npt.NDArray[Any]:
    """Returns a signal; `what` is its name in errors. Raises DataError if a value is no finite number in fp32."""
    numbers = np.issubdtype(signal.dtype, np.floating) or np.issubdtype(signal.dtype, np.integer)
    with np.errstate(over="ignore"):
        finite = numbers and np.isfinite(signal.astype(np.float32)).all()
    if not finite:
        raise DataError(
            f"{what} has a value that is not a finite number", remedy="fix it, or set data.on_bad_example=skip"
        )
    return signal


def fitting(signal: npt.NDArray[Any], *, window: Window, what: str) -> npt.NDArray[Any]:
    """Returns a signal; `what` is its name in errors. Raises DataError if its shape [T, C] is not the window's."""
    if signal.shape != window:
        raise DataError(
            f"{what} has the shape {list(signal.shape)}, but its encoder takes windows of {window.length} samples of "
            f"{window.axes} axes (`config.length` and `config.axes`)",
            remedy="set these, or cut the signal into such windows",
        )
    return signal


def standardised(signal: npt.NDArray[Any], *, window: Window, what: str) -> npt.NDArray[np.float32]:
    """Standardises each axis of a window by its own mean and standard deviation.

    Args:
        signal: Samples [T, C].
        window: The shape that the encoder takes.
        what: The signal's name in errors.

    Raises:
        DataError: The signal has another shape.
    """
    values = np.asarray(fitting(signal, window=window, what=what), dtype=np.float64)
    return ((values - values.mean(axis=0)) / (values.std(axis=0) + EPSILON)).astype(np.float32)
